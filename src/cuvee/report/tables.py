"""The tables of the report as rows of text cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.trajectory import Cost
from cuvee.evaluation.statistics import bootstrap_means, variance_shares
from cuvee.evaluation.verdicts import Verdict
from cuvee.report.summary import MOST_METHODS, Measure, Summary
from cuvee.report.views import (
    MethodView,
    RunView,
    Scores,
    break_even,
    shares_of_tokens,
    tokens_needed,
)
from cuvee.report.words import (
    ABSENT,
    amount,
    duration,
    interval,
    measure,
    number,
    p_value,
    paired_seeds,
    seeds_to_decide,
    signed,
)

Value = Callable[[Scores], float | None]

_FEW_METHODS = 5
"""The number of methods in the table of domains before more are asked for."""
_MEASURES: tuple[tuple[Measure, Value], ...] = (
    ("Mean", lambda scores: scores.mean),
    ("Source", lambda scores: scores.source),
    ("Target", lambda scores: scores.target),
    ("Source/target average", lambda scores: scores.balance),
    ("Objective", lambda scores: scores.objective),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    note: str = ""
    """Printed small below `text`."""
    lowest: bool = False
    """Whether it is the best of its column."""
    shade: int = 0
    """From −3 (better than the baseline) to 3 (worse)."""
    value: float | None = None
    """What a reader who sorts the table sorts by, if `text` does not begin with it."""


@dataclass(frozen=True)
class Row:
    head: str
    note: str
    cells: tuple[Cell, ...]
    method: int | None = None
    """Index of the method whose line in the figures marks the row; None if it is in no figure."""
    target: bool = False


@dataclass(frozen=True)
class Table:
    """A table. A page shows the columns of `extra` on demand."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    extra: frozenset[str] = frozenset()


def measures(summary: Summary) -> list[tuple[Measure, Value]]:
    """The summary losses: the mean, those of the roles if there are two, and `ranked_by`."""
    shown = {"Mean", summary.ranked_by}
    shown |= {"Source", "Target", "Source/target average"} if summary.has_roles else set()
    return [(name, value) for name, value in _MEASURES if name in shown]


def final_table(summary: Summary) -> Table:
    """One row per method: final losses, and the cost of a run with its proxies.

    Losses and costs are means over seeds.
    """
    bits = all(
        scores.bits_per_byte is not None for view in summary.runs for scores in view.scores_P
    )
    losses = measures(summary)
    numeric: list[tuple[str, Value, int]] = [(name, value, 3) for name, value in losses]
    numeric += [
        ("Worst domain", lambda scores: scores.worst, 3),
        ("Perplexity", lambda scores: scores.perplexity, 2),
    ]
    numeric += [("Bits per byte", lambda scores: scores.bits_per_byte, 3)] if bits else []
    lowest = {
        name: min(
            (
                loss
                for method in summary.methods
                if method.finished and (loss := method.mean(value)) is not None
            ),
            default=None,
        )
        for name, value, _ in numeric
    }
    rows = []
    for index, method in enumerate(summary.methods):
        cells = []
        for name, value, digits in numeric:
            mean = method.mean(value)
            best = (
                bool(method.finished)
                and len(summary.methods) > 1
                and mean is not None
                and mean == lowest[name]
            )
            cells.append(Cell(number(mean, digits), _final_note(method, name, value, digits), best))
        cells += _cost_cells(method)
        rows.append(Row(method.label, _run_count(method), tuple(cells), _mark(index)))
    columns = (*(name for name, _, _ in numeric), "Tokens", "FLOPs", "Time")
    first = {"Source", "Target", summary.ranked_by, "FLOPs"}
    return Table(columns, tuple(rows), frozenset(columns) - first)


def paired_table(summary: Summary) -> Table | None:
    """Each method minus the baseline, over the seeds that both finished; None without such seeds.

    The verdict is about the loss by which methods are ranked. With proxies it also has the size of
    run from which they pay off.
    """
    baseline = summary.methods[0]
    others = summary.methods[1:]
    losses = measures(summary)
    costly = any(method.proxies != Cost() for method in others)
    found = summary.verdicts
    rows = []
    for index, method in enumerate(others, start=1):
        if method.label not in found:
            continue
        cells = [_difference(summary, method, value) for _, value in losses]
        shares = shares_of_tokens(method, baseline)
        cells += [_tokens_needed(shares)]
        cells += [_break_even(method, baseline)] if costly else []
        verdict = found[method.label]
        count = paired_seeds(verdict.difference.pairs, verdict.seeds)
        own = f"{count}; not its own alone" if method.others else count
        rows.append(Row(method.label, own, (_verdict(verdict), *cells), _mark(index)))
    columns = ("Verdict", *(f"Δ {name.lower()}" for name, _ in losses))
    columns += ("Tokens to the baseline’s end",)
    columns += ("Proxies pay from",) if costly else ()
    extra = {f"Δ {name.lower()}" for name, _ in losses if name != summary.ranked_by}
    return Table(columns, tuple(rows), frozenset(extra)) if rows else None


_PARTS = {"weights": "Initial weights", "order": "Order of the data", "agent": "Agent"}


def spread_table(summary: Summary) -> Table | None:
    """How much of the spread over seeds each part of a run carries; None unless seeds are crossed.

    One row for each method's final loss, and one for its difference to the baseline.
    """
    _, value = measures(summary)[-1]
    found = [(method, method.crossed(value)) for method in summary.methods]
    base = found[0][1]
    rows = []
    for index, (method, crossed) in enumerate(found):
        if crossed is None or (base and crossed.parts != base.parts):
            continue
        compared = crossed.minus(base) if index and base else None
        for head, one in ((method.label, crossed), (f"Δ {method.label}", compared)):
            shared = variance_shares(one.values) if one and one.values else None
            if shared is None or one is None:
                continue
            shares, deviation = shared
            cells = [Cell(f"{deviation:.4f}", value=deviation)]
            cells += [Cell(f"{share:.0%}", value=float(share)) for share in shares]
            rows.append(Row(head, f"{len(one.values)} runs", tuple(cells), _mark(index)))
    if not rows:
        return None
    parts = next(crossed.parts for _, crossed in found if crossed)
    names = (*(_PARTS.get(part, part) for part in parts), "Combinations of them")
    return Table(("Standard deviation", *names), tuple(rows))


def _mark(index: int) -> int | None:
    return index if index < MOST_METHODS else None


def _difference(summary: Summary, method: MethodView, value: Value) -> Cell:
    difference = summary.difference(method, summary.methods[0], value)
    if difference is None:
        return Cell(ABSENT)
    shade = 0
    if difference.excludes_zero:
        shade = -2 if difference.mean < 0 else 2
    note = interval(difference) or "one seed: no interval"
    return Cell(signed(difference.mean), note, shade=shade)


def _verdict(verdict: Verdict) -> Cell:
    note = p_value(verdict.p_value)
    if verdict.comparisons > 1:
        note += f", corrected for {verdict.comparisons}"
    return Cell(verdict.outcome, seeds_to_decide(verdict) or note)


def domain_table(summary: Summary) -> Table:
    """One row per domain: final loss and share of tokens by method.

    It has the methods of the figures. Cells are shaded by the difference to the baseline where its
    interval excludes 0.
    """
    scored = [method for method in summary.shown if method.scored]
    start = next((view for view in summary.runs if view.start), None)
    drawn = [_drawn(method) for method in scored]
    compared = bool(scored and scored[0].label == summary.baseline and scored[0].finished)
    shades = [
        _shades(summary, method) if compared and place else [0] * len(summary.domains)
        for place, method in enumerate(scored)
    ]
    rows = []
    order = sorted(range(len(summary.domains)), key=lambda k: not summary.domains[k].is_target)
    for k in order:
        domain = summary.domains[k]
        cells = [Cell(number(float(start.loss_PK[0, k]))) if start else Cell(ABSENT)]
        for method, tokens, shades_K in zip(scored, drawn, shades, strict=True):
            share = tokens[domain.name] / (sum(tokens.values()) or 1)
            loss = number(_final_loss(method, k))
            cells.append(Cell(loss, f"{share:.1%} of tokens", shade=shades_K[k]))
        note = f"{amount(domain.tokens)} tokens"
        rows.append(Row(domain.name, note, tuple(cells), target=domain.is_target))
    heads = [method.label + ("" if method.finished else " (not finished)") for method in scored]
    columns = ("Validation loss at the start", *heads)
    return Table(columns, tuple(rows), frozenset([columns[0], *heads[_FEW_METHODS:]]))


def _shades(summary: Summary, method: MethodView) -> list[int]:
    """Shades by domain of the mean paired differences, 0 where the interval does not exclude 0."""
    ours, theirs = (
        {view.run.seed: view.final_K for view in one.finished if view.final_K is not None}
        for one in (method, summary.methods[0])
    )
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return [0] * len(summary.domains)
    pairs = [ours[seed] - theirs[seed] for seed in shared]
    levels = [summary.levels[seed] for seed in shared] if summary.levels else None
    return [
        _shade(found.mean) if found.excludes_zero else 0
        for found in bootstrap_means(np.transpose(pairs), levels=levels)
    ]


def _final_loss(method: MethodView, k: int) -> float | None:
    """The mean final loss on domain number `k`; None if no scored run has one."""
    losses = [float(view.final_K[k]) for view in method.scored if view.final_K is not None]
    return sum(losses) / len(losses) if losses else None


def run_table(summary: Summary) -> Table:
    """One row per run, in any state."""
    rows = []
    for index, method in enumerate(summary.methods):
        for view in method.runs:
            final = view.final.headline if view.final else None
            cost = view.run.cost
            cells = (
                Cell(method.label),
                Cell(str(view.run.seed)),
                Cell(view.status, _steered(view)),
                Cell(number(final)),
                Cell(amount(cost.tokens), _lost(view.lost), value=cost.tokens),
                Cell(amount(cost.flops), value=cost.flops),
                Cell(duration(cost.seconds), value=cost.seconds),
            )
            rows.append(Row(view.run.id, "", cells, _mark(index)))
    loss = measure(summary)
    columns = ("Method", "Seed", "State", loss[0].upper() + loss[1:], "Tokens", "FLOPs", "Time")
    return Table(columns, tuple(rows), frozenset(("Tokens", "FLOPs")))


def _steered(view: RunView) -> str:
    """What else than the policy steered, and how often the guard refused a proposal."""
    if view.steering is None:
        return ""
    said = [f"{who} steered {count} intervals" for who, count in view.steering.others.items()]
    said += [f"{view.steering.refused} proposals refused"] if view.steering.refused else []
    return "; ".join(said)


def _lost(lost: Cost) -> str:
    return f"{amount(lost.tokens)} lost" if lost.tokens else ""


def _final_note(method: MethodView, name: str, value: Value, digits: int) -> str:
    if name == "Worst domain":
        return ", ".join(sorted({view.final.worst_domain for view in method.scored if view.final}))
    numbers = [v for view in method.scored if view.final and (v := value(view.final)) is not None]
    if len(numbers) > 1:
        return f"{number(min(numbers), digits)}–{number(max(numbers), digits)}"
    run = method.scored[0] if method.scored else None
    if run is None or run.start is None or run.last_validation is None:
        return ""
    start, end = value(run.start), value(run.last_validation)
    return "" if start is None or end is None else signed(end - start, digits)


def _run_count(method: MethodView) -> str:
    total = len(method.runs)
    done = len(method.finished)
    if done == total:
        return f"{total} run{'s' if total != 1 else ''}"
    return (
        f"{done} of {total} finished"
        if done
        else method.runs[0].status
        if total == 1
        else f"none of {total} finished"
    )


def _cost_cells(method: MethodView) -> list[Cell]:
    """The mean cost of a run plus the cost of all its proxies, which each seed counts in full."""
    proxies = method.proxies
    total = method.cost + (proxies or Cost())
    texts = amount(total.tokens), amount(total.flops), duration(total.seconds)
    values = float(total.tokens), total.flops, total.seconds
    notes = _cost_notes(proxies, "proxies")
    if proxies is None:
        notes = ("its policy’s unknown", "", "")
    lost = _cost_notes(method.lost, "lost, not counted")
    return [
        Cell(text, "; ".join(filter(None, both)), value=value)
        for text, value, *both in zip(texts, values, notes, lost, strict=True)
    ]


def _cost_notes(cost: Cost | None, what: str) -> tuple[str, str, str]:
    if cost is None or cost == Cost():
        return "", "", ""
    figures = (amount(cost.tokens), amount(cost.flops), duration(cost.seconds))
    return f"{figures[0]} {what}", f"{figures[1]} {what}", f"{figures[2]} {what}"


def _tokens_needed(shares: Sequence[float | None]) -> Cell:
    needed = tokens_needed(shares)
    if not needed.runs:
        return Cell(ABSENT)
    if needed.reached == 0:
        return Cell("never reached", f"in {needed.runs} run{'s' if needed.runs > 1 else ''}")
    some = f"reached by {needed.reached} of {needed.runs}"
    if needed.typical is None:
        return Cell(some)
    text = f"{needed.typical:.0%} of its tokens"
    if needed.reached == needed.runs:
        return Cell(text, value=needed.typical)
    return Cell(text, f"the median; {some}", value=needed.typical)


def _break_even(method: MethodView, baseline: MethodView) -> Cell:
    """FLOPs of the baseline's run from which the proxies are worth their cost: `break_even`."""
    proxies = method.proxies
    if proxies is None:
        return Cell(ABSENT, "cost of its policy unknown")
    if not proxies.flops:
        return Cell(ABSENT, "no proxies")
    needed = tokens_needed(shares_of_tokens(method, baseline))
    enough = break_even(method, baseline)
    if enough is not None:
        times = f"{enough / baseline.cost.flops:.3g} × this run"
        return Cell(f"{amount(enough)} FLOPs", times, value=enough)
    missed = needed.typical is None
    return Cell("never", "the baseline’s end is not reached" if missed else "no FLOPs are saved")


def _drawn(method: MethodView) -> Counter[str]:
    """The tokens of each domain that all scored runs of the method read together."""
    drawn: Counter[str] = Counter()
    for view in method.scored:
        drawn.update(view.run.trajectory.tokens_read().by_name())
    return drawn


def _shade(difference: float) -> int:
    size = sum(abs(difference) >= bound for bound in (0.01, 0.05, 0.2))
    return size if difference > 0 else -size
