"""Names, groups and reasons from other people are plain text in every output: no markup, no
control characters."""

from __future__ import annotations

import ast
import io
import re
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from rich.table import Table

import cuvee.cli
from cuvee.cli.display.console import PlainConsole
from cuvee.cli.display.fleet import FleetView
from cuvee.cli.display.lines import say, say_warnings
from cuvee.cli.display.printable import one_line, printable
from cuvee.fleet.store.store import Store
from cuvee.recipes.dashboard.app import _table as page_table
from cuvee.recipes.progress.fleet_watch import FleetWatch
from cuvee.report.page import write_report
from cuvee.testing.runs import example_run

HOSTILE = [
    "rank 0 failed: [/__w/pytorch/gloo/pair.cc:537] Read error [127.0.0.1]:27011: reset by peer",
    "[/]", "[bold]x", "[bold", "]", "[", "\\[/red]", "[link=https://evil]x[/link]",
    "[@click=app.bell]x[/]", "\x1b[2J\x1b[31mred", "\x1b]0;title\x07",
    "\x1b]8;;https://evil\x07click\x1b]8;;\x07", "\x9b31m", "\x00\x07\x08\x7f",
    "good\rforged", "good\nrun-1 done", "abc\u202edcba", "a\u200bb\ufeff", "\u2066x\u2069",
    "a\u2028b", "\ud800",
    ":skull:", "{curly}", "%s %(x)s", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "x" * 5000,
]  # fmt: skip


def assert_harmless(output: str, newlines: str = "\n") -> None:
    bad = [c for c in output if not c.isprintable() and c not in newlines]
    assert not bad, bad


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_text_holds_no_control_characters_and_says_what_was_there(text: str) -> None:
    assert_harmless(one_line(text), newlines="")
    assert_harmless(printable(text), newlines="\n\t")
    assert printable("é 漢字 – 95\u00a0% ok\n\t") == "é 漢字 – 95\u00a0% ok\n\t"
    if text.isprintable():
        assert one_line(text) == text
    else:
        assert "\\" in one_line(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_console_prints_strings_as_they_are(text: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, width=6000, force_terminal=False)
    table = Table(text, title=text, caption=text, box=None)
    table.add_row(text)
    console.print(table)
    console.print(text, soft_wrap=True)
    assert_harmless(out.getvalue())
    shown = printable(text).split("\n")[0].strip()
    assert out.getvalue().count(shown) >= 4


@pytest.mark.parametrize("text", HOSTILE)
def test_every_listing_of_a_store_survives_every_name_group_and_reason(
    tmp_path: Path,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = text.replace("\x00", "").replace("\ud800", "")  # which no database takes
    place = tmp_path / "s.db"
    with Store.open(str(place)) as store:
        run = store.create("name", 0, {"name": text}, group="group", max_attempts=1)
        store.claim_run(run, "host/1/x/y").fail(text)
        with closing(sqlite3.connect(place)) as other:  # a worker that checks nothing
            other.execute("update runs set name = ?, cohort = ?", (text, text))
            other.execute("update attempts set worker = ?", (text,))
            other.commit()
        view = FleetView(PlainConsole(file=(out := io.StringIO()), width=200))
        with view:
            view.show(FleetWatch(store, None).look())
            PlainConsole(file=out, width=200).print(view.picture())
    assert_harmless(out.getvalue())
    for command in (["list"], ["show", run], ["audit", run], ["watch"]):
        monkeypatch.setattr(sys, "argv", ["cuvee", "runs", *command, "--store", str(place)])
        with pytest.raises(SystemExit) as ended:
            cuvee.cli.main()
        assert ended.value.code in (0, 2), command
        captured = capsys.readouterr()
        assert_harmless(captured.out + captured.err)
        assert "Traceback" not in captured.err
        if command == ["list"]:
            assert ended.value.code == 0
            assert run in captured.out
            assert len(captured.out.splitlines()) < 40 if len(text) < 1000 else True


@pytest.mark.parametrize(
    "text", ["abc\u202edcba", "\x1b[31mred", "\u2066<b>x</b>\u2069", "a\u200bb\x00"]
)
def test_a_report_and_the_live_page_hold_no_control_characters(tmp_path: Path, text: str) -> None:
    """A browser shows none of them, and some reverse the text that follows."""
    runs = [
        example_run(method, seed, intervals=4, config={"method": {"name": text, "label": text}})
        for method in ("odm", "natural")
        for seed in (0, 1)
    ]
    page = write_report(runs[:2], tmp_path / "r.html", title=text, facts={text: text}).read_text()
    page = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)  # not from elsewhere
    pages = [page, str(page_table(("a",), [(text,)]).to_plotly_json())]
    for found in pages:
        assert not [c for c in found if not c.isprintable() and c not in "\n\t\r\u00a0\u3000"]
    assert "<b>x" not in page


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_errors_and_warnings_hold_no_control_characters(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(
        sys, "argv", ["cuvee", "report", text.replace("\x00", ""), "--store", "no/such"]
    )
    with pytest.raises(SystemExit):
        cuvee.cli.main()
    say(text)
    say_warnings()
    warnings.showwarning(UserWarning(text), UserWarning, "f", 1)
    captured = capsys.readouterr()
    assert_harmless(captured.out + captured.err, newlines="\n\t")


def test_a_mistake_on_the_command_line_is_no_markup_either() -> None:
    for arguments in (["search", "x.yaml", "--engine", "[/x]"], ["runs", "[/x]"], ["--[/x]"]):
        done = subprocess.run(
            [sys.executable, "-m", "cuvee.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_nothing_in_the_command_line_prints_past_the_two_modules_that_escape() -> None:
    """Planted faults of this scan: each of these lines is found."""
    for planted in ("typer.echo(x)", "typer.secho(x)", "print(x)", "Console()", "Text(x)",
                    "Text.from_markup(x)", "from rich.markup import escape",
                    "sys.stderr.write(x)"):  # fmt: skip
        assert list(_ways_around(ast.parse(planted))), planted
    folder = Path(cuvee.cli.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        if path.name not in ("console.py", "lines.py"):
            found = list(_ways_around(ast.parse(path.read_text())))
            assert not found, f"{path}: {found}"


def _ways_around(tree: ast.AST) -> list[str]:
    names = {"echo", "secho", "from_markup", "from_ansi", "Console", "write", "print_exception"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "rich.markup":
            found.append("rich.markup")
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in names:
                found.append(called.attr)
            if isinstance(called, ast.Name) and called.id in {"print", "Console"}:
                found.append(called.id)
            if isinstance(called, ast.Name) and called.id == "Text" and node.args:
                constant = isinstance(node.args[0], ast.Constant)
                found += [] if constant else ["Text"]
    return found
