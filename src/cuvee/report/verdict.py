"""The verdict card: what to train on, how sure that is, what it saves and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cuvee.core.trajectory import Cost
from cuvee.evaluation.verdicts import MOST_SEEDS, Verdict, compare_paired, corrected
from cuvee.report.summary import MethodView, Scores, Summary, shares_of_tokens
from cuvee.report.words import amount, headline_loss, interval, measure, number, signed

TIE = 0.0025
"""Two losses are tied if they surely differ by less than this share of the baseline's loss."""


@dataclass(frozen=True)
class Card:
    """The conclusion of a report in four short texts.

    `choice` names what to train on and `sure` how sure that is. `saves` and `cost` compare it with
    the baseline; they are "" if there is nothing to compare.
    """

    choice: str
    sure: str
    saves: str
    cost: str


def verdicts(summary: Summary) -> dict[str, Verdict]:
    """Compare every method with the baseline; return the verdicts by label.

    A method without a seed that the baseline has finished too is left out. P-values are corrected
    for the number of methods.
    """
    baseline = summary.methods[0]
    theirs = baseline.by_seed(_headline)
    if not theirs:
        return {}
    margin = TIE * sum(theirs.values()) / len(theirs)
    found = {
        method.label: compare_paired(method.by_seed(_headline), theirs, margin)
        for method in summary.methods[1:]
    }
    known = {label: verdict for label, verdict in found.items() if verdict is not None}
    return dict(zip(known, corrected(list(known.values())), strict=True))


def card(summary: Summary) -> Card | None:
    """Return the card, or None if no method has finished a seed that the baseline has finished."""
    found = verdicts(summary)
    if not found:
        return None
    by_label = {method.label: method for method in summary.methods}
    baseline = summary.methods[0]
    better = [label for label, verdict in found.items() if verdict.outcome == "better"]
    if better:
        best = min((by_label[label] for label in better), key=headline_loss)
        return Card(
            f"Train on {best.label}",
            _sure(summary, best.label, found[best.label], better),
            _saves(best, baseline),
            _costs(best, baseline),
        )
    return Card(f"Keep {baseline.label}", _unsure(summary, found), "", "")


def seeds_to_decide(verdict: Verdict) -> str:
    """Say how many seeds would decide an open comparison, or "" if it is decided."""
    if verdict.outcome != "open":
        return ""
    needed = verdict.seeds_needed
    if needed is None:
        return "one seed decides nothing"
    if needed > MOST_SEEDS:
        return f"more than {MOST_SEEDS:,} seeds would be needed"
    return f"about {max(needed, verdict.difference.pairs + 1)} seeds would decide"


def _sure(summary: Summary, label: str, verdict: Verdict, better: list[str]) -> str:
    found = verdict.difference
    others = [name for name in better if name != label]
    also = f" Also better than {summary.baseline}: {', '.join(others)}." if others else ""
    return (
        f"{signed(found.mean)} nats of {measure(summary)} against {summary.baseline}, 95 % interval "
        f"{interval(found)} over {found.pairs} paired seeds, p = {verdict.p_value:.2g}"
        f"{_corrections(verdict)}.{also}"
    )


def _corrections(verdict: Verdict) -> str:
    count = verdict.comparisons
    return f" after correction for {count} comparisons" if count > 1 else ""


def _unsure(summary: Summary, found: Mapping[str, Verdict]) -> str:
    """One sentence for the methods of each outcome."""
    by_outcome: dict[str, list[str]] = {}
    for label, verdict in found.items():
        by_outcome.setdefault(verdict.outcome, []).append(label)
    said = [f"No method is surely better than {summary.baseline}."]
    margin = number(next(iter(found.values())).margin)
    texts = {
        "tied": f"Tied with it within {margin} nats: {{}}.",
        "worse": "Surely worse: {}.",
    }
    said += [
        text.format(", ".join(by_outcome[outcome]))
        for outcome, text in texts.items()
        if outcome in by_outcome
    ]
    said += [
        f"{label} is open: {seeds_to_decide(found[label])}." for label in by_outcome.get("open", ())
    ]
    return " ".join(said)


def _saves(best: MethodView, baseline: MethodView) -> str:
    shares = shares_of_tokens(best, baseline)
    reached = [share for share in shares if share is not None]
    if not reached or len(reached) < len(shares):
        return (
            f"It reached {baseline.label}’s final validation loss in {len(reached)} of "
            f"{len(shares)} runs."
        )
    mean = sum(reached) / len(reached)
    return f"It reached {baseline.label}’s final validation loss after {mean:.0%} of its tokens."


def _costs(best: MethodView, baseline: MethodView) -> str:
    if best.proxies is None:
        return "The cost of the proxies behind its policy is unknown."
    ratio = best.cost.flops / baseline.cost.flops if baseline.cost.flops else 1.0
    said = f"A run takes {ratio:.2f} times the FLOPs of {baseline.label}’s"
    if best.proxies == Cost():
        return f"{said}; no proxies."
    return f"{said}, and {amount(best.proxies.flops)} FLOPs of proxies once."


def _headline(scores: Scores) -> float:
    return scores.headline
