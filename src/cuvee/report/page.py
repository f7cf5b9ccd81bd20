"""The report about any number of runs, for the person who must decide which method to train with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cuvee.core.domain import Domain, natural_K
from cuvee.core.files import write_atomic
from cuvee.core.protocols import Metrics
from cuvee.core.state import digest
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.evaluation.claims import Answered
from cuvee.report import panels, tables, words
from cuvee.report.answers import Evaluations, answer_table
from cuvee.report.document import fill
from cuvee.report.figures.colours import OTHER, focused_colours
from cuvee.report.figures.folding import MOST_DOMAINS, folded
from cuvee.report.learned.section import sections
from cuvee.report.steering import Steering
from cuvee.report.summary import MOST_METHODS, Summary, summarise
from cuvee.report.verdict import card, steering_note

# Keys in which fairly compared runs may differ. `evaluation` is among them: it trains nothing.
_MAY_DIFFER = {
    "name",
    "method",
    "policy",
    "policy_sha256",
    "proxies",
    "seed",
    "part_seeds",
    "evaluation",
}


def write_report(
    runs: Sequence[Run] | Run | Trajectory,
    path: Path | str,
    title: str = "Comparison of mixtures",
    *,
    baseline: str | None = None,
    statuses: Mapping[str, str] | None = None,
    bytes_per_token: Mapping[str, float] | None = None,
    facts: Mapping[str, str] | None = None,
    claims: Sequence[Answered] = (),
    evaluations: Evaluations | None = None,
    steered: Mapping[str, Steering] | None = None,
    metrics: Mapping[str, Sequence[Metrics]] | None = None,
) -> Path:
    """Write the page about runs, or about one run or trajectory, and return its path.

    >>> import tempfile
    >>> from cuvee.testing.runs import example_run
    >>> runs = [example_run(method, seed) for method in ("natural", "odm") for seed in (0, 1)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(runs, f"{folder}/report.html").name
    'report.html'

    `baseline` is the label of the method that the others are compared with (default: natural, else
    the first). `statuses` says by run id why unfinished runs did not finish ("failed: the loss is
    not finite"). `bytes_per_token` by domain gives bits per byte if the runs' configurations do not
    have it. `claims` were registered for this comparison. `evaluations` are results of
    `cuvee evaluate` by run id. `steered` says by run id who steered it. `metrics` are what the
    policies logged by run id, for the part about what they learned. `facts` are further
    lines of "what was compared", such as the hardware. Raises `ConfigError` as `summarise` does.
    """
    summary = summarise(_runs(runs), baseline, statuses, bytes_per_token, steered)
    page = render(summary, title, facts or {}, claims, evaluations or {}, metrics or {})
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page)
    return target


def _runs(given: Sequence[Run] | Run | Trajectory) -> Sequence[Run]:
    if isinstance(given, Trajectory):
        tokens = sum(int(signals.tokens_K.sum()) for signals in given.signals)
        given = Run("run", 0, {"method": {"name": "run", "label": "run"}}, given, Cost(tokens))
    return [given] if isinstance(given, Run) else given


def render(
    summary: Summary,
    title: str,
    facts: Mapping[str, str],
    claims: Sequence[Answered],
    evaluations: Evaluations,
    metrics: Mapping[str, Sequence[Metrics]],
) -> str:
    """Return the page as text."""
    few = folded(summary)
    domains = few.runs[0].run.trajectory.domains
    trade = panels.trade_panel(summary)
    figures = {
        "intervals": panels.interval_panels(summary),
        "mixtures": panels.mixture_panels(few),
        "epochs": panels.epochs_panels(few),
        "trades": [trade] if trade else [],
        "curves": panels.curve_panels(summary),
        "by_domain": panels.domain_panels(few),
    }
    learned = sections(few, metrics)
    described = _facts(summary) | dict(facts)
    conclusion = card(summary)
    said = words.headline(summary)
    if conclusion and said[0].startswith(f"{conclusion.best} ended"):
        said = said[1:]  # the card says it already
    return fill(
        "page.html",
        title,
        described,
        [
            *(panel for group in figures.values() for panel in group),
            *(one.panel for one in learned),
        ],
        {"rest": _rest(domains, few.top), "other": OTHER},
        summary=summary,
        card=conclusion,
        claims=[words.claim_sentence(one) for one in claims],
        headline=said,
        captions=words.captions(summary),
        warnings=_warnings(summary),
        interval_tabs=[(panel.id, panel.heading) for panel in figures["intervals"]],
        notes=[] if conclusion else _notes(summary),
        final=tables.final_table(summary),
        paired=tables.paired_table(summary),
        spread=tables.spread_table(summary),
        domains=tables.domain_table(few),
        learned=learned,
        answers=answer_table(summary, evaluations),
        runs=tables.run_table(summary),
        bits=any(
            scores.bits_per_byte is not None for view in summary.runs for scores in view.scores_P
        ),
        run_domains=domains,
        natural=natural_K(domains).tolist(),
        colours=focused_colours(domains, few.top),
        configs=_configs(summary),
        **figures,
    )


def _rest(domains: Sequence[Domain], top: frozenset[str]) -> dict[str, list[str]]:
    """The domains without a colour of their own, by the name under which figures sum them."""
    found: dict[str, list[str]] = {}
    for domain in domains:
        if domain.name not in top:
            found.setdefault(domain.role, []).append(domain.name)
    roles = len({domain.role for domain in domains}) == 2
    return {
        f"{len(names)} other {role + ' ' if roles else ''}domains": names
        for role, names in found.items()
    }


def _notes(summary: Summary) -> list[str]:
    """Who else steered, for a report without a verdict card."""
    return [note for method in summary.methods if (note := steering_note(method))]


def _facts(summary: Summary) -> dict[str, str]:
    """The lines of "what was compared", from the runs' configurations."""
    config = summary.runs[0].run.config
    names = [
        method.label + (" (baseline)" if method.label == summary.baseline else "")
        for method in summary.shown
    ]
    more = len(summary.methods) - len(names)
    names += [f"{more} more"] if more else []
    sources = sum(not domain.is_target for domain in summary.runs[0].run.trajectory.domains)
    targets = len(summary.runs[0].run.trajectory.domains) - sources
    facts = {
        "Methods": ", ".join(names if len(names) > 1 else [summary.methods[0].label]),
        "Seeds": ", ".join(map(str, summary.seeds)),
        "Domains": f"{sources} source, {targets} target"
        if sources and targets
        else str(sources + targets),
        "Tokens a run": words.amount(summary.longest),
    }
    if model := config.get("model"):
        facts["Model"] = (
            f"continued from {model}" if "model_sha256" in config else _model_name(model)
        )
    if corpus := config.get("corpus"):
        facts["Corpus"] = f"fingerprint {str(corpus)[:12]}"
    return facts


def _model_name(model: Any) -> str:
    """A preset's name, or the fields of a configuration."""
    if isinstance(model, Mapping):
        return ", ".join(f"{key} {value}" for key, value in model.items())
    return str(model)


def _warnings(summary: Summary) -> list[str]:
    found = []
    if more := len(summary.methods) - len(summary.shown):
        found.append(
            f"Figures show {summary.baseline} and the {MOST_METHODS - 1} methods with the lowest "
            f"loss. The tables have the other {more} too."
        )
    if len(summary.ranked) > MOST_DOMAINS:
        found.append(
            f"Figures and tables by domain have the {MOST_DOMAINS} domains with the largest shares "
            f"of {len(summary.ranked):,}, and the others of a role as one, with their mean loss. "
            "Scores and verdicts use all."
        )
    open_runs = [view for view in summary.runs if not view.finished]
    if open_runs:
        states = "; ".join(f"{view.run.id}: {view.status}" for view in open_runs)
        found.append(
            f"{len(open_runs)} of {len(summary.runs)} runs did not finish and are not part of any "
            f"comparison. {states}."
        )
    if differing := _differing(summary):
        found.append(
            f"The runs differ in more than method and seed ({', '.join(differing)}): the "
            "comparison is not only between mixtures."
        )
    if summary.unmeasured:
        found.append(
            f"Without validation loss, and so not part of means: {', '.join(summary.unmeasured)}."
        )
    if note := words.fallback(summary):
        found.append(note)
    budgets = {int(view.tokens_T1[-1]) for view in summary.runs if view.finished}
    if budgets and max(budgets) > 1.02 * min(budgets):
        found.append(
            f"The runs did not train on equally many tokens ({words.amount(min(budgets))} to "
            f"{words.amount(max(budgets))}): losses of unequal budgets are not comparable."
        )
    return found


def _differing(summary: Summary) -> list[str]:
    """Configuration keys that differ between runs although a fair comparison keeps them equal."""
    configs = [view.run.config for view in summary.runs]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _MAY_DIFFER)
    return [
        key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)
    ]


def _without_state(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the digest of its policy's state: networks are no reading."""
    policy = config.get("policy")
    if not isinstance(policy, Mapping) or "state" not in policy:
        return dict(config)
    return {**config, "policy": {**policy, "state": f"sha256 {digest(policy['state'])}"}}


def _configs(summary: Summary) -> list[dict[str, str]]:
    """The stored configuration of the first run of each method in the figures."""
    return [
        {
            "name": method.label,
            "text": json.dumps(
                _without_state(method.runs[0].run.config), indent=2, ensure_ascii=False, default=str
            ),
        }
        for method in summary.shown
    ]
