"""The report in a real browser: its table and plots are drawn, and nothing in it runs foreign
code or loads anything."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from browser import browse
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
    assert rendered.drawn == str(1 + 2 + 3 + 8), "trade, mixtures, summary losses, domains"
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
    assert Rendered(result.stdout).drawn == str(1 + 1 + 3 + 52)
    assert not complaints(result)
