"""`recommend`: finds the given runs, recommends a mixture and writes the files of the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cuvee.core.errors import ConfigError, StoreError, nearest
from cuvee.core.files import read_json, write_atomic
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.config.schema import load
from cuvee.recipes.stores import find_group, open_store
from cuvee.recommend.design import propose_next
from cuvee.recommend.page import render
from cuvee.recommend.plan import Plan
from cuvee.recommend.reading import Columns, read_runs, with_higher
from cuvee.recommend.recommend import Recommendation, Request, recommend
from cuvee.recommend.table import Runs, runs_of
from cuvee.recommend.writers import FORMATS
from cuvee.recommend.writers.base import Target

_LARGEST = 1e300  # also refuses infinity and NaN
_TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Outputs:
    """What to write into `folder`: files of `formats`, a page, and a search file of `next_runs`."""

    folder: Path
    formats: Sequence[str] = ()
    target: Target = field(default_factory=Target)
    next_runs: int = 0


def known_runs(sources: Sequence[str], columns: Columns, store: str | None) -> Runs:
    """Read runs from `sources`.

    These are files or one folder of runs, or one search file, or the name of a group in the store.
    """
    paths = [Path(source) for source in sources]
    if all(path.is_dir() or path.suffix.lower() in _TABLES for path in paths):
        return read_runs(paths, columns)
    is_search = paths[0].suffix in (".yaml", ".yml")
    if len(sources) > 1 or (paths[0].is_file() and not is_search):
        raise ConfigError(f"{', '.join(sources)}: not a table: give CSV, JSONL or Parquet files")
    return with_higher(runs_of(_logged(sources[0], is_search, store)), columns.higher)


def _logged(source: str, is_search: bool, store: str | None) -> Sequence[Run]:
    """Return the finished runs of a search file, or of a group of the store."""
    if is_search:
        from cuvee.recipes.search import SearchConfig, logged_runs

        config = load(SearchConfig, Path(source))
        return logged_runs(config if store is None else config.model_copy(update={"store": store}))
    try:
        opening = open_store(store, must_exist=True)
    except StoreError as error:
        raise ConfigError(f"there is no file or folder {source}, and {error}") from error
    with opening as opened:
        try:
            group = find_group(opened, source)
        except StoreError as error:
            raise ConfigError(f"there is no file or folder {source}, and {error}") from error
        done = opened.runs(group=group, status="done")
        return [opened.load(run.id) for run in done]


def available_tokens(given: str) -> dict[str, int]:
    """Return tokens by domain, from a corpus folder or from a JSON file with one object."""
    path = Path(given)
    if path.is_dir():
        return {domain.name: domain.tokens for domain in Corpus.open(path).domains}
    if not path.is_file():
        raise ConfigError(
            f"--available is {given}, and there is neither a corpus nor a file there: give the "
            "folder of a corpus, or a JSON file {domain: tokens, …}"
        )
    return read_counts(path)


def read_counts(path: Path) -> dict[str, int]:
    """Return a JSON object of counts by domain. Raises `ConfigError` for a negative one too."""
    found = read_numbers(path)
    for name, count in found.items():
        if count < 0:
            raise ConfigError(f"{path}: {name} is {count:g}: give a count of 0 or more")
    return {name: int(count) for name, count in found.items()}


def read_numbers(path: Path) -> dict[str, float]:
    """Return a JSON object of numbers by domain. Raises `ConfigError` for anything else."""
    content = read_object(path)
    for name, value in content.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not abs(value) < _LARGEST:
            raise ConfigError(
                f"{path}: {name} is {str(value)[:40]!r}, which is not a finite number"
            )
    return {name: float(value) for name, value in content.items()}


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises `ConfigError` if the file has none."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain one JSON object, {{domain: value, …}}")
    return content


def recommend_and_write(
    runs: Runs, request: Request, outputs: Outputs
) -> tuple[Recommendation, list[Path]]:
    """Recommend, write the files, and return the recommendation and the paths.

    Formats are checked before anything is fitted. Files are written only if all can be produced.
    """
    unknown = [name for name in outputs.formats if name not in FORMATS]
    if unknown:
        raise ConfigError(f"no format {unknown[0]!r}{nearest(unknown[0], FORMATS)}")
    for option in ("paths", "lengths", "samples"):
        for name in getattr(outputs.target, option):
            if name not in runs.domains:
                raise ConfigError(f"--{option} names {name!r}{nearest(name, runs.domains)}")
    if outputs.folder.exists() and not outputs.folder.is_dir():
        raise ConfigError(f"--output {outputs.folder} is a file: name a folder")
    found = recommend(runs, request)
    files = {"recommendation.json": json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"}
    for name in outputs.formats:
        files |= FORMATS[name].write(found.plan, outputs.target)
    if outputs.next_runs:
        files["next.yaml"] = _search_file(found, outputs.next_runs)
    files["recommendation.html"] = render(found)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(outputs.folder / name, content)
    return found, [outputs.folder / name for name in files]


def read_plan(path: Path) -> Plan:
    """Return the plan in a `recommendation.json`."""
    content = read_object(path)
    if not isinstance(content.get("plan"), Mapping):
        raise ConfigError(f"{path} has no plan: give the recommendation.json of `cuvee recommend`")
    return Plan.from_json(content["plan"])


def _search_file(found: Recommendation, count: int) -> str:
    """Return a configuration of `cuvee search` whose method runs exactly the proposed mixtures."""
    paths_NPK = propose_next(
        found.surrogate, found.bounds, found.runs.mixtures_NPK, count, found.request.seed
    )
    runs = []
    for path_PK in paths_NPK:
        edges = [0.0, *(float(edge) for edge in found.runs.shares_P.cumsum())]
        points: list[list[Any]] = []
        for p, weights_K in enumerate(path_PK):
            shares = {
                name: round(float(share), 6)
                for name, share in zip(found.runs.domains, weights_K, strict=True)
            }
            points += [
                [round(edges[p], 9), shares],
                [round(min(edges[p + 1], 1.0), 9), dict(shares)],
            ]
        runs.append(points if len(path_PK) > 1 and found.surrogate.order else points[:1])
    content = {"corpus": "PATH/TO/CORPUS", "method": {"name": "designed", "runs": runs}}
    comment = (
        "# Set corpus, model and train as in the search to which these runs are to be added.\n"
    )
    return comment + yaml.safe_dump(content, sort_keys=False)
