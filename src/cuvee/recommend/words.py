"""A recommendation in words and columns, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cuvee.evaluation.statistics import Estimate
from cuvee.recommend.fits import LEVEL
from cuvee.recommend.recommend import Interval, Recommendation

_SHOWN = 12  # rows of a table in the terminal, and quarantined rows


def verdict(found: Recommendation) -> list[str]:
    """Return the number of stages, its reason, and the effect of the change as sentences."""
    choice, evidence = found.choice, found.surrogate.evidence
    if not choice.is_tied and choice.gained is not None:
        stages = (
            f"Phased: {len(choice.stages)} stages. Against the best single mixture they change the "
            "objective by "
        )
        sentences = [f"{stages}{between(choice.gained)}."]
    elif evidence.order is None:
        sentences = [
            "Tied: one mixture for the whole run. No run of the table changes its mixture, so the "
            "table cannot tell whether "
            "stages would help."
        ]
    elif not found.surrogate.order:
        sentences = [
            "Tied: one mixture for the whole run. Knowing the phases does not predict runs left "
            "out better than knowing their "
            "mean mixture: the squared error falls by "
            f"{between(evidence.order)}, in variances of the objective."
        ]
    elif choice.compared is not None:
        sentences = [
            "Tied: one mixture for the whole run. Order matters in this table, but one more stage "
            "is not surely better: it "
            f"changes the objective by {between(choice.compared)}."
        ]
    else:
        sentences = ["Tied: one mixture for the whole run, as asked."]
    return [*sentences, _change(found)]


def _change(found: Recommendation) -> str:
    present = found.request.present if isinstance(found.request.present, str) else "the present"
    certainty = (
        "surely better"
        if found.change.high is not None and found.change.high < 0
        else "not surely better"
    )
    return (
        f"Against {present} weights the plan changes the objective by {between(found.change)}: it "
        f"is {certainty}. "
        "Lower is better."
    )


def between(found: Estimate | Interval) -> str:
    """−0.031 (−0.040 to −0.022)"""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4g}"
    return f"{found.mean:+.4g} ({found.low:+.4g} to {found.high:+.4g})"


def evidence(found: Recommendation) -> list[str]:
    """Return sentences about the runs and the quality of the fits."""
    known = found.surrogate.evidence
    ranks = known.ranks
    by_fit = ", ".join(f"{name} {value:.3f}" for name, value in known.ranks_by_fit.items())
    noise = "measured on repeated runs" if known.noise_measured else "estimated, no run is repeated"
    lines = [
        f"{len(found.runs.names)} runs; rows set aside: {len(found.runs.bad)}.",
        f"Rank correlation on runs left out: {ranks.value:.3f} ({ranks.low:.3f} to "
        f"{ranks.high:.3f}); by fit: {by_fit}.",
        f"Regret@1: the run picked among runs left out is {known.regret:.4g} worse than the best "
        "of them; a random pick is "
        f"{known.regret_of_chance:.4g} worse.",
        f"{known.coverage:.0%} of the runs left out are inside their {LEVEL:.0%} interval.",
        f"Noise of one run, {noise}: "
        + ", ".join(f"{name} {value:.3g}" for name, value in list(known.noise.items())[:4])
        + (" …" if len(known.noise) > 4 else "."),
    ]
    return lines + [f"Note: {note}." for note in found.runs.notes]


def weights_table(found: Recommendation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, the largest change of share first."""
    plan = found.plan
    epochs = found.plan.epochs()
    stages = (
        ["weight"]
        if len(plan.stages) == 1
        else [f"{stage.start:.0%}–{stage.end:.0%}" for stage in plan.stages] + ["mean"]
    )
    columns = ["domain", "present", *stages, "change", *(["epochs"] if epochs else [])]
    rows = []
    order = sorted(plan.domains, key=lambda name: -abs(plan.mean[name] - found.present[name]))
    for name in order:
        shares = [stage.mixture[name] for stage in plan.stages]
        shares += [plan.mean[name]] if len(shares) > 1 else []
        change = plan.mean[name] - found.present[name]
        read = [f"{epochs[name]:.2f}" if name in epochs else "unknown"] if epochs else []
        rows.append(
            [
                name,
                *(f"{share:.2%}" for share in (found.present[name], *shares)),
                f"{change:+.2%}",
                *read,
            ]
        )
    return columns, rows


def metrics_table(found: Recommendation) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: predictions for the plan and the present mixture, by metric.

    Each row also has an interval and the rank correlation of the fits.
    """
    ranks = found.surrogate.evidence.ranks_by_metric
    columns = ["metric", "present", "plan", f"{LEVEL:.0%} interval", "rank correlation"]
    rows = [_row("objective", found.present_predicted.objective, found.predicted.objective, "")]
    for name, predicted in found.predicted.metrics.items():
        rows.append(
            _row(name, found.present_predicted.metrics[name], predicted, f"{ranks[name]:.3f}")
        )
    return columns, rows


def _row(name: str, present: Interval, plan: Interval, rank: str) -> list[str]:
    interval = f"{plan.low:.4g} to {plan.high:.4g}"
    return [name, f"{present.mean:.4g}", f"{plan.mean:.4g}", interval, rank]


def front_lines(found: Recommendation) -> list[str]:
    """The Pareto front, a line for each plan."""
    if found.request.pareto is None:
        return []
    first, second = found.request.pareto
    return [f"Pareto front of {first} and {second} (one mixture each):"] + [
        f"  {first} {between_plain(predicted.metrics[first])}, {second} "
        f"{between_plain(predicted.metrics[second])}: " + largest(plan.mean.as_dict())
        for plan, predicted in found.front
    ]


def between_plain(found: Interval) -> str:
    return f"{found.mean:.4g} ({found.low:.4g} to {found.high:.4g})"


def largest(shares: Mapping[str, float], count: int = 4) -> str:
    """The largest shares in a phrase."""
    top = sorted(shares.items(), key=lambda pair: -pair[1])[:count]
    return ", ".join(f"{name} {share:.0%}" for name, share in top)


def text(found: Recommendation) -> str:
    """Return the whole recommendation as text for a terminal."""
    parts = [
        "\n".join(verdict(found)),
        _columns(*weights_table(found)),
        _columns(*metrics_table(found)),
    ]
    parts.append("\n".join(evidence(found)))
    if lines := front_lines(found):
        parts.append("\n".join(lines))
    if found.mixmin is not None:
        mixture, predicted = found.mixmin
        parts.append(
            f"MixMin, from model outputs alone: {largest(mixture.as_dict())}; predicted objective "
            f"{between_plain(predicted.objective)}"
        )
    if found.runs.bad:
        bad = [f"  {row.file}:{row.line}: {row.reason}" for row in found.runs.bad[:_SHOWN]]
        parts.append("\n".join(["Rows set aside:", *bad]))
    return "\n\n".join(parts)


def _columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [columns, *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(columns))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in table
    )
