"""Claims of a comparison: registered in a file before the runs, answered after them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError
from cuvee.core.files import read_json, write_atomic
from cuvee.evaluation.claims import Answered, answer_claims, parse_claim
from cuvee.recipes.config.schema import CompareConfig
from cuvee.report.summary import Summary


def register_claims(config: CompareConfig, group: str, done: int, total: int) -> None:
    """Record the claims of `config` that are new, with the runs that are finished already.

    The record is kept: a claim that was registered earlier is not registered again.
    """
    if not config.claims:
        return
    records = _read(config.out, group)
    known = {record["claim"] for record in records}
    labels = [method.label for method in config.methods]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for claim in (str(parse_claim(text, labels)) for text in config.claims):
        if claim not in known:
            known.add(claim)
            records.append({"claim": claim, "done": done, "total": total, "registered": now})
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(config.out, group), json.dumps(records, indent=2))


def answered_claims(out: Path, group: str, summary: Summary) -> list[Answered]:
    """Return the claims of a group that were registered in `out`, with their verdicts.

    Claims about methods that `summary` lacks are left out.
    """
    labels = [method.label for method in summary.methods]
    others = {method.label for method in summary.methods if method.others}
    losses = {
        method.label: method.by_seed(lambda scores: scores.headline) for method in summary.methods
    }
    claims = []
    for one in _read(out, group):
        if _names(one["claim"]) <= set(labels):
            claim = parse_claim(one["claim"], labels)
            made = (one["done"], one["total"], one["registered"])
            claims.append(Answered(claim, None, *made, credited=claim.left not in others))
    return answer_claims(claims, lambda label: losses.get(label, {}), summary.levels)


def _names(claim: str) -> set[str]:
    left, _, right = claim.partition(" < ")
    return {left, right.split(" by ")[0]}


def _path(out: Path, group: str) -> Path:
    return out / f"{group}-claims.json"


def _read(out: Path, group: str) -> list[dict[str, Any]]:
    """Raises `ConfigError` if the file was altered so that it cannot be read."""
    path = _path(out, group)
    if path.parent != out or not path.is_file():  # a group of a foreign store may be a path
        return []
    try:
        records = read_json(path)
        return [{key: kind(one[key]) for key, kind in _FIELDS.items()} for one in records]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a record of claims ({error}): restore it, or remove it to register "
            "the claims again"
        ) from error


_FIELDS = {"claim": str, "done": int, "total": int, "registered": str}
