"""`cuvee corpus label`: assigns documents to other domains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import say_json
from cuvee.cli.options import JsonOption, Quiet

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.data.label.labelers import Way
    from cuvee.data.label.report import Labels

_WAYS = (
    "column:KEY, folder, map:FILE.yaml, cluster, classifier:FOLDER, classifier:NAME@COMMIT, "
    "role or random"
)
_DEFAULT_SAMPLE = 20_000


def label(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC", help="Files or folders of text, as for `cuvee corpus build`."
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="The folder of labelled text to write."),
    ],
    by: Annotated[str, typer.Option(metavar="WAY", help=f"{_WAYS}.")],
    topics: Annotated[
        int | None, typer.Option(metavar="K", help="Number of labels, for `cluster` and `random`.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="For `cluster` and `random`.")
    ] = 0,
    sample: Annotated[
        int | None,
        typer.Option(
            min=2, help=f"Documents on which `cluster` is fitted. Default: {_DEFAULT_SAMPLE}."
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="For `cluster`, instead of words: sentence-transformers:FOLDER or "
            "sentence-transformers:NAME@COMMIT.",
        ),
    ] = None,
    roles: Annotated[
        bool, typer.Option("--roles", help="Split each label into LABEL.source and LABEL.target.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A target domain of SRC; may be repeated. Default: as in table.json.",
        ),
    ] = None,
    domain_column: Annotated[
        str | None,
        typer.Option(
            help="The column with a row's old domain. Default: the names of files or folders."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
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
        int | None, typer.Option(help="Processes that label. Default: one per core.")
    ] = None,
    max_bad_rows: Annotated[
        int, typer.Option(help="Stop if more rows than this are unusable.")
    ] = 100,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Assign documents to domains by a column, a map, clustering or a classifier.

    After an interruption the same command resumes.

    Example: cuvee corpus label DATA/ -o topics --by cluster --topics 20
    """
    from cuvee.cli.display.console import Stages, console, progress_bar
    from cuvee.data.label.labels import LabelSettings
    from cuvee.data.label.labels import label as label_sources

    way = _way(by, topics, seed, sample, embeddings)
    settings = LabelSettings(
        text_column=text_column,
        domain_column=domain_column,
        targets=tuple(target or ()),
        by_role=roles,
        valid_share=valid_share,
        test_share=test_share,
        max_bad_rows=max_bad_rows,
    )
    bar = progress_bar(disable=quiet)
    try:
        with bar:
            labels = label_sources(
                sources, folder, way, settings, workers=workers, progress=Stages(bar)
            )
    except KeyboardInterrupt:
        say("interrupted; the same command resumes", error=True, colour="yellow")
        raise typer.Exit(130) from None
    if as_json:
        say_json(labels.model_dump(mode="json"))
    else:
        _print(console(), labels, folder)


def _way(by: str, topics: int | None, seed: int, sample: int | None, embeddings: str | None) -> Way:
    """Return the labeler for `--by` and its options. Raises `ConfigError` or `CorpusError`."""
    from cuvee.core.errors import ConfigError
    from cuvee.data.label import labelers as label_ways

    kind, _, argument = by.partition(":")
    if topics is None and kind in ("cluster", "random"):
        raise ConfigError(f"--by {kind} needs the number of labels: add --topics K")
    for option, value, kinds in (
        ("--topics", topics, ("cluster", "random")),
        ("--sample", sample, ("cluster",)),
        ("--embeddings", embeddings, ("cluster",)),
    ):
        if value is not None and kind not in kinds:
            raise ConfigError(f"{option} goes with --by {' or '.join(kinds)}, not with --by {by}")
    if (kind in ("column", "map", "classifier")) != bool(argument):
        raise ConfigError(f"cannot understand --by {by}: use {_WAYS}")
    if kind == "column":
        return label_ways.ByColumn(argument)
    if kind == "folder":
        return label_ways.ByFolder()
    if kind == "role":
        return label_ways.ByRole()
    if kind == "map":
        from cuvee.recipes.config.yaml_file import read_yaml

        return label_ways.ByMap.of(read_yaml(Path(argument)), argument)
    if kind == "random":
        assert topics is not None
        return label_ways.ByRandom(topics, seed)
    if kind == "cluster":
        from cuvee.data.label.topics import ByTopics, find_embedder

        assert topics is not None
        return ByTopics(
            topics,
            seed,
            sample if sample is not None else _DEFAULT_SAMPLE,
            find_embedder(embeddings) if embeddings is not None else None,
        )
    if kind == "classifier":
        from cuvee.data.corpus.model_folder import find_model
        from cuvee.data.label.classifier import ByClassifier

        return ByClassifier(find_model(argument))
    raise ConfigError(f"cannot label by {kind!r}: use {_WAYS}")


def _print(out: Console, labels: Labels, folder: Path) -> None:
    from rich.table import Table

    total = sum(row.train.bytes for row in labels.labels)
    sizes = Table(title=str(folder))
    sizes.add_column("label")
    sizes.add_column("role")
    for title in ("documents", "MB", "share", "of targets", "valid"):
        sizes.add_column(title, justify="right")
    sizes.add_column("words")
    for row in labels.labels:
        sizes.add_row(
            row.name,
            row.role,
            f"{row.train.documents:,}",
            f"{row.train.bytes / 1e6:,.2f}",
            f"{row.train.bytes / total:.1%}",
            f"{row.target_share:.0%}",
            f"{row.valid.documents:,}",
            " ".join(row.words[:6]),
        )
    out.print(sizes)
    confusion = Table("domain", "role", "documents", "labels", title="where the domains went")
    confusion.columns[2].justify = "right"
    for domain, counts in labels.confusion.items():
        documents = sum(counts.values())
        heaviest = sorted(counts, key=lambda name: -counts[name])
        shown = ", ".join(f"{name} {counts[name] / documents:.0%}" for name in heaviest[:4])
        rest = f" and {len(heaviest) - 4} more" if len(heaviest) > 4 else ""
        confusion.add_row(domain, labels.roles[domain], f"{documents:,}", shown + rest)
    out.print(confusion)
    examples = Table("label", "from", "beginning", title="examples")
    for row in labels.labels:
        for i, example in enumerate(row.examples):
            examples.add_row(
                "" if i else row.name,
                example.domain,
                example.text[:100],
                end_section=i == len(row.examples) - 1,
            )
    out.print(examples)
    for line in _remarks(labels, folder):
        out.print(line, markup=False, highlight=False)


def _remarks(labels: Labels, folder: Path) -> list[str]:
    import shlex

    found = labels.agreement
    lines = []
    if found.adjusted_mutual_information is not None:
        lines.append(
            "agreement with the old domains: adjusted mutual information "
            f"{found.adjusted_mutual_information:.3f}, homogeneity {found.homogeneity:.3f}, "
            f"completeness {found.completeness:.3f}"
        )
    if labels.mixed:
        shown = ", ".join(labels.mixed[:4]) + (", …" if len(labels.mixed) > 4 else "")
        lines.append(
            f"source and target text are mixed in {shown}: these count as source; "
            "--roles separates them"
        )
    if labels.left_out:
        lines.append(
            f"no training text for {', '.join(labels.left_out)}: "
            f"{sum(labels.left_out.values())} validation and test documents are in "
            f"{folder / 'left_out'}"
        )
    if labels.bad_rows:
        lines.append(f"{labels.bad_rows} bad rows were left out: see {folder / 'quarantine.jsonl'}")
    column = (
        "" if labels.text_column == "text" else f" --text-column {shlex.quote(labels.text_column)}"
    )
    lines.append(
        f"details are in {folder / 'labels.json'}; next: "
        f"cuvee corpus build {shlex.quote(str(folder))} -o CORPUS{column}"
    )
    return lines
