"""The command line: what it answers without heavy imports, its flags, its exit status, and its
progress display."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console

import cuvee
import cuvee.cli
from cuvee.cli.display.clock import time_of
from cuvee.cli.display.console import PlainConsole
from cuvee.cli.display.lines import say
from cuvee.cli.display.live import LiveView, PlainView
from cuvee.cli.train import print_tables
from cuvee.core.errors import ConfigError, CuveeError, TrainingError
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.progress.watch import DomainProgress, Progress
from cuvee.testing.runs import example_run

GOLDEN = Path(__file__).parents[1] / "golden"
HEAVY = ("torch", "transformers", "pyarrow", "sqlalchemy", "plotly", "numpy", "yaml", "tokenizers")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["compare", "-h"],
        ["runs", "--help"],
        ["corpus", "build", "--help"],
        ["corpus", "label", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["cuvee", *{arguments!r}]
from cuvee.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stdout + done.stderr


def test_importing_cuvee_loads_nothing_heavy() -> None:
    program = f"import sys, cuvee; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


def flags() -> Iterator[str]:
    """Each command with its arguments and options, a line each."""

    def walk(command: Any, path: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if inner is not None:
            for name in sorted(inner):
                yield from walk(inner[name], f"{path} {name}")
            return
        words = [
            str(parameter.name).upper()
            for parameter in command.params
            if parameter.param_type_name == "argument"
        ]
        options = [
            "/".join([*parameter.opts, *parameter.secondary_opts])
            for parameter in command.params
            if parameter.param_type_name == "option"
        ]
        yield " ".join([path, *words, *sorted(options)])

    yield from walk(typer.main.get_command(cuvee.cli.app), "cuvee")


def test_commands_and_flags_are_those_that_were_promised() -> None:
    """Scripts of users depend on these texts.

    If a change is intended: python tests/unit/test_cli.py > tests/golden/cli_help.txt
    """
    assert list(flags()) == (GOLDEN / "cli_help.txt").read_text().splitlines()


def test_every_command_has_an_example_with_options_that_it_has() -> None:
    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}")
        if not hasattr(command, "commands"):
            yield path, command

    for path, command in walk(typer.main.get_command(cuvee.cli.app), "cuvee"):
        example = " ".join((command.help or "").split()).partition("Example: ")[2]
        assert example.startswith(path), path
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        options = {word for word in shlex.split(example) if word.startswith("-")}
        assert options <= known, path


def test_the_list_of_commands_has_whole_sentences() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cuvee.cli", "--help"], capture_output=True, text=True, timeout=60
    )
    listed = done.stdout.partition("Commands:")[2]
    assert "..." not in listed
    assert "sized to this machine." in " ".join(listed.split())


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ConfigError("no such thing: take another"), 2, "error: no such thing: take another\n"),
        (CuveeError("this"), 2, "error: this\n"),
        (
            TrainingError("the loss of web is not finite"),
            1,
            "error: the loss of web is not finite\n",
        ),
        (
            Stopped("stopped after step 5", 15),
            143,
            "stopped after step 5; continue with: cuvee train 'a b.yaml' --resume\n",
        ),
    ],
)
def test_how_things_end(
    raised: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> None:
        raise raised

    monkeypatch.setattr(cuvee.cli, "app", fails)
    monkeypatch.setattr(sys, "argv", ["cuvee", "train", "a b.yaml", "--resume"])
    with pytest.raises(SystemExit) as ended:
        cuvee.cli.main()
    assert ended.value.code == status
    assert capsys.readouterr().err == said


def progress(run_id: str = "mine-odm-s0", done: float = 0.5, began: float = 0.0) -> Progress:
    mixture = {"web": 0.5, "code": 0.25, **{f"small-{i}": 0.25 / 16 for i in range(16)}}
    return Progress(
        run_id=run_id,
        step=round(1000 * done),
        progress=done,
        began=began,
        seconds=60.0,
        tokens=120_000,
        loss=3.25,
        valid_loss=3.5,
        domains=tuple(
            DomainProgress(name, share, 0.125, 0.05 if name == "code" else 0.0, 8 * share)
            for name, share in mixture.items()
        ),
    )


def test_speed_and_time_left_count_from_where_the_run_was_resumed() -> None:
    assert progress().tokens_per_second == 2000
    assert progress(done=0.5).seconds_left == pytest.approx(60)
    assert progress(done=0.5, began=0.25).seconds_left == pytest.approx(120)
    assert progress(done=0.5, began=0.5).seconds_left is None
    assert (time_of(59.6), time_of(600), time_of(90_061)) == ("1:00", "10:00", "25:01:01")


def test_a_log_gets_a_line_now_and_then() -> None:
    out = io.StringIO()
    with PlainView(Console(file=out, width=200)) as view:
        view.begin("mine-odm-s0", "begins")
        for step in range(1, 1001):
            view.interval(progress(done=step / 1000))
        view.end("mine-odm-s0", "is finished")
    lines = out.getvalue().splitlines()
    assert lines[0] == "mine-odm-s0 begins"
    assert lines[-1] == "mine-odm-s0 is finished"
    assert "mine-odm-s0 step 500 (50%) loss 3.2500 valid 3.5000 2,000 tokens/s, 1:00 left" in lines
    assert len(lines) <= 25


def test_a_terminal_gets_a_picture_that_is_updated() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=120, force_terminal=True)) as view:
        view.begin("mine-odm-s0", "begins")
        view.interval(progress())
        drawn = "".join(segment.text for segment in Console(width=120).render(view.picture()))
        assert [word in drawn for word in ("mine-odm-s0", "500", "50%", "3.2500", "1:00")] == [
            True
        ] * 5
        assert "web" in drawn
        assert "6 others" in drawn
        assert "4.00" in drawn, "epochs of web"
        assert "0.125" in drawn, "natural shares"
        assert ("0.500 →" in drawn, "0.250 ↑" in drawn) == (True, True), "trends"
        view.stopping()
        drawn = "".join(segment.text for segment in Console(width=120).render(view.picture()))
        assert "Ctrl-C again stops at once" in drawn
        assert drawn.count("█") > 40
        view.interval(progress("mine-natural-s0"))
        drawn = "".join(segment.text for segment in Console(width=120).render(view.picture()))
        assert "mine-natural-s0" in drawn
        assert "█" not in drawn, "with several runs, a row each"
        view.end("mine-odm-s0", "is finished")
    assert "is finished" in out.getvalue()


@pytest.mark.parametrize("command", ["train", "compare", "search", "learn"])
def test_a_missing_configuration_is_named_before_torch_is_loaded(command: str) -> None:
    code = (
        "import sys; from cuvee.cli import main\n"
        f"sys.argv = ['cuvee', {command!r}, 'no/such.yaml']\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "there is no configuration file no/such.yaml" in done.stderr


def test_a_reader_that_stops_reading_gets_no_complaint() -> None:
    command = [sys.executable, "-m", "cuvee.cli", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_no_colour_if_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coloured: list[str | None] = []
    monkeypatch.setattr("typer.secho", lambda text, fg, err: coloured.append(fg))
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        say("error: this", error=True, colour="red")
    assert coloured == ["red", None]


def test_the_tables_of_a_comparison_fit_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [example_run(method, seed) for method in ("natural", "odm") for seed in (0, 1)]
    monkeypatch.setattr("cuvee.cli.display.console.console", lambda: PlainConsole(width=60))
    print_tables(runs, "natural")
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith("no room for ")]
    assert len(left_out) == 2
    assert max(len(line) for line in lines if line not in left_out) <= 60
    words = " ".join(lines)
    assert all(word in words for word in ("natural", "odm", "Mean", "Verdict"))


if __name__ == "__main__":
    print("\n".join(flags()))
