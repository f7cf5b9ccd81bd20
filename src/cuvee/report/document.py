"""Renders pages: one self-contained HTML file each, which makes no network requests.

Text passes through an autoescaping template. Data for scripts are in a JSON block with `<`, `>` and
`&` escaped. A content security policy lets the browser run only scripts whose hashes are in the
page.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cuvee import __version__
from cuvee.core.errors import printable
from cuvee.report.figures.colours import DARK, METHODS

_DIGITS = 5
"""Significant digits of numbers in figures, so that the page stays small."""


@dataclass(frozen=True)
class Panel:
    """A figure with its place in the page. Screen readers read `words` instead of the figure.

    Readers may sort panels by the numbers in `keys`.
    """

    id: str
    heading: str
    words: str
    figure: go.Figure
    target: bool = False
    keys: Mapping[str, float] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return int(self.figure.layout.height)


def fill(
    template: str,
    title: str,
    facts: Mapping[str, str],
    panels: Sequence[Panel],
    data: Mapping[str, Any] | None = None,
    **content: Any,
) -> str:
    """Return a page as text, from `template`, which extends layout.html, and its `content`.

    `panels` are all panels whose figures the page shows. `data` are further data for its script.
    """
    scripts = [
        get_plotlyjs().replace("</script", "<\\/script"),
        (files("cuvee.report") / "assets" / "page.js").read_text(),
    ]
    figures = {panel.id: _compact(panel.figure) for panel in panels}
    given = {"figures": figures, "layout": _common(figures), "dark": DARK, **(data or {})}
    return fill_with(("cuvee.report",), template, title, facts, scripts, given, **content)


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
        finalize=_without_controls,
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


def _without_controls(value: Any) -> Any:
    """Return text from elsewhere with control, format and surrogate characters escaped.

    A browser shows no control character, and a format character can reverse the text after it.
    """
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _compact(figure: go.Figure) -> Any:
    """Return a figure as plain data. A trace without `x` has that of the trace before it."""
    plain = _short(figure.to_dict())
    before = None
    for trace in plain["data"]:
        now = trace.get("x")
        if now is not None and now == before:
            del trace["x"]
        before = now
    return plain


def _common(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Take from all layouts the entries that they share, and return these."""
    layouts = [figure["layout"] for figure in figures.values()]
    first = layouts[0] if layouts else {}
    shared = {
        key: value
        for key, value in first.items()
        if all(layout.get(key) == value for layout in layouts)
    }
    for layout in layouts:
        for key in shared:
            del layout[key]
    return shared


def _short(node: Any) -> Any:
    """Return a figure as plain data with shorter numbers and without the default template."""
    if isinstance(node, Mapping) and "bdata" in node:  # how Plotly writes arrays
        return _short(np.frombuffer(base64.b64decode(node["bdata"]), node["dtype"]))
    if isinstance(node, Mapping):
        return {key: _short(item) for key, item in node.items() if key != "template"}
    if isinstance(node, (list, tuple)):
        return [_short(item) for item in node]
    if isinstance(node, np.ndarray):
        return [_short(item) for item in node.tolist()]
    if isinstance(node, str):
        return printable(node)
    if isinstance(node, float):
        return None if not math.isfinite(node) else float(f"{node:.{_DIGITS}g}")
    return node


def _script_json(value: Any) -> str:
    """Return JSON that a browser cannot interpret as markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _style(css: str) -> str:
    light = " ".join(
        f".key.m{index} {{ color: {colour}; }}" for index, (colour, _) in enumerate(METHODS)
    )
    dark = " ".join(
        f".key.m{index} {{ color: {colour}; }}" for index, (_, colour) in enumerate(METHODS)
    )
    keys = f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}"
    return css.replace("{{ method_keys }}", keys)
