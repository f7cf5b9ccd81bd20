"""`cuvee questions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cuvee.cli.display.lines import say


def questions(
    corpus: Annotated[
        Path, typer.Argument(metavar="CORPUS", help="A folder that `cuvee corpus build` wrote.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
    ] = Path("questions"),
    kind: Annotated[
        Literal["choice", "cloze"],
        typer.Option(help="choice: the next sentence of four. cloze: the last word."),
    ] = "choice",
    most: Annotated[
        int, typer.Option("--limit", min=1, help="The most questions of a domain.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other questions.")] = 0,
) -> None:
    """Make question sets out of a corpus's validation text, one file per domain.

    `cuvee learn`, `cuvee train` and `cuvee evaluate` read them.

    Example: cuvee questions corpus -o questions --kind cloze --limit 100
    """
    from cuvee.data.corpus.corpus import Corpus
    from cuvee.recipes.setup.questions import write_questions

    made = write_questions(Corpus.open(corpus), output, kind, most, seed)
    say(f"{made.questions:,} questions in {made.folder}")
    if made.without:
        say(
            f"without questions, for lack of validation text: {', '.join(made.without)}",
            error=True,
            colour="yellow",
        )
    say("evaluation:")
    for field, files in made.files.items():
        say(f"  {field}: [{', '.join(map(str, files))}]")
    if not made.files["target"]:
        say(
            "the corpus has no target domain; build it with --target NAME to learn an agent",
            error=True,
            colour="yellow",
        )
