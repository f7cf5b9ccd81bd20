"""`cuvee corpus`: labels text, and builds, shows and verifies corpora."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuvee.cli import label
from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import Listing, say_json
from cuvee.cli.options import JsonOption, Quiet

if TYPE_CHECKING:
    from cuvee.data.corpus.corpus import Corpus

app = typer.Typer(no_args_is_help=True, help="Label text, and build, show and verify corpora.")
app.command("label")(label.label)


@app.command()
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Files or folders, also at URLs such as s3://…: .jsonl, .json, .csv, .txt (also "
            ".gz, .zst), .parquet, .arrow, .bin/.idx pairs; or owner/name, a data set in the "
            "Hugging Face cache.",
        ),
    ],
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The corpus folder to write.")
    ],
    domain_column: Annotated[
        str | None,
        typer.Option(
            help="The column with a row's domain. Default: the names of files or folders."
        ),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]NAME",
            help="The column with the text, of all sources or of one domain; may be repeated. "
            "Default: text.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A target domain; may be repeated. Default: as in table.json."
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW", help="A new name for a domain of the sources; may be repeated."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to use instead of training one.")
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Vocabulary size of the byte-level BPE to train. Default: 4096."),
    ] = None,
    end_of_text: Annotated[
        str | None,
        typer.Option(
            help="The token that ends a document, if it is not one of the well-known ones."
        ),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Whether a start token begins every document. Default: as the tokenizer does.",
        ),
    ] = None,
    valid_share: Annotated[
        float,
        typer.Option(
            help="Share of documents for validation, unless sources have train/ and valid/."
        ),
    ] = 0.05,
    test_share: Annotated[
        float,
        typer.Option(
            help="Share of documents for testing final models, unless sources have train/ and "
            "valid/."
        ),
    ] = 0.05,
    workers: Annotated[
        int | None, typer.Option(help="Processes that tokenize. Default: one per core.")
    ] = None,
    max_bad_rows: Annotated[
        int, typer.Option(help="Stop if more rows than this are unusable.")
    ] = 100,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus from text or token shards, or resume a build that was interrupted.

    Example: cuvee corpus build DATA/ -o corpus --target maths
    """
    from cuvee.cli.display.console import Stages, progress_bar
    from cuvee.core.errors import CorpusError
    from cuvee.data.corpus.names import parse_columns, parse_renames
    from cuvee.data.ingest.adopt import adopt
    from cuvee.data.ingest.build import BuildSettings
    from cuvee.data.ingest.build import build as build_corpus
    from cuvee.data.ingest.shards.finding import find_shards

    if find_shards(sources).shards:
        if bos is not None:
            raise CorpusError(
                "--bos and --no-bos are for text: shards are imported with the tokens they have"
            )
        corpus = adopt(
            sources,
            folder,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            targets=target or (),
            rename=parse_renames(rename or ()),
        )
    else:
        of_all, of_domains = parse_columns(text_column or ())
        settings = BuildSettings(
            text_column=of_all,
            text_columns=of_domains,
            domain_column=domain_column,
            targets=tuple(target or ()),
            tokenizer=tokenizer,
            vocab_size=4096 if vocab_size is None else vocab_size,
            end_of_text=end_of_text,
            bos=bos,
            valid_share=valid_share,
            test_share=test_share,
            max_bad_rows=max_bad_rows,
            rename=parse_renames(rename or ()),
        )
        bar = progress_bar(disable=quiet)
        try:
            with bar:
                corpus = build_corpus(
                    sources, folder, settings, workers=workers, progress=Stages(bar)
                )
        except KeyboardInterrupt:
            say("interrupted; the same command resumes", error=True, colour="yellow")
            raise typer.Exit(130) from None
    if as_json:
        say_json(_content(corpus))
        return
    _print(corpus)
    if corpus.manifest.bad_rows:
        bad = corpus.manifest.bad_rows
        say(f"{bad} bad rows were left out: see {folder / 'quarantine.jsonl'}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus.")],
    as_json: JsonOption = False,
) -> None:
    """Print the domains of a corpus: documents, tokens, shares, bytes per token, diversity.

    Example: cuvee corpus show corpus --json
    """
    from cuvee.data.corpus.corpus import Corpus

    corpus = Corpus.open(folder)
    if as_json:
        say_json(_content(corpus))
        return
    _print(corpus)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus.")],
    quiet: Quiet = False,
) -> None:
    """Read every file of a corpus and compare it with the hashes in the manifest.

    Example: cuvee corpus verify corpus
    """
    from cuvee.cli.display.console import Stages, progress_bar
    from cuvee.data.corpus.corpus import Corpus

    corpus = Corpus.open(folder)
    with progress_bar(disable=quiet) as bar:
        stages = Stages(bar)
        corpus.verify(lambda share: stages("verifying", share))
    say(f"{folder}: all files match their hashes (fingerprint {corpus.fingerprint})")


def _content(corpus: Corpus) -> dict[str, Any]:
    domains = [entry.model_dump(mode="json") for entry in corpus.manifest.domains]
    bad_rows = corpus.manifest.bad_rows
    return {"fingerprint": corpus.fingerprint, "bad_rows": bad_rows, "domains": domains}


def _print(corpus: Corpus) -> None:
    table = Listing(
        *("domain", "role", "documents", "tokens", "share"),
        *("bytes/token", "MTLD", "valid tokens", "test tokens"),
        numbers=(
            *("documents", "tokens", "share"),
            *("bytes/token", "MTLD", "valid tokens", "test tokens"),
        ),
        spare=("MTLD", "bytes/token", "test tokens", "documents"),
    )
    entries = corpus.manifest.domains
    total = sum(entry.train.tokens for entry in entries)
    for entry in entries:
        known = entry.train.text_bytes is not None
        table.add(
            entry.name,
            entry.role,
            f"{entry.train.documents:,}",
            f"{entry.train.tokens:,}",
            f"{entry.train.tokens / total:.1%}",
            f"{corpus.bytes_per_token(entry.name):.2f}" if known else "–",
            f"{entry.scores['mtld']:.1f}" if "mtld" in entry.scores else "–",
            f"{entry.valid.tokens:,}" if entry.valid else "–",
            f"{entry.test.tokens:,}" if entry.test else "–",
        )
    known_bytes = [
        entry.train.text_bytes for entry in entries if entry.train.text_bytes is not None
    ]
    table.add(
        f"{len(entries)} domain{'s' * (len(entries) != 1)}",
        "",
        f"{sum(entry.train.documents for entry in entries):,}",
        f"{total:,}",
        "100.0%",
        f"{sum(known_bytes) / total:.2f}" if len(known_bytes) == len(entries) else "–",
        "",
        f"{sum(entry.valid.tokens for entry in entries if entry.valid):,}",
        f"{sum(entry.test.tokens for entry in entries if entry.test):,}",
    )
    table.print()
    bos = corpus.manifest.tokenizer.bos
    start = f"documents begin with token {bos}, " if bos is not None else ""
    vocabulary = f"vocabulary {corpus.vocab_size}, {start}fingerprint {corpus.fingerprint[:12]}"
    say(f"{corpus.folder}: {vocabulary}")
