"""The tables of the report as rows of text cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cuvee.core.trajectory import Cost
from cuvee.evaluation.statistics import paired_difference
from cuvee.evaluation.verdicts import Verdict
from cuvee.report.summary import MethodView, Scores, Summary, shares_of_tokens
from cuvee.report.verdict import seeds_to_decide, verdicts
from cuvee.report.words import ABSENT, amount, duration, interval, measure, number, signed

Value = Callable[[Scores], float | None]

_MEASURES: tuple[tuple[str, Value], ...] = (
    ("Mean", lambda scores: scores.mean),
    ("Source", lambda scores: scores.source),
    ("Target", lambda scores: scores.target),
    ("Source/target average", lambda scores: scores.balance),
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


@dataclass(frozen=True)
class Row:
    head: str
    note: str
    cells: tuple[Cell, ...]
    method: int | None = None
    """Index of the method whose colour marks the row."""
    target: bool = False


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def measures(summary: Summary) -> list[tuple[str, Value]]:
    """The summary losses of this corpus: all four with source and target domains, else the mean."""
    return [(name, value) for name, value in _MEASURES if summary.has_roles or name == "Mean"]


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
        rows.append(Row(method.label, _run_count(method), tuple(cells), index))
    return Table((*(name for name, _, _ in numeric), "Tokens", "FLOPs", "Time"), tuple(rows))


def paired_table(summary: Summary) -> Table | None:
    """Each method minus the baseline, over the seeds that both finished; None without such seeds.

    The verdict is about the loss by which methods are ranked. With proxies it also has the size of run from which they pay off.
    """
    baseline = summary.methods[0]
    others = summary.methods[1:]
    losses = measures(summary)
    costly = any(method.proxies != Cost() for method in others)
    found = verdicts(summary)
    rows = []
    for index, method in enumerate(others, start=1):
        if method.label not in found:
            continue
        cells = [_difference(method, baseline, value) for _, value in losses]
        shares = shares_of_tokens(method, baseline)
        cells += [Cell(_tokens_needed(shares))]
        cells += [_break_even(method, baseline, shares)] if costly else []
        verdict = found[method.label]
        pairs = verdict.difference.pairs
        count = f"{pairs} paired seed{'s' if pairs != 1 else ''}"
        rows.append(Row(method.label, count, (_verdict(verdict), *cells), index))
    columns = ("Verdict", *(f"Δ {name.lower()}" for name, _ in losses))
    columns += ("Tokens to the baseline’s end",)
    columns += ("Proxies pay from",) if costly else ()
    return Table(columns, tuple(rows)) if rows else None


def _difference(method: MethodView, baseline: MethodView, value: Value) -> Cell:
    difference = paired_difference(method.by_seed(value), baseline.by_seed(value))
    if difference is None:
        return Cell(ABSENT)
    shade = 0
    if difference.excludes_zero:
        shade = -2 if difference.mean < 0 else 2
    note = interval(difference) or "one seed: no interval"
    return Cell(signed(difference.mean), note, shade=shade)


def _verdict(verdict: Verdict) -> Cell:
    note = "" if verdict.p_value is None else f"p = {verdict.p_value:.2g}"
    if verdict.comparisons > 1:
        note += f", corrected for {verdict.comparisons}"
    return Cell(verdict.outcome, seeds_to_decide(verdict) or note)


def domain_table(summary: Summary) -> Table:
    """One row per domain: final loss and share of tokens by method.

    Cells are shaded by the difference to the baseline where its interval excludes 0.
    """
    scored = [method for method in summary.methods if method.scored]
    start = next((view for view in summary.runs if view.start), None)
    drawn = [_drawn(method) for method in scored]
    rows = []
    order = sorted(range(len(summary.domains)), key=lambda k: not summary.domains[k].is_target)
    for k in order:
        domain = summary.domains[k]
        losses = [_final_loss(method, k) for method in scored]
        compared = scored and scored[0].label == summary.baseline and scored[0].finished
        theirs = losses[0] if compared else None
        cells = [Cell(number(float(start.loss_PK[0, k]))) if start else Cell(ABSENT)]
        for method, loss, tokens in zip(scored, losses, drawn, strict=True):
            sure = theirs is not None and _is_sure(method, scored[0], k)
            shade = _shade(loss, theirs) if sure else 0
            share = tokens[domain.name] / (sum(tokens.values()) or 1)
            cells.append(Cell(number(loss), f"{share:.1%} of tokens", shade=shade))
        rows.append(
            Row(
                domain.name,
                f"{amount(domain.tokens)} tokens",
                tuple(cells),
                target=domain.is_target,
            )
        )
    heads = [method.label + ("" if method.finished else " (not finished)") for method in scored]
    return Table(("Validation loss at the start", *heads), tuple(rows))


def _is_sure(method: MethodView, baseline: MethodView, k: int) -> bool:
    """Whether the interval of the paired difference on domain number `k` excludes 0."""
    ours, theirs = (
        {view.run.seed: float(view.final_K[k]) for view in one.finished if view.final_K is not None}
        for one in (method, baseline)
    )
    difference = paired_difference(ours, theirs)
    return difference is not None and difference.excludes_zero


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
            texts = (
                str(view.run.seed),
                view.status,
                number(final),
                amount(cost.tokens),
                amount(cost.flops),
            )
            cells = (Cell(method.label), *map(Cell, texts), Cell(duration(cost.seconds)))
            rows.append(Row(view.run.id, "", cells, index))
    loss = measure(summary)
    columns = ("Method", "Seed", "State", loss[0].upper() + loss[1:], "Tokens", "FLOPs", "Time")
    return Table(columns, tuple(rows))


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
    notes = ("", "", "")
    if proxies is None:
        notes = ("its policy’s unknown", "", "")
    elif proxies != Cost():
        shares = amount(proxies.tokens), amount(proxies.flops), duration(proxies.seconds)
        notes = (f"{shares[0]} proxies", f"{shares[1]} proxies", f"{shares[2]} proxies")
    return [Cell(text, note) for text, note in zip(texts, notes, strict=True)]


def _tokens_needed(shares: Sequence[float | None]) -> str:
    got_there = [share for share in shares if share is not None]
    if len(got_there) < len(shares):
        return f"reached by {len(got_there)} of {len(shares)}" if got_there else "never reached"
    return f"{sum(got_there) / len(got_there):.0%} of its tokens" if got_there else ABSENT


def _break_even(method: MethodView, baseline: MethodView, shares: Sequence[float | None]) -> Cell:
    """FLOPs of the baseline's run from which the proxies are worth their cost.

    Let a method reach the baseline's loss after the share s of its tokens, at r times its FLOPs per
    token. It saves 1 − s·r of that run. Proxies of P FLOPs pay off for runs of P / (1 − s·r) FLOPs
    or more, if s stays the same.
    """
    proxies = method.proxies
    if proxies is None:
        return Cell(ABSENT, "cost of its policy unknown")
    if not proxies.flops:
        return Cell(ABSENT, "no proxies")
    own, other = method.cost, baseline.cost
    reached = [share for share in shares if share is not None]
    if not reached or len(reached) < len(shares) or not (own.tokens and other.flops):
        return Cell("never", "the baseline’s end is not reached")
    saved = 1.0 - sum(reached) / len(reached) * (own.flops / own.tokens) / (
        other.flops / other.tokens
    )
    if saved <= 0:
        return Cell("never", "no FLOPs are saved")
    enough = proxies.flops / saved
    return Cell(f"{amount(enough)} FLOPs", f"{enough / other.flops:.3g} × this run")


def _drawn(method: MethodView) -> Counter[str]:
    """The tokens of each domain that all scored runs of the method read together."""
    drawn: Counter[str] = Counter()
    for view in method.scored:
        for signals in view.run.trajectory.signals:
            drawn.update(dict(zip(signals.names, signals.tokens_K.tolist(), strict=True)))
    return drawn


def _shade(loss: float | None, theirs: float | None) -> int:
    if loss is None or theirs is None:
        return 0
    difference = loss - theirs
    size = sum(abs(difference) >= bound for bound in (0.01, 0.05, 0.2))
    return size if difference > 0 else -size
