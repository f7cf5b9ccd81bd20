"""Figures as text, and conclusions that the data support. The text is plain; pages escape it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace

from cuvee.core.trajectory import Cost
from cuvee.evaluation.claims import Answered
from cuvee.evaluation.statistics import Estimate
from cuvee.evaluation.verdicts import MOST_SEEDS, Verdict
from cuvee.report.summary import MANY_SEEDS, Measure, Summary
from cuvee.report.views import MethodView, Scores

ENOUGH_SEEDS = 5
"""The number of seeds below which a difference is called a hint, not a result."""

ABSENT = "–"
_MEASURES: dict[Measure, str] = {
    "Mean": "mean {}",
    "Source": "source {}",
    "Target": "target {}",
    "Source/target average": "average of source and target {}",
    "Objective": "{} weighted by the objective",
}


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with a true minus sign; absent values as "–", infinite ones as "∞"."""
    if value is None:
        return ABSENT
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "∞"


def signed(value: float | None, digits: int = 3) -> str:
    """Format a number with its sign."""
    if value is None:
        return ABSENT
    return number(value, digits) if value < 0 else f"+{number(value, digits)}"


def amount(value: float) -> str:
    """Format a number with a metric prefix: 1234567 → 1.23 M."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format seconds as "5.2 s", "3 min 07 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 10**6:  # a store that others write may have any number
        return f"{seconds / 3600:.0e} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def p_value(value: float | None) -> str:
    """Format a p-value as "p = 0.012" or "p < 0.001", or "" if there is none."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """Format a confidence interval, or "" if there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def paired_seeds(pairs: int, independent: int) -> str:
    """Say over what a difference was taken: paired seeds, or paired runs of crossed seeds."""
    if independent < pairs:
        return f"{pairs} paired runs of {independent} crossed seeds"
    return f"{pairs} paired seed{'s' if pairs != 1 else ''}"


def headline(summary: Summary) -> list[str]:
    """One to three sentences: which method ended lowest, by how much, and how sure that is."""
    ranked = sorted((method for method in summary.methods if method.finished), key=headline_loss)
    if not ranked:
        return [
            "No run has finished yet, so there is nothing to compare. "
            "What was measured so far is below."
        ]
    best = ranked[0]
    if len(ranked) == 1:
        alone = len(summary.methods) == 1
        return [
            f"{best.label} ended at {number(headline_loss(best))} nats per token ({measure(summary)}), "
            f"perplexity {number(best.mean(lambda scores: scores.perplexity), 1)}. "
            + (
                "Nothing was compared with it."
                if alone
                else "No other method has finished, so nothing is compared yet."
            )
        ]
    if max(len(method.finished) for method in ranked) == 1:
        return [_one_seed(ranked, measure(summary)), *_extremes(summary, ranked)]
    return [_several_seeds(summary, ranked), *_extremes(summary, ranked)]


def final_loss(summary: Summary) -> str:
    """Return "test loss" or "validation loss": what the final losses of the summary are."""
    return "test loss" if summary.split == "test" else "validation loss"


def measure(summary: Summary) -> str:
    """Return the name of the loss by which methods are ranked."""
    return _MEASURES[summary.ranked_by].format(final_loss(summary))


def fallback(summary: Summary) -> str | None:
    """Say why final losses are validation losses although some runs have a test loss, else None."""
    finished = [view for view in summary.runs if view.finished]
    lacking = [view for view in finished if view.untested]
    if not lacking or all(len(view.untested) == len(view.domains) for view in finished):
        return None
    names = dict.fromkeys(name for view in lacking for name in view.untested)
    return (
        "Final losses are validation losses, because some runs have no test loss of some domains. "
        f"Runs: {', '.join(view.run.id for view in lacking)}. Domains: {', '.join(names)}."
    )


def captions(summary: Summary) -> dict[str, str]:
    """What the figures and tables show, for the seeds and methods that there are."""
    base = summary.baseline
    loss = final_loss(summary)
    counts = _pairs(summary)
    several = max((len(method.runs) for method in summary.methods), default=1) > 1
    means = ", means over seeds" if several else ""
    bold = " The lowest of each column is set in bold." if len(summary.methods) > 1 else ""
    weighted = summary.ranked_by == "Objective"
    return {
        "intervals": f"Differences in {loss}: left of {base} is better. "
        + _interval_words(summary, summary.has_roles or weighted),
        "mixtures": "The share of each batch that came from each domain" + means + ". "
        "The narrow column at the left has the natural shares." + _taken(summary),
        "epochs": "How often each domain has been read: its tokens so far over its tokens. "
        "From the dotted line on, text is repeated.",
        "curves": "Mean over domains, over training tokens. Domains have equal weights"
        + (", but in the last figure those of the objective." if weighted else ".")
        + _seed_lines(summary),
        "by_domain": "Validation loss over training tokens" + means + ".",
        "final": f"{loss.capitalize()} in nats per token at the end, and what one run cost, "
        f"proxies included{means}. {_below(summary)}{bold}",
        "spread": "Where the spread over seeds comes from: the standard deviation of the final "
        f"{loss}, and the share of its variance that each part of a run carries. Rows with Δ are "
        f"about the difference to {base}.",
        "paired": _paired_caption(base, loss, counts) + _proxies(summary),
        "domains": _domain_caption(base, loss, counts),
    }


def _seed_lines(summary: Summary) -> str:
    """Say what lines and bands show, for the numbers of seeds that there are."""
    counts = [sum(bool(len(view.tokens_P)) for view in one.runs) for one in summary.shown]
    said = ""
    if any(1 < count <= MANY_SEEDS for count in counts):
        said += " Thin lines are single seeds, strong lines their mean."
    if max(counts, default=0) > MANY_SEEDS:
        said += f" Of more than {MANY_SEEDS} seeds, a band shows the range and a line the mean."
    return said


def _below(summary: Summary) -> str:
    """Say what stands below the losses of the table of results."""
    counts = {len(method.scored) for method in summary.methods if method.scored}
    change = "the change in validation loss since before training"
    if not counts or max(counts) == 1:
        return f"Below each loss: {change}."
    alone = f"; with one run, {change}" if min(counts) == 1 else ""
    return f"Below each loss: the range over seeds{alone}."


def _taken(summary: Summary) -> str:
    """Explain the marks of intervals that something else than the policy decided, if there are any."""
    if not any(view.steering and view.steering.taken for view in summary.runs):
        return ""
    return (
        " Triangles at the top are intervals in which the guard’s fallback, an operator or the like "
        "chose the mixture instead of the method."
    )


def _pairs(summary: Summary) -> list[int]:
    """The number of pairs of each method with the baseline, without methods of none."""
    theirs = summary.methods[0].by_seed(_headline)
    shared = [len(theirs.keys() & one.by_seed(_headline).keys()) for one in summary.methods[1:]]
    return [count for count in shared if count]


def _interval_words(summary: Summary, tabs: bool) -> str:
    counts = _pairs(summary)
    if not counts or max(counts) == 1:
        return "With one seed there is no interval, and no difference is a result."
    low = min(counts)
    high = max(counts)
    seeds = f"{low} to {high} paired seeds" if low < high else f"{high} paired seeds"
    if summary.levels:
        seeds = paired_seeds(high, summary.independent(high))
    said = (
        f"Bars are 95 % bootstrap intervals over {seeds}; a filled mark’s interval excludes zero. "
    )
    said += "In the first of these figures, the" if tabs else "The"
    said += " shaded band is what counts as a tie."
    if len(counts) > 1:
        said += f" A verdict also needs a t-test that is corrected for {len(counts)} methods."
    if high <= 8:
        said += f" Strokes are single {'runs' if summary.levels else 'seeds'}."
    if summary.independent(low) < ENOUGH_SEEDS:
        said += f" Intervals of fewer than {ENOUGH_SEEDS} seeds are too narrow: they are hints."
    return said


def _paired_caption(base: str, loss: str, counts: Sequence[int]) -> str:
    start = f"Difference in final {loss} to {base}, paired by seed. Below zero is better."
    if not counts or max(counts) == 1:
        decided = "With one seed there is no interval, and every verdict is “open”."
    else:
        corrected = ", corrected for the number of methods (Holm)," if len(counts) > 1 else ""
        decided = (
            "Intervals are 95 % bootstrap intervals over seeds. The verdict is “better” or “worse” "
            f"if the interval excludes zero and a paired t-test{corrected} agrees; “tied” if the "
            "two surely differ by less than 0.25 % of the baseline’s loss; else “open”."
        )
    return (
        f"{start} {decided} “Tokens to the baseline’s end” is the share of the baseline’s token "
        "budget after which a method reached the baseline’s final validation loss."
    )


def _proxies(summary: Summary) -> str:
    """Explain the column about proxies, if there is one."""
    if all(method.proxies == Cost() for method in summary.methods[1:]):
        return ""
    return (
        " “Proxies pay from” is the size of the baseline’s run from which a method saves more FLOPs "
        "than its proxies cost."
    )


def _domain_caption(base: str, loss: str, counts: Sequence[int]) -> str:
    shading = ""
    if counts and max(counts) > 1:
        shading = (
            f", shaded by its distance from {base} where the 95 % interval of the paired "
            "difference excludes zero: blue is lower, orange is higher (from 0.01, 0.05 and 0.2 "
            "nats)"
        )
    return (
        f"Final {loss} by domain{shading}. Below it, the share of all training tokens that came "
        "from the domain."
    )


def headline_loss(method: MethodView) -> float:
    """Return the mean final loss by which methods are ranked."""
    loss = method.mean(lambda scores: scores.headline)
    assert loss is not None, "a finished run has scores"
    return loss


def _one_seed(ranked: list[MethodView], loss: str) -> str:
    order = ", ".join(f"{method.label} {number(headline_loss(method))}" for method in ranked)
    return (
        f"In one run of each method the {loss} ended at: {order}. One seed cannot distinguish a "
        "better method from a lucky run, so this is an observation, not a result."
    )


def _several_seeds(summary: Summary, ranked: list[MethodView]) -> str:
    best = ranked[0]
    others = [method for method in ranked if method.label == summary.baseline]
    rival = others[0] if others and best.label != summary.baseline else ranked[1]
    what = "the baseline " if rival.label == summary.baseline else ""
    difference = summary.difference(best, rival, _headline)
    start = (
        f"{best.label} ended with the lowest {measure(summary)}, {number(headline_loss(best))} "
        "nats per token"
    )
    if difference is None:
        return (
            f"{start}, but it shares no seed with {what}{rival.label}, so the two cannot be paired."
        )
    against = f"{start}: {signed(difference.mean)} against {what}{rival.label}"
    if difference.low is None:
        return (
            f"{against} on the only seed that both have finished. One pair cannot distinguish a "
            "better method from a lucky run."
        )
    spread = (
        f"{difference.level:.0%} interval {interval(difference)} "
        f"over {paired_seeds(difference.pairs, summary.independent(difference.pairs))}"
    )
    if not difference.excludes_zero:
        return f"{against} ({spread}). The interval includes zero: the two may be equally good."
    if summary.independent(difference.pairs) < ENOUGH_SEEDS:
        return (
            f"{against} ({spread}). With fewer than {ENOUGH_SEEDS} seeds the interval is too "
            "narrow: this is only a hint."
        )
    return f"{against} ({spread})."


def _headline(scores: Scores) -> float:
    return scores.headline


def _extremes(summary: Summary, ranked: list[MethodView]) -> list[str]:
    """The methods with the lowest target and source loss, if the corpus has both roles."""
    if not summary.has_roles:
        return []
    kept = min(ranked, key=lambda method: method.mean(lambda scores: scores.source) or math.inf)
    learned = min(ranked, key=lambda method: method.mean(lambda scores: scores.target) or math.inf)
    if kept is learned:
        return [
            f"{kept.label} had the lowest {final_loss(summary)} on both the target and the source "
            f"domains ({_both(kept)})."
        ]
    return [
        f"The lowest {final_loss(summary)} on the target domains was {learned.label}’s "
        f"({_both(learned)}), the lowest on the source domains {kept.label}’s ({_both(kept)})."
    ]


def _both(method: MethodView) -> str:
    target, source = (
        method.mean(lambda scores: scores.target),
        method.mean(lambda scores: scores.source),
    )
    return f"target {number(target)}, source {number(source)}"


def seeds_to_decide(verdict: Verdict) -> str:
    """Say how many seeds would decide an open comparison, or "" if it is decided."""
    if verdict.outcome != "open":
        return ""
    needed = verdict.seeds_needed
    if needed is None:
        return "one seed decides nothing"
    if needed > MOST_SEEDS:
        return f"more than {MOST_SEEDS:,} seeds would be needed"
    crossed = " of each part" if verdict.seeds < verdict.difference.pairs else ""
    return f"about {max(needed, verdict.seeds + 1)} seeds{crossed} would decide"


def claim_sentence(one: Answered) -> str:
    """Say whether a claim holds, by which figures, and whether it was made before the runs."""
    others = (
        ""
        if one.credited
        else f" Not only the policy of {one.claim.left} steered its runs, so it gets no credit."
    )
    return f"{one.claim}: {one.answer}. {_evidence(one)}{others} {_made(one)}"


def _evidence(one: Answered) -> str:
    verdict = one.verdict
    if verdict is None:
        return "The two share no finished seed."
    mean = verdict.difference.mean - one.claim.by
    if verdict.difference.low is None or verdict.p_value is None:
        return f"{signed(mean)} nats on one seed, which decides nothing."
    shifted = replace(
        verdict.difference,
        low=verdict.difference.low - one.claim.by,
        high=(verdict.difference.high or 0.0) - one.claim.by,
    )
    said = (
        f"{signed(mean)} nats ({interval(shifted)}) over "
        f"{paired_seeds(shifted.pairs, verdict.seeds)}, "
        f"{p_value(verdict.p_value)}"
    )
    if verdict.comparisons > 1:
        said += f" after correction for {verdict.comparisons} claims"
    need = seeds_to_decide(verdict)
    return f"{said}; {need}." if need else f"{said}."


def _made(one: Answered) -> str:
    when = _moment(one.registered)
    if not one.done:
        return f"Registered before the runs, {when}."
    return f"Registered when {one.done} of {one.total} runs were done, {when}."


def _moment(text: str) -> str:
    """Return a time as a reader writes it; other text as it is."""
    try:
        at = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        return text
    return f"{at.day} {at:%B %Y, %H:%M} UTC"
