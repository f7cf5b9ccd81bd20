"""The command line. Each command reads its arguments, calls a recipe and prints the result.

Commands import heavy libraries inside functions, so that `cuvee --help` is fast.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from typing import Annotated

import typer

from cuvee import __version__
from cuvee.cli import corpus, demo, learn, order_test, recommend, search, steer, train
from cuvee.cli.display.lines import say, say_warnings
from cuvee.cli.results import dash, evaluate, report, runs
from cuvee.cli.setup import doctor, init, questions, validate
from cuvee.core.errors import CuveeError, TrainingError
from cuvee.recipes.progress.stopping import Stopped

app = typer.Typer(
    name="cuvee",
    help="Learns how to mix training-data domains for language models, and steers the mixture "
    "while a model trains.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.command("validate")(validate.validate)
app.add_typer(corpus.app, name="corpus")
app.command("questions")(questions.questions)
app.command("train")(train.train)
app.command("compare")(train.compare)
app.command("search")(search.search)
app.command("learn")(learn.learn)
app.command("recommend")(recommend.recommend)
app.command("order-test")(order_test.order_test)
app.add_typer(runs.app, name="runs")
app.command("steer")(steer.steer)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("dash")(dash.dash)
app.command("demo")(demo.demo)


def _say_whole(group: typer.Typer) -> None:
    """Let `--help` list each command with its whole first sentence, which it would cut otherwise."""
    for command in group.registered_commands:
        summary = inspect.getdoc(command.callback) or ""
        command.short_help = " ".join(summary.partition("\n\n")[0].split())
    for below in group.registered_groups:
        if below.typer_instance:
            _say_whole(below.typer_instance)


_say_whole(app)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"cuvee {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())


def main() -> None:
    """Run the command line.

    Exit status: 0 success, 1 training failed, 2 invalid arguments or input, 130 or 143 stopped.
    """
    say_warnings()
    try:
        app()
    except CuveeError as error:
        say(f"error: {error}", error=True, colour="red")
        sys.exit(1 if isinstance(error, TrainingError) else 2)
    except OSError as error:
        if error.filename is None:
            raise
        reason = f"{error.strerror}; check the path, its permissions and the space on the disk"
        say(f"error: {error.filename}: {reason}", error=True, colour="red")
        sys.exit(2)
    except Stopped as stopped:
        again = shlex.join(
            [
                "cuvee",
                *(argument for argument in sys.argv[1:] if argument != "--resume"),
                "--resume",
            ]
        )
        say(f"{stopped}; continue with: {again}", error=True, colour="yellow")
        sys.exit(128 + stopped.signal)
