"""The report: one self-contained HTML file that makes no network requests.

Text passes through an autoescaping template. Data for scripts are in a JSON block with `<`, `>` and
`&` escaped. A content security policy lets the browser run only scripts whose hashes are in the
page.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cuvee import __version__
from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Run
from cuvee.evaluation.claims import Answered
from cuvee.report import tables
from cuvee.report.answers import Evaluations, answer_table
from cuvee.report.colours import DARK, METHODS, domain_colours
from cuvee.report.figures import curve_figure, domain_figure, mixture_figure, trade_figure
from cuvee.report.summary import Summary, summarise
from cuvee.report.verdict import card
from cuvee.report.words import amount, claim_sentence, fallback, final_loss, headline, number

# Keys in which fairly compared runs may differ. `evaluation` is among them: it trains nothing.
_MAY_DIFFER = {
    "name",
    "method",
    "policy",
    "policy_sha256",
    "proxies",
    "seed",
    "evaluation",
}


@dataclass(frozen=True)
class Panel:
    """A figure with its place in the page. Screen readers read `words` instead of the figure."""

    id: str
    heading: str
    words: str
    figure: go.Figure
    target: bool = False

    @property
    def height(self) -> int:
        return int(self.figure.layout.height)


def write_report(
    runs: Sequence[Run],
    path: Path | str,
    title: str = "Comparison of mixtures",
    *,
    baseline: str | None = None,
    statuses: Mapping[str, str] | None = None,
    bytes_per_token: Mapping[str, float] | None = None,
    facts: Mapping[str, str] | None = None,
    claims: Sequence[Answered] = (),
    evaluations: Evaluations | None = None,
) -> Path:
    """Write the page and return its path.

    `baseline` is the label of the method that the others are compared with (default: natural, else
    the first). `statuses` says by run id why unfinished runs did not finish ("failed: the loss is
    not finite"). `bytes_per_token` by domain gives bits per byte if the runs' configurations do not
    have it. `claims` were registered for this comparison. `evaluations` are results of
    `cuvee evaluate` by run id. `facts` are further lines of "what was compared", such as the
    hardware. Raises `ConfigError` as `summarise` does.
    """
    summary = summarise(runs, baseline, statuses, bytes_per_token)
    page = render(summary, title, facts or {}, claims, evaluations or {})
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page)
    return target


def render(
    summary: Summary,
    title: str,
    facts: Mapping[str, str],
    claims: Sequence[Answered],
    evaluations: Evaluations,
) -> str:
    """Return the page as text."""
    mixtures = _mixtures(summary)
    curves = _curves(summary)
    by_domain = _by_domain(summary)
    trade = _trade(summary)
    domains = summary.runs[0].run.trajectory.domains
    return fill(
        "page.html",
        title,
        _facts(summary) | dict(facts),
        [*([trade] if trade else []), *mixtures, *curves, *by_domain],
        summary=summary,
        card=card(summary),
        claims=[claim_sentence(one) for one in claims],
        headline=headline(summary),
        final_loss=final_loss(summary),
        warnings=_warnings(summary),
        final=tables.final_table(summary),
        paired=tables.paired_table(summary),
        domains=tables.domain_table(summary),
        answers=answer_table(summary, evaluations),
        runs=tables.run_table(summary),
        bits=any(
            scores.bits_per_byte is not None for view in summary.runs for scores in view.scores_P
        ),
        trade=trade,
        mixtures=mixtures,
        curves=curves,
        by_domain=by_domain,
        run_domains=domains,
        colours=domain_colours(domains),
        configs=_configs(summary),
    )


def fill(
    template: str, title: str, facts: Mapping[str, str], panels: Sequence[Panel], **content: Any
) -> str:
    """Return a page as text, from `template`, which extends layout.html, and its `content`.

    `panels` are all panels whose figures the page shows.
    """
    scripts = [
        get_plotlyjs().replace("</script", "<\\/script"),
        (files("cuvee.report") / "assets" / "page.js").read_text(),
    ]
    figures = {panel.id: json.loads(panel.figure.to_json()) for panel in panels}
    data = {"figures": figures, "dark": DARK}
    return fill_with(("cuvee.report",), template, title, facts, scripts, data, **content)


def fill_with(
    rooms: Sequence[str],
    template: str,
    title: str,
    facts: Mapping[str, str],
    scripts: Sequence[str],
    data: Any,
    style: str = "",
    **content: Any,
) -> str:
    """Return a page whose template is in the assets of the first of `rooms` that has it.

    The browser runs only `scripts`. They find `data` as JSON in the element with the id `data`.
    `style` follows the common style sheet.
    """
    assets = files("cuvee.report") / "assets"
    now = datetime.datetime.now(datetime.UTC)
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room, "assets") for room in rooms]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(
        title=title,
        version=__version__,
        written=f"{now.day} {now:%B %Y, %H:%M} UTC",
        facts=facts,
        style=Markup(_style((assets / "page.css").read_text()) + style),
        script_hashes=Markup(" ".join(_script_hash(script) for script in scripts)),
        data_json=Markup(_script_json(data)),
        scripts=[Markup(script) for script in scripts],
        **content,
    )


def _script_json(value: Any) -> str:
    """Return JSON that a browser cannot interpret as markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _style(css: str) -> str:
    light = " ".join(
        f".key.m{index} {{ border-color: {colour}; }}" for index, (colour, _) in enumerate(METHODS)
    )
    dark = " ".join(
        f".key.m{index} {{ border-color: {colour}; }}" for index, (_, colour) in enumerate(METHODS)
    )
    keys = f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}"
    return css.replace("{{ method_keys }}", keys)


def _facts(summary: Summary) -> dict[str, str]:
    """The lines of "what was compared", from the runs' configurations."""
    config = summary.runs[0].run.config
    names = [
        method.label + (" (baseline)" if method.label == summary.baseline else "")
        for method in summary.methods
    ]
    sources = sum(not domain.is_target for domain in summary.runs[0].run.trajectory.domains)
    targets = len(summary.runs[0].run.trajectory.domains) - sources
    facts = {
        "Methods": ", ".join(names if len(names) > 1 else [summary.methods[0].label]),
        "Seeds": ", ".join(map(str, summary.seeds)),
        "Domains": f"{sources} source, {targets} target"
        if sources and targets
        else str(sources + targets),
        "Tokens a run": amount(summary.longest),
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
    if note := fallback(summary):
        found.append(note)
    budgets = {int(view.tokens_T1[-1]) for view in summary.runs if view.finished}
    if budgets and max(budgets) > 1.02 * min(budgets):
        found.append(
            f"The runs did not train on equally many tokens ({amount(min(budgets))} to "
            f"{amount(max(budgets))}): losses of unequal budgets are not comparable."
        )
    return found


def _differing(summary: Summary) -> list[str]:
    """Configuration keys that differ between runs although a fair comparison keeps them equal."""
    configs = [view.run.config for view in summary.runs]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _MAY_DIFFER)
    return [
        key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)
    ]


def _configs(summary: Summary) -> list[dict[str, str]]:
    """The stored configuration of the first run of each method."""
    return [
        {
            "name": method.label,
            "text": json.dumps(
                dict(method.runs[0].run.config), indent=2, ensure_ascii=False, default=str
            ),
        }
        for method in summary.methods
    ]


def _trade(summary: Summary) -> Panel | None:
    if not summary.has_roles or not any(method.scored for method in summary.methods):
        return None
    return Panel(
        "plot-trade",
        "Target loss against source loss",
        "Target loss against source loss, by method",
        trade_figure(summary),
    )


def _mixtures(summary: Summary) -> list[Panel]:
    panels = []
    for index, method in enumerate(summary.methods):
        ran = [view for view in method.runs if len(view.run.trajectory)]
        if ran:
            heading = method.label + (f", mean of {len(ran)} seeds" if len(ran) > 1 else "")
            last = ran[0].run.trajectory.last_mixture
            assert last is not None
            top = sorted(last.as_dict().items(), key=lambda pair: -pair[1])[:3]
            words = f"Mixture of {method.label} over time; at the end " + ", ".join(
                f"{n} {w:.0%}" for n, w in top
            )
            panels.append(
                Panel(f"plot-mixture-{index}", heading, words, mixture_figure(summary, method))
            )
    return panels


def _curves(summary: Summary) -> list[Panel]:
    if not summary.domains:
        return []
    headings = {"Mean": "All domains", "Source": "Source domains", "Target": "Target domains"}
    panels = []
    for name, value in tables.measures(summary):
        if name in headings:
            ends = [
                f"{method.label} {number(method.validated_mean(value))}"
                for method in summary.methods
            ]
            words = (
                f"Validation loss over tokens, {headings[name].lower()}; at the end "
                + ", ".join(ends)
            )
            panels.append(
                Panel(
                    f"plot-loss-{name.lower()}", headings[name], words, curve_figure(summary, value)
                )
            )
    return panels


def _by_domain(summary: Summary) -> list[Panel]:
    panels = []
    order = sorted(range(len(summary.domains)), key=lambda k: not summary.domains[k].is_target)
    for k in order:
        domain = summary.domains[k]
        words = (
            f"Validation loss on {domain.name} over tokens, by method; "
            "the table below has the final figures"
        )
        panels.append(
            Panel(
                f"plot-domain-{k}", domain.name, words, domain_figure(summary, k), domain.is_target
            )
        )
    return panels
