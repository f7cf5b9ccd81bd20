"""The report in a real browser: its table and plots are drawn, and nothing in it runs foreign
code or loads anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from browser import browse
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Run, Trajectory
from cuvee.report.figures.colours import DARK, OTHER
from cuvee.report.page import write_report
from cuvee.testing.runs import example_domains, example_run


class Rendered(HTMLParser):
    """Table cells by row, and counts of elements, of a page after its scripts have run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[str] = []
        self.drawn: str | None = None
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "html":
            self.drawn = dict(attrs).get("data-drawn")
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
            self._inside = True
        if tag == "small":
            self._inside = False

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data.strip()


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def test_tables_and_plots_render(tmp_path: Path) -> None:
    runs = [example_run(method, seed) for method in ("natural", "odm") for seed in range(2)]
    page = write_report(runs, tmp_path / "report.html", "A comparison")
    result = browse(page, tmp_path / "profile", "--dump-dom")
    rendered = Rendered(result.stdout)
    assert not complaints(result)
    assert rendered.drawn == str(1 + 2 + 3 + 1 + 8), (
        "intervals, mixtures, summary losses, trade, domains"
    )
    assert rendered.elements.count("svg") >= 14
    assert result.stdout.count("Not a number") == 0
    losses = [run.trajectory.last.probes["valid_loss"].values for run in runs]
    for method, pair in (("natural", losses[:2]), ("odm", losses[2:])):
        row = next(row for row in rendered.rows if row and row[0] == method)
        assert row[1] == f"{sum(loss.mean() for loss in pair) / 2:.3f}"
        assert row[2] == f"{sum(loss[:6].mean() for loss in pair) / 2:.3f}"
        assert row[3] == f"{sum(loss[6:].mean() for loss in pair) / 2:.3f}"
    screenshot = tmp_path / "report.png"
    browse(page, tmp_path / "profile-2", f"--screenshot={screenshot}", "--window-size=1280,2400")
    assert screenshot.stat().st_size > 50_000, "plots leave more than an empty page"


def test_hostile_text_does_not_run(tmp_path: Path) -> None:
    own = "document.title='owned'"
    hostile = f'</script><script>{own}</script><img src=x onerror="{own}">'
    runs = [
        example_run("natural"),
        example_run("odm", config={"method": {"name": hostile}, "model": hostile}),
    ]
    page = write_report(runs, tmp_path / "report.html", hostile, facts={hostile: hostile})
    result = browse(page, tmp_path / "profile", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", result.stdout, re.DOTALL)
    assert title
    assert title[1].startswith("&lt;/script&gt;"), "the title is the text that was given"
    assert Rendered(result.stdout).elements.count("img") == 0
    assert not complaints(result)


def test_fifty_two_domains_render(tmp_path: Path) -> None:
    domains = [*example_domains(26, 0), *example_domains(0, 26)]
    page = write_report([example_run("odm", domains=domains)], tmp_path / "report.html")
    result = browse(page, tmp_path / "profile", "--dump-dom")
    assert Rendered(result.stdout).drawn == str(1 + 3 + 1 + 8), "the rest is drawn on demand"
    assert not complaints(result)


PATIENT = "--virtual-time-budget=300000"
"""Virtual time passes without work in the background. Scripts that wait for such work use short
timers, each of which takes real time."""


def scripted(page: Path, script: str) -> None:
    """Add a script to the page, and its hash to the policy that says which scripts may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"))


def reported(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the script has written to `data-seen`."""
    found = re.search(r'data-seen="([^"]*)"', result.stdout)
    assert found, result.stderr
    return dict(json.loads(html.unescape(found[1])))


def decided(tmp_path: Path) -> Path:
    """The page of three methods, of which one is surely better, over 5 seeds and 20 domains."""
    domains = [*example_domains(14, 0), *example_domains(0, 6)]
    base = [example_run("natural", seed, domains=domains, intervals=6) for seed in range(5)]
    other = [example_run("odm", seed, domains=domains, intervals=6) for seed in range(5)]
    better = [replace(lowered(run), id=f"{run.id}-b", config={"method": "better"}) for run in base]
    return write_report([*base, *other, *better], tmp_path / "report.html", "A decision")


def lowered(run: Run) -> Run:
    signals = [
        replace(
            s,
            probes={
                name: Measured.all(m.values - (0.2 + 0.01 * run.seed) * s.progress)
                for name, m in s.probes.items()
            },
        )
        for s in run.trajectory.signals
    ]
    return replace(run, trajectory=Trajectory(signals, run.trajectory.mixtures))


CLICKS = """
addEventListener("load", async () => {
  const seen = {};
  const one = (selector) => document.querySelector(selector);
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.offsetParent).length;
  const settle = () => new Promise((done) => setTimeout(done, 300));
  const tick = () => new Promise((done) => setTimeout(done, 4));
  const click = async (selector) => { one(selector).click(); await settle(); };
  await settle();
  seen.verdict = one(".card").innerText;
  seen.intervals = visible("#result .plot");
  await click('[data-tab="plot-interval-1"]');
  seen.second = [visible("#plot-interval-0"), visible("#plot-interval-1")];
  seen.stack = one("#plot-mixture-0").data.filter((t) => t.stackgroup).length;
  await click("#ungroup");
  seen.ungrouped = one("#plot-mixture-0").data.filter((t) => t.stackgroup).length;
  await click('button.domain[data-domain="source-3"]');
  seen.chosen = one("#plot-mixture-0").data.map((t) => t.meta);
  seen.reference = one("#plot-mixture-0").layout.shapes.length;
  await click('[data-tab="epochs"]');
  seen.epochs = [visible("#tab-mixtures"), visible("#plot-epochs-0")];
  seen.few = visible("#domains-list figure");
  await click('[data-all="domains-list"]');
  seen.all = visible("#domains-list figure");
  const search = one('[data-search="domains-list"]');
  search.value = "target-3";
  search.dispatchEvent(new Event("input"));
  await settle();
  seen.found = visible("#domains-list figure");
  seen.rows = visible("#domain-table tbody tr");
  await click('[data-all="domain-table-list"]');
  seen.rowsAll = visible("#domain-table tbody tr");
  seen.columns = visible("#final-table thead th");
  await click('[data-columns="final-table"]');
  seen.columnsAll = visible("#final-table thead th");
  const first = () => one("#final-table tbody th").textContent;
  await click("#final-table thead th button");
  seen.lowest = first();
  await click("#final-table thead th button");
  seen.highest = first();
  const blobs = [];
  const make = URL.createObjectURL.bind(URL);
  URL.createObjectURL = (blob) => { blobs.push(blob); return make(blob); };
  const saved = [];
  HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
  for (const kind of ["csv", "json", "svg", "png"]) {
    one(`#tab-plot-interval-1 [data-save="${kind}"]`).click();
    for (let i = 0; i < 15000 && !saved.at(-1)?.endsWith(kind); i++) await tick();
  }
  seen.saved = saved;
  const own = blobs.filter((blob) => blob.type !== "image/svg+xml;charset=utf-8");
  seen.csv = await own[0].text();
  seen.json = Object.keys(JSON.parse(await own[1].text()));
  seen.svg = (await own[2].text()).slice(0, 4);
  seen.png = [...new Uint8Array(await own.at(-1).arrayBuffer()).slice(1, 4)];
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
"""


def test_a_reader_sees_the_verdict_and_the_controls_work(tmp_path: Path) -> None:
    page = decided(tmp_path)
    scripted(page, CLICKS)
    result = browse(page, tmp_path / "profile", "--dump-dom", PATIENT)
    seen = reported(result)
    assert not complaints(result)
    assert seen["verdict"].startswith("Train on better")
    for part in ("How sure", "What it saves", "What it costs", "over 5 paired seeds"):
        assert part in seen["verdict"]
    assert seen["intervals"] == 1
    assert seen["second"] == [0, 1]
    assert (seen["stack"], seen["ungrouped"]) == (12 + 1, 20), "the smallest sources are summed"
    assert seen["chosen"] == ["source-3"]
    assert seen["reference"] == 1
    assert seen["epochs"] == [0, 1]
    assert (seen["few"], seen["all"], seen["found"]) == (8, 20, 1)
    assert (seen["rows"], seen["rowsAll"]) == (12, 20)
    assert seen["columns"] < seen["columnsAll"]
    assert seen["lowest"].startswith("better")
    assert not seen["highest"].startswith("better")
    assert seen["saved"] == [f"plot-interval-1.{kind}" for kind in ("csv", "json", "svg", "png")]
    assert seen["csv"].startswith('series,"difference, nats per token",y,low,high\n')
    assert "better,-0.2" in seen["csv"]
    assert seen["json"] == ["data", "layout"]
    assert seen["svg"] == "<svg"
    assert bytes(seen["png"]) == b"PNG"


PHONE = """
const waiting = setInterval(() => {}, 4);
addEventListener("message", (event) => {
  document.documentElement.dataset.seen = event.data;
  clearInterval(waiting);
});
"""
IN_PHONE = """
addEventListener("load", () => setTimeout(() => {
  const cell = document.querySelector("#final-table tbody td");
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    plots: Math.max(...[...document.querySelectorAll(".plot svg")].map((svg) => svg.getBoundingClientRect().right)),
    tables: Math.max(...[...document.querySelectorAll("table")].map((table) => table.getBoundingClientRect().right)),
    head: getComputedStyle(document.querySelector("#final-table thead")).display,
    label: getComputedStyle(cell, "::before").content,
    roles: ["table", "tbody", "tr", "th", "td"].map((tag) => document.querySelector(tag + "[role]").computedRole),
  }), "*");
}, 1500));
"""


def test_on_a_phone_tables_are_cards_and_nothing_is_cut(tmp_path: Path) -> None:
    page = decided(tmp_path)
    scripted(page, IN_PHONE)
    frame = tmp_path / "phone.html"
    frame.write_text(
        f"<html><body><script>{PHONE}</script>"
        f"<iframe src='{page.as_uri()}' width='390' height='4000'></iframe></body></html>"
    )
    roles = "--enable-blink-features=ComputedAccessibilityInfo"
    seen = reported(browse(frame, tmp_path / "profile", "--dump-dom", PATIENT, roles))
    assert seen["width"] == 390
    assert seen["roles"] == ["table", "rowgroup", "row", "columnheader", "cell"]
    assert max(seen["needed"], seen["plots"], seen["tables"]) <= 390
    assert seen["head"] == "none"
    assert seen["label"] == '"Mean"'


ON_PAPER = """
addEventListener("load", async () => {
  const seen = {};
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.offsetParent).length;
  const settle = () => new Promise((done) => setTimeout(done, 300));
  const look = () => ({ rows: visible("#domain-table tbody tr"), epochs: visible("#tab-epochs"), intervals: visible("#result .plot") });
  await settle();
  seen.screen = look();
  dispatchEvent(new Event("beforeprint"));
  await settle();
  seen.paper = look();
  dispatchEvent(new Event("afterprint"));
  await settle();
  seen.after = look();
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
"""


def test_paper_has_every_row_and_every_tab(tmp_path: Path) -> None:
    page = decided(tmp_path)
    scripted(page, ON_PAPER)
    seen = reported(browse(page, tmp_path / "profile", "--dump-dom", PATIENT))
    assert seen["screen"] == {"rows": 12, "epochs": 0, "intervals": 1}
    assert seen["paper"] == {"rows": 20, "epochs": 1, "intervals": 4}
    assert seen["after"] == seen["screen"]


COLOURS = """
addEventListener("load", () => setTimeout(() => {
  const rest = [...document.querySelectorAll("button.domain i")].map((one) => one.style.backgroundColor);
  const plot = document.getElementById("plot-mixture-0");
  document.documentElement.dataset.seen = JSON.stringify({
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    swatches: rest,
    other: plot.data.find((trace) => trace.stackgroup && trace.meta.includes("other")).fillcolor,
    label: plot.layout.annotations.map((one) => one.text).find((text) => text.includes("others")),
  });
}, 800));
"""


def test_in_the_dark_labels_and_swatches_have_the_colours_of_the_figure(tmp_path: Path) -> None:
    page = decided(tmp_path)
    scripted(page, COLOURS)
    dark = "--blink-settings=preferredColorScheme=0"
    seen = reported(browse(page, tmp_path / "profile", "--dump-dom", PATIENT, dark))
    assert seen["dark"]
    assert seen["other"] == DARK[OTHER]
    assert f"color:{DARK[OTHER]}" in seen["label"]
    grey = "rgb({}, {}, {})".format(*bytes.fromhex(DARK[OTHER][1:]))
    light = "rgb({}, {}, {})".format(*bytes.fromhex(OTHER[1:]))
    assert grey in seen["swatches"]
    assert light not in seen["swatches"]
