"""`cuvee demo`: a scarce target on the user's own machine."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from cuvee.recipes.demo.demo import Demo
    from cuvee.recipes.demo.environment_text import Gathered
    from cuvee.recipes.demo.plan import Stage
    from cuvee.recipes.progress.watch import Observer, Progress

_CORPUS, _TRAINING, _STAGES = 2, 3, 4


def demo(
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for all results.")
    ] = Path("cuvee-demo"),
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the report in the browser.")
    ] = True,
) -> None:
    """Compare mixtures for a target of which there is little text, and open the report.

    The text comes from this Python environment. The same small model trains under five mixtures
    with three seeds each.

    Takes about five minutes on two cores and downloads nothing. An interrupted demo resumes when
    it is run again.

    Example: cuvee demo --no-open
    """
    from cuvee.cli.display.console import console
    from cuvee.recipes.progress.stopping import Stopped

    say = console(stderr=True)
    again = shlex.join(["cuvee", *sys.argv[1:]])
    try:
        with say.status("Loading"):
            from cuvee.recipes.demo import demo as recipe  # loads torch
        with _View(say) as view:
            made = recipe.demo(folder, view)
    except (Stopped, KeyboardInterrupt) as stopped:
        what = str(stopped) if isinstance(stopped, Stopped) else "interrupted"
        say.print(
            f"{what}; continue with: {again}",
            markup=False,
            highlight=False,
            style="yellow",
            soft_wrap=True,
        )
        raise typer.Exit(128 + stopped.signal if isinstance(stopped, Stopped) else 130) from None
    _print_results(console(), made)
    if show and sys.stdout.isatty() and _has_screen():
        typer.launch(made.report.as_uri())


class _View(AbstractContextManager["_View"]):
    """Prints each stage, its purpose and its duration.

    Gathered text is shown as lines, the corpus as a bar, and training as in its own command.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ExitStack()
        self._began: float | None = None
        self._bar: Bar | None = None
        self._training: Observer | None = None

    def __exit__(self, *error: object) -> None:
        self._shown.close()
        if error[0] is None:
            self._took()

    def stage(self, number: int, stage: Stage) -> None:
        from cuvee.cli.display.live import view

        self._shown.close()
        self._took()
        self._console.print(f"{number}/{_STAGES} {stage.title}: {stage.why}", style="bold")
        self._began = time.monotonic()
        if number == _CORPUS:
            self._bar = self._shown.enter_context(_bar(self._console))
            self._bar.add_task("")
        elif number == _TRAINING:
            training = view()
            self._shown.enter_context(training)
            self._training = training

    def _took(self) -> None:
        from cuvee.cli.display.clock import time_of

        if self._began is not None:
            self._say(f"took {time_of(time.monotonic() - self._began)}", style="dim")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(f"    {text}", markup=False, highlight=False, style=style)

    def gathered(self, gathered: Gathered) -> None:
        size = f"{gathered.documents:>6,} documents {gathered.size / 1e6:>6.2f} MB"
        target = "  target" if gathered.role == "target" else ""
        self._say(f"{gathered.name:<16}{size}{target}")

    def building(self, stage: str, share: float) -> None:
        assert self._bar, "the corpus is built in its own stage"
        self._bar.update(self._bar.task_ids[0], description=stage, completed=share)

    def planned(self, runs: int, workers: int, seconds: float) -> None:
        from cuvee.cli.display.clock import time_of

        self._say(f"{runs} runs, {workers} at a time: about {time_of(seconds)}")

    def stopping(self) -> None:
        assert self._training, "models are trained in their own stages"
        self._training.stopping()

    def begin(self, run_id: str, note: str) -> None:
        assert self._training, "models are trained in their own stage"
        self._training.begin(run_id, note)

    def interval(self, progress: Progress) -> None:
        assert self._training, "models are trained in their own stage"
        self._training.interval(progress)

    def end(self, run_id: str, note: str) -> None:
        assert self._training, "models are trained in their own stage"
        self._training.end(run_id, note)


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("    {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console,
        transient=True,
    )


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _print_results(console: Console, made: Demo) -> None:
    from cuvee.cli.train import print_tables
    from cuvee.report.summary import summarise
    from cuvee.report.verdict import card

    console.print()
    print_tables(made.runs, made.baseline)
    verdict = card(summarise(made.runs, made.baseline))
    assert verdict, "the baseline has finished runs"
    console.print(f"\n{verdict.choice}", style="bold", highlight=False)
    for sentence in (verdict.sure, verdict.saves, verdict.cost, *verdict.trust):
        if sentence:
            console.print(sentence, markup=False, highlight=False)
    _print_next(console, made)


def _print_next(console: Console, made: Demo) -> None:
    def short(path: Path) -> str:
        here = Path.cwd()
        return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

    learned = made.runs[-1]
    console.print(
        f"\nReport: {made.report.as_uri()}", markup=False, highlight=False, soft_wrap=True
    )
    console.print("\nNext steps:", highlight=False)
    for command in (
        f"cuvee corpus show {short(made.corpus)}",
        f"cuvee runs list --store {short(made.store)}",
        f"cuvee runs show {learned.id} --store {short(made.store)}",
        f"cuvee compare {short(made.config)} 'seeds=[0, 1, 2, 3, 4]'",
    ):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
