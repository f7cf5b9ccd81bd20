"""`cuvee demo`: every step of cuvee on the user's own machine."""

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

    from cuvee.cli.display.fleet import FleetView
    from cuvee.cli.learn import Shown
    from cuvee.learning.history_learning import LearnProgress
    from cuvee.recipes.demo.demo import Demo
    from cuvee.recipes.demo.environment_text import Gathered
    from cuvee.recipes.demo.plan import Stage
    from cuvee.recipes.progress.fleet_watch import FleetStatus
    from cuvee.recipes.progress.watch import Observer, Progress
    from cuvee.report.summary import Scores

_CORPUS, _BASE, _PROXIES, _AGENT, _TARGETS, _STAGES = 2, 3, 4, 5, 6, 7


def demo(
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for all results.")
    ] = Path("cuvee-demo"),
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the report in the browser.")
    ] = True,
) -> None:
    """Run Data Mixing Agent from beginning to end on the text of this Python environment.

    Trains a base model and proxies, learns an agent from them, and compares runs on mathematics
    under the agent with other methods. Opens the report.

    Takes less than eight minutes on two cores and downloads nothing. An interrupted demo resumes
    when it is run again.
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

    Gathered text is shown as lines and the corpus as a bar. Proxies, learning and training look as
    in their own commands.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ExitStack()
        self._began: float | None = None
        self._bar: Bar | None = None
        self._fleet: FleetView | None = None
        self._agent: Shown | None = None
        self._training: Observer | None = None

    def __exit__(self, *error: object) -> None:
        self._shown.close()
        if error[0] is None:
            self._took()

    def stage(self, number: int, stage: Stage) -> None:
        from cuvee.cli.display.fleet import FleetView
        from cuvee.cli.display.live import view
        from cuvee.cli.learn import Shown

        self._shown.close()
        self._took()
        self._console.print(f"{number}/{_STAGES} {stage.title}: {stage.why}", style="bold")
        self._began = time.monotonic()
        if number in (_CORPUS, _AGENT):
            self._bar = self._shown.enter_context(_bar(self._console))
            if number == _CORPUS:
                self._bar.add_task("")
            else:
                self._agent = Shown(self._bar)
        elif number == _PROXIES:
            self._fleet = self._shown.enter_context(FleetView(self._console))
        elif number in (_BASE, _TARGETS):
            training = view()
            self._shown.enter_context(training)
            self._training = training

    def _took(self) -> None:
        from cuvee.cli.display.live import time_of

        if self._began is not None:
            self._console.print(
                f"    took {time_of(time.monotonic() - self._began)}", highlight=False, style="dim"
            )

    def gathered(self, gathered: Gathered) -> None:
        size = f"{gathered.documents:>6,} documents {gathered.size / 1e6:>5.1f} MB"
        target = "  target" if gathered.role == "target" else ""
        self._console.print(f"    {gathered.name:<16}{size}{target}", markup=False, highlight=False)

    def building(self, stage: str, share: float) -> None:
        assert self._bar, "the corpus is built in its own stage"
        self._bar.update(self._bar.task_ids[0], description=stage, completed=share)

    def proxies(self, status: FleetStatus) -> None:
        assert self._fleet, "proxies run in their own stage"
        self._fleet.show(status)

    def learning(self, progress: LearnProgress) -> None:
        assert self._agent, "the agent learns in its own stage"
        self._agent.show(progress)

    def learned(self, verdict: str) -> None:
        self._console.print(f"    {verdict}", markup=False, highlight=False, soft_wrap=True)

    def begin(self, run_id: str, note: str) -> None:
        assert self._training, "models are trained in their own stages"
        self._training.begin(run_id, note)

    def interval(self, progress: Progress) -> None:
        assert self._training, "models are trained in their own stages"
        self._training.interval(progress)

    def end(self, run_id: str, note: str) -> None:
        assert self._training, "models are trained in their own stages"
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
    from rich.table import Table

    from cuvee.report.summary import summarise
    from cuvee.report.tables import paired_table
    from cuvee.report.words import final_loss, headline, number, signed

    summary = summarise(made.runs)
    start = next(view.start for view in summary.runs if view.start)
    paired = paired_table(summary)
    against = {row.head: row.cells[3] for row in paired.rows} if paired else {}
    table = Table("", box=None, padding=(0, 2, 0, 0))
    for name in (
        "source",
        "kept",
        "target",
        "learned",
        "average",
        f"vs {summary.baseline}, 95% interval",
    ):
        table.add_column(name, justify="right")
    table.add_row(
        "base", number(start.source), "", number(start.target), "", number(start.balance), ""
    )
    for method in summary.methods:
        cells = []
        for then, value in ((start.source, _source), (start.target, _target)):
            now = method.validated_mean(value)
            change = signed(now - then) if now is not None and then is not None else ""
            cells += [number(method.mean(value)), change]
        difference = against.get(method.label)
        beside = f"{difference.text}  {difference.note}" if difference else ""
        table.add_row(
            method.label, *cells, number(method.mean(lambda scores: scores.balance)), beside
        )
    console.print()
    console.print(table, highlight=False)
    console.print(
        f"{final_loss(summary).capitalize()}, nats per token, mean over domains and seeds; below "
        "zero is better. “base”, “kept” and “learned” are from validation losses.",
        highlight=False,
    )
    console.print()
    for sentence in headline(summary):
        console.print(sentence, markup=False, highlight=False)
    _print_next(console, made)


def _source(scores: Scores) -> float | None:
    return scores.source


def _target(scores: Scores) -> float | None:
    return scores.target


def _print_next(console: Console, made: Demo) -> None:
    def short(path: Path) -> str:
        here = Path.cwd()
        return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

    steered = next(run for run in made.runs if "-agent-" in run.id)
    console.print(
        f"\nReport: {made.report.as_uri()}", markup=False, highlight=False, soft_wrap=True
    )
    console.print(
        f"What the agent has learned: {made.diagnostics.as_uri()}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print("\nNext steps:", highlight=False)
    for command in (
        f"cuvee corpus show {short(made.corpus)}",
        f"cuvee runs list --store {short(made.store)}",
        f"cuvee runs show {steered.id} --store {short(made.store)}",
        f"cuvee search {short(made.search)} method.proxies=64 --dry-run",
        f"cuvee compare {short(made.config)} 'seeds=[0, 1, 2, 3, 4]'",
    ):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
