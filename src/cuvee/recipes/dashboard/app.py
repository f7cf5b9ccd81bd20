"""The live page: Dash components around what `view.py` reads. It answers this computer only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, dcc, html
from flask import abort, request
from werkzeug.serving import BaseWSGIServer, make_server

from cuvee.core.errors import one_line
from cuvee.fleet.store.rows import RunSummary
from cuvee.recipes.dashboard.view import (
    BAD_COLUMNS,
    EVENT_COLUMNS,
    HOST_COLUMNS,
    RUN_COLUMNS,
    WORKER_COLUMNS,
    Dashboard,
    Fleet,
    run_row,
)
from cuvee.recipes.stores import short_groups
from cuvee.report.words import amount, duration

HOST = "127.0.0.1"
_SECONDS = 5
_STYLE = """
body { margin: 0 auto; max-width: 1280px; padding: 14px 18px; color: #1d2430;
       font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 17px; margin: 26px 0 6px; }
p { overflow-wrap: anywhere; }
.note { color: #5b6472; margin: 2px 0 10px; }
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; }
.key i { display: inline-block; width: 26px; margin-right: 6px; vertical-align: middle; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 5px 12px 5px 0; text-align: left; border-bottom: 1px solid #e3e6ea;
         vertical-align: top; max-width: 60ch; overflow-wrap: break-word; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.figures > div { min-width: 0; }
h3 { font-size: 15px; margin: 12px 0 2px; }
@media (max-width: 640px) {
  .scroll { overflow: visible; }
  table, tbody, tr, td { display: block; }
  thead { display: none; }
  tr { margin: 0 0 12px; padding: 6px 12px; border: 1px solid #d5d9df; border-radius: 6px; }
  td { display: flex; justify-content: space-between; gap: 14px; padding: 4px 0; max-width: none;
       overflow-wrap: anywhere; text-align: right; }
  td:last-child { border: 0; }
  td:empty { display: none; }
  td::before { content: attr(data-label); color: #5b6472; white-space: nowrap; }
}
"""
_PAGE = (
    "<!DOCTYPE html><html lang='en'><head>{%metas%}<title>{%title%}</title>{%css%}<style>"
    + _STYLE
    + "</style></head><body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer>"
    "</body></html>"
)


def build(dashboard: Dashboard) -> Dash:
    """Return the page as a Dash application. It only reads the store."""
    app = Dash("cuvee", title="cuvee", update_title=None)
    app.index_string = _PAGE
    app.layout = lambda: _layout(dashboard)
    app.callback(
        Output("counts", "children"),
        Output("runs", "children"),
        Output("run", "options"),
        Output("run", "value"),
        Output("losses", "children"),
        Output("fleet", "children"),
        Input("clock", "n_intervals"),
        Input("group", "value"),
        State("run", "value"),
    )(lambda _, group, run: _overview(dashboard, group or None, run))
    app.callback(
        Output("figures", "children"),
        Output("events", "children"),
        Input("clock", "n_intervals"),
        Input("run", "value"),
    )(lambda _, run: _of_run(dashboard, run))
    app.server.before_request(_only_this_computer)
    return app


def server(dashboard: Dashboard, port: int) -> BaseWSGIServer:
    """Return a server of the page on this computer's own address; port 0 takes a free one."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    return make_server(HOST, port, build(dashboard).server, threaded=True)


def _only_this_computer() -> None:
    """Refuse requests under another name, with which a web site could read the page."""
    if request.host.rpartition(":")[0] not in (HOST, "localhost"):
        abort(403)


def _layout(dashboard: Dashboard) -> html.Div:
    groups = dashboard.store.groups()
    names = short_groups(groups)
    options = [{"label": "all runs", "value": ""}]
    options += [{"label": one_line(names.get(group, group)), "value": group} for group in groups]
    return html.Div(
        [
            html.H1("Runs"),
            html.P(f"{dashboard.store.address.shown}, read every {_SECONDS} s", className="note"),
            dcc.Dropdown(id="group", options=options, value="", clearable=False),
            html.P(id="counts"),
            html.Div(id="runs", className="scroll"),
            html.H2("Validation loss of the first eight"),
            html.Div(id="losses"),
            html.H2("One run"),
            dcc.Dropdown(id="run", clearable=False),
            html.Div(id="figures", className="figures"),
            html.H2("Guard events"),
            html.Div(id="events", className="scroll"),
            html.H2("Fleet"),
            html.Div(id="fleet"),
            dcc.Interval(id="clock", interval=1000 * _SECONDS),
        ]
    )


def _overview(dashboard: Dashboard, group: str | None, chosen: str | None) -> tuple[Any, ...]:
    status = dashboard.status(group)
    tally = status.tally
    left = "" if status.seconds_left is None else f", about {duration(status.seconds_left)} left"
    speed = status.tokens_per_second
    going = f"; {amount(speed)} tokens a second{left}" if tally.open and speed else ""
    counts = (
        f"{tally.running} running, {tally.waiting} waiting, {tally.done} done, "
        f"{tally.failed} failed{going}. {amount(tally.cost.tokens)} tokens, "
        f"{amount(tally.cost.flops)} FLOPs, {duration(tally.cost.seconds)} so far."
    )
    runs = dashboard.listed(group)
    ids = [run.id for run in runs]
    figure = dashboard.losses(group)
    return (
        counts,
        _table(RUN_COLUMNS, [run_row(run) for run in runs]),
        ids,
        chosen if chosen in ids else next(iter(ids), None),
        [_graph(figure), _legend(figure)] if figure else "No validation to compare yet.",
        _fleet(dashboard.fleet(group)),
    )


def _fleet(fleet: Fleet) -> list[Any]:
    """Return the summary of the fleet, and those of its tables that have rows."""
    tables = (
        ("Hosts", HOST_COLUMNS, fleet.hosts),
        ("Workers", WORKER_COLUMNS, fleet.workers),
        ("Attempts that failed or were lost, newest first", BAD_COLUMNS, fleet.bad),
    )
    shown: list[Any] = [html.P(fleet.summary)]
    for title, columns, rows in tables:
        if rows:
            shown += [html.H3(title), html.Div(_table(columns, rows), className="scroll")]
    return shown


def _of_run(dashboard: Dashboard, chosen: str | None) -> tuple[Any, Any]:
    run: RunSummary | None = dashboard.store.find(chosen) if chosen else None
    if run is None or not run.intervals:
        return "It has recorded nothing yet.", ""
    figures = [
        html.Div([html.H3(name), _graph(figure)])
        for name, figure in dashboard.run_figures(run).items()
    ]
    events = dashboard.events(run)
    return figures, _table(EVENT_COLUMNS, events) if events else "None: each proposal was accepted."


def _graph(figure: Any) -> dcc.Graph:
    style = {"height": f"{figure.layout.height}px"}
    return dcc.Graph(
        figure=figure, style=style, config={"displayModeBar": False, "responsive": True}
    )


def _legend(figure: Any) -> html.Div:
    """Return the names of the lines; unlike a legend in the plot, it takes as many rows as it needs."""
    return html.Div(
        [html.Span([_sample(line), line.name]) for line in figure.data], className="key"
    )


def _sample(line: Any) -> html.I:
    style = {"solid": "solid", "dot": "dotted"}.get(line.line.dash or "solid", "dashed")
    return html.I(style={"borderTop": f"3px {style} {line.line.color}"})


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> html.Table:
    """Return a table of text, which the browser shows as it is; on a phone a row is a card."""
    names = [html.Th(name, role="columnheader") for name in columns]
    head = html.Thead(html.Tr(names, role="row"), role="rowgroup")
    body = [
        html.Tr(
            [
                html.Td(one_line(cell), role="cell", **{"data-label": name})
                for name, cell in zip(columns, row, strict=True)
            ],
            role="row",
        )
        for row in rows
    ]
    # On a phone the style sheet lays tables out as cards. With roles they stay tables for screen
    # readers.
    return html.Table([head, html.Tbody(body, role="rowgroup")], role="table")
