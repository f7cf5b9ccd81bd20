"""The verdict card: what to train on, how sure that is, what it saves and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.trajectory import Cost
from cuvee.evaluation.verdicts import Verdict
from cuvee.report.summary import Summary
from cuvee.report.views import MethodView, Scores, break_even, shares_of_tokens, tokens_needed
from cuvee.report.words import (
    ENOUGH_SEEDS,
    amount,
    headline_loss,
    interval,
    measure,
    number,
    p_value,
    paired_seeds,
    seeds_to_decide,
    signed,
)


@dataclass(frozen=True)
class Card:
    """The conclusion of a report in short texts.

    `choice` names what to train on and `sure` how sure that is. `saves` and `cost` compare it with
    the baseline; they are "" if there is nothing to compare. `trust` has what else to know before
    one relies on it.
    """

    choice: str
    sure: str
    saves: str
    cost: str
    trust: tuple[str, ...] = ()
    best: str = ""
    """The method to train on, if it is not the baseline."""


def card(summary: Summary) -> Card | None:
    """Return the card, or None if no method has finished a seed that the baseline has finished.

    A method that something else steered for a while is not recommended.
    """
    found = summary.verdicts
    if not found:
        return None
    by_label = {method.label: method for method in summary.methods}
    baseline = summary.methods[0]
    better = [label for label, verdict in found.items() if verdict.outcome == "better"]
    credited = [label for label in better if not by_label[label].others]
    trust = _trust(summary, found, [label for label in better if label not in credited])
    if credited:
        best = min((by_label[label] for label in credited), key=headline_loss)
        return Card(
            f"Train on {best.label}",
            _sure(summary, best.label, found[best.label], credited),
            _saves(best, baseline),
            _costs(best, baseline),
            (*_beside(summary, best), *trust),
            best.label,
        )
    return Card(f"Keep {baseline.label}", _unsure(summary, found), "", "", trust)


def _headline(scores: Scores) -> float:
    return scores.headline


def _trust(
    summary: Summary, found: Mapping[str, Verdict], uncredited: Sequence[str]
) -> tuple[str, ...]:
    said = []
    pairs = min(verdict.seeds for verdict in found.values())
    if 1 < pairs < ENOUGH_SEEDS:
        said.append(
            f"{pairs} {'crossed' if summary.levels else 'paired'} seeds are few: a bootstrap interval of fewer than {ENOUGH_SEEDS} is "
            "too narrow, so this is a hint."
        )
    if summary.levels:
        said.append(
            "Seeds are crossed, so runs share initial weights, orders or draws. Intervals resample "
            "the seeds of each part, and p-values count the fewest seeds of a part."
        )
    elif any(view.run.config.get("part_seeds") for view in summary.runs):
        said.append(
            "Some runs have crossed seeds and share initial weights, orders or draws: intervals and "
            "p-values treat them as independent, and are too narrow."
        )
    for method in summary.methods:
        if note := steering_note(method):
            unnamed = method.label in uncredited
            said.append(f"{note} The method gets no credit for it." if unnamed else note)
    return tuple(said)


def _beside(summary: Summary, best: MethodView) -> tuple[str, ...]:
    """What the best method does to the domains that the objective leaves out, if it does."""

    def beside(scores: Scores) -> float | None:
        return scores.beside

    found = summary.difference(best, summary.methods[0], beside)
    if found is None:
        return ()
    spread = f" ({interval(found)})" if interval(found) else ""
    return (
        f"On the domains that the objective leaves out, {best.label} ends {signed(found.mean)} nats"
        f"{spread} from {summary.baseline}.",
    )


def steering_note(method: MethodView) -> str:
    """Say how often something else than the method's policy steered its runs, or ""."""
    steerings = [view.steering for view in method.scored if view.steering]
    planned = sum(one.planned for one in steerings)
    others = method.others | ({"its plan, not its agent,": planned} if planned else {})
    if not others:
        return ""
    decisions = sum(one.decisions for one in steerings)
    shares = [f"{who} steered {count / decisions:.0%}" for who, count in others.items()]
    alarms = sorted({name for one in steerings for name in one.alarms})
    why = f" (alarms: {', '.join(alarms)})" if alarms else ""
    return f"{method.label}: {' and '.join(shares)} of its intervals{why}."


def _sure(summary: Summary, label: str, verdict: Verdict, better: list[str]) -> str:
    found = verdict.difference
    others = [name for name in better if name != label]
    also = f" Also better than {summary.baseline}: {', '.join(others)}." if others else ""
    also += _next_best(summary, label)
    return (
        f"{signed(found.mean)} nats of {measure(summary)} against {summary.baseline}, 95 % interval "
        f"{interval(found)} over {paired_seeds(found.pairs, verdict.seeds)}, {p_value(verdict.p_value)}"
        f"{_corrections(verdict)}.{also}"
    )


def _next_best(summary: Summary, best: str) -> str:
    """How far the method with the second lowest loss is from the best, if it is not the baseline."""
    by_label = {method.label: method for method in summary.methods[1:] if method.finished}
    ours = by_label.pop(best)
    if not by_label:
        return ""
    second = min(by_label.values(), key=headline_loss)
    found = summary.difference(second, ours, _headline)
    if found is None:
        return ""
    spread = f" ({interval(found)})" if interval(found) else ""
    level = "" if found.excludes_zero else ", so the two may be equally good"
    return (
        f" The next best is {second.label}, {signed(found.mean)} nats from {best}{spread}{level}."
    )


def _corrections(verdict: Verdict) -> str:
    count = verdict.comparisons
    return f" after correction for {count} comparisons" if count > 1 else ""


def _unsure(summary: Summary, found: Mapping[str, Verdict]) -> str:
    """One sentence for the methods of each outcome."""
    by_outcome: dict[str, list[str]] = {}
    for label, verdict in found.items():
        by_outcome.setdefault(verdict.outcome, []).append(label)
    corrections = _corrections(next(iter(found.values())))
    said = [f"No method is surely better than {summary.baseline}{corrections}."]
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
    by_need: dict[str, list[str]] = {}
    for label in by_outcome.get("open", ()):
        by_need.setdefault(seeds_to_decide(found[label]), []).append(label)
    said += [f"Open: {', '.join(labels)}; {need}." for need, labels in by_need.items()]
    return " ".join(said)


def _saves(best: MethodView, baseline: MethodView) -> str:
    needed = tokens_needed(shares_of_tokens(best, baseline))
    goal = f"{baseline.label}’s final validation loss"
    if needed.typical is None:
        return f"It reached {goal} in {needed.reached} of {needed.runs} runs."
    said = f"It reached {goal} after {needed.typical:.0%} of its tokens"
    if needed.reached == needed.runs:
        return f"{said}{_on_average(needed.runs)}."
    return f"{said} in the median; {needed.runs - needed.reached} of {needed.runs} runs never did."


def _on_average(runs: int) -> str:
    return f", the mean of {runs} runs" if runs > 1 else ""


def _costs(best: MethodView, baseline: MethodView) -> str:
    if best.proxies is None:
        return "The cost of the proxies behind its policy is unknown."
    ratio = best.cost.flops / baseline.cost.flops if baseline.cost.flops else 1.0
    said = f"A run takes {ratio:.2f} times the FLOPs of {baseline.label}’s"
    lost = f" Interrupted attempts cost {amount(best.lost.flops)} more." if best.lost.flops else ""
    if best.proxies == Cost():
        return f"{said}; no proxies.{lost}"
    pays = break_even(best, baseline)
    back = f"; they pay from {amount(pays)} FLOPs a run on" if pays else "; they never pay"
    return f"{said}, and {amount(best.proxies.flops)} FLOPs of proxies once{back}.{lost}"
