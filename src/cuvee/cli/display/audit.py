"""Displays the guard's audit records: one row per decision, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]
Only = Literal["accepted", "limited", "refused", "fallback", "shadow", "operator", "alarm"]

_SHOWN_DOMAINS = 2
_ORDER = ("accepted", "limited", "refused", "fallback", "shadow", "operator")


def is_meant(record: Record, only: Only | None) -> bool:
    """Whether a filter selects this record.

    `refused` selects refused proposals and lessons, and `operator` also each decision with requests.
    """
    if only == "alarm":
        return bool(record.get("alarms"))
    if only == "operator" and (record.get("operator") or {}).get("requests"):
        return True
    if only == "refused" and record.get("lesson", "learned") != "learned":
        return True
    return only is None or record.get("verdict") == only


def table(records: Sequence[Record]) -> Table:
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("step", "verdict", "change", "reward"):
        shown.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for column in ("proposed", "executed"):
        shown.add_column(column, overflow="fold", max_width=40)
    shown.add_column("why", overflow="fold")
    for record in records:
        proposed, executed = record.get("proposed"), record.get("executed")
        cells = [
            f"{record['step']:,}",
            record["verdict"],
            _number(record.get("change")),
            _number(record.get("reward")),
            heaviest(proposed) if proposed else "none",
            "as proposed" if executed == proposed else heaviest(executed or {}),
            "; ".join(_why(record)),
        ]
        shown.add_row(*cells)
    return shown


def summary(records: Sequence[Record]) -> Iterator[str]:
    """Yield a few lines about all decisions of a run."""
    verdicts = Counter(record["verdict"] for record in records)
    counted = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _ORDER if verdicts[verdict])
    yield f"{len(records)} decision{'s' * (len(records) != 1)}: {counted}"
    acted = Counter(limit for record in records for limit in record.get("limits", ()))
    yield "limits that acted: " + (
        ", ".join(f"{name} {times}" for name, times in acted.most_common()) or "none"
    )
    changed = [record for record in records if record.get("change") is not None]
    if changed:
        largest = max(changed, key=lambda record: float(record["change"]))
        yield f"largest change: {largest['change']:.4f} at step {largest['step']:,}"
    if lessons := sum(record.get("lesson", "learned") != "learned" for record in records):
        yield f"lessons refused: {lessons}"
    yield from _alarms(records)


def _alarms(records: Sequence[Record]) -> Iterator[str]:
    """Yield each alarm once, with its first occurrence and its count."""
    first: dict[str, tuple[int, str]] = {}
    sounded: Counter[str] = Counter()
    for record in records:
        for name, why in record.get("alarms", {}).items():
            first.setdefault(name, (record["step"], why))
            sounded[name] += 1
    for name, (step, why) in first.items():
        yield f"alarm {name}: first at step {step:,}, {sounded[name]} in all: {why}"
    if not first:
        yield "alarms: none"


def _why(record: Record) -> Iterator[str]:
    for request in (record.get("operator") or {}).get("requests", ()):
        yield _request(request)
    if record.get("fallback"):
        yield f"after {', '.join(record['fallback']['alarms'])}"
    elif record["verdict"] == "shadow":
        own = record["own"]
        yield f"else {own['verdict']}" + (f" ({', '.join(own['limits'])})" if own["limits"] else "")
    if record.get("limits"):
        yield ", ".join(record["limits"])
    if record.get("reason"):
        yield record["reason"]
    if record.get("lesson", "learned") != "learned" and record.get("proposed"):
        yield f"not learned from: {record['lesson']}"


def _request(entry: Mapping[str, Any]) -> str:
    action = {
        kind: value
        for kind, value in entry.items()
        if kind not in ("number", "author", "refused", "sha256")
    }
    words = " ".join(_words(kind, value) for kind, value in action.items())
    refused = f", refused: {entry['refused']}" if "refused" in entry else ""
    return f"{entry['author']} asked: {words}{refused}"


def _words(kind: str, value: Any) -> str:
    if kind == "add":
        return f"add domain {value['name']} {value['share']:.3f} from {value['corpus']}"
    return kind if value is True else f"{kind} {heaviest(value) if kind == 'set' else value}"


def heaviest(weights: Mapping[str, float], most: int = _SHOWN_DOMAINS) -> str:
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    return " ".join(f"{name} {weight:.3f}" for name, weight in ranked[:most])


def _number(value: Any) -> str:
    """Format a number. A bandit's reward has one number per domain, which does not fit a column."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""
