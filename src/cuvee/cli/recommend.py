"""`cuvee recommend`: from a table of runs to the mixture, or the stages, of a target run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from cuvee.cli.display.lines import say


def recommend(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="A table of runs (CSV, JSONL, Parquet), mixtures and metrics as two, a folder of "
            "RegMix's or olmix's layout, a search file, or a group of the store.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for the results.")
    ] = Path("recommendation"),
    objective: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=WEIGHT; may be repeated. Default: the mean of all metrics."),
    ] = None,
    higher: Annotated[
        list[str] | None, typer.Option(help="A metric for which higher is better.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="The target run's budget, for epochs and caps.")
    ] = None,
    available: Annotated[
        str | None, typer.Option(help="A corpus folder, or a JSON file of tokens by domain.")
    ] = None,
    epoch_cap: Annotated[
        float, typer.Option(help="The most epochs of a domain in --tokens.")
    ] = 4.0,
    cap: Annotated[
        list[str] | None, typer.Option(help="DOMAIN=SHARE: its largest mean share.")
    ] = None,
    floor: Annotated[
        list[str] | None, typer.Option(help="DOMAIN=SHARE: its smallest share in any stage.")
    ] = None,
    present: Annotated[
        str,
        typer.Option(
            "--from", help="natural, uniform, or a JSON file: the mixture to compare with."
        ),
    ] = "natural",
    stages: Annotated[int, typer.Option(min=1, max=3, help="The largest number of stages.")] = 3,
    caution: Annotated[
        float, typer.Option(min=0.0, help="Standard deviations added to a prediction.")
    ] = 1.0,
    pareto: Annotated[
        str | None, typer.Option(help="METRIC,METRIC: also print their Pareto front.")
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(help="Log-probabilities of target examples by domain, for MixMin."),
    ] = None,
    next_runs: Annotated[
        int,
        typer.Option("--next", min=0, max=1000, help="Number of runs to propose in a search file."),
    ] = 0,
    write: Annotated[
        list[str] | None,
        typer.Option(
            help="megatron, nemo, torchtitan, levanter, olmo_core, axolotl, llama_factory, trl, "
            "hf_datasets or schedule."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="The target run's optimizer steps.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=1, help="The target run's tokens per sequence.")
    ] = None,
    paths: Annotated[
        Path | None, typer.Option(help="JSON: the path of each domain's data.")
    ] = None,
    lengths: Annotated[Path | None, typer.Option(help="JSON: mean tokens per sample.")] = None,
    samples: Annotated[Path | None, typer.Option(help="JSON: samples by domain.")] = None,
    mixture: Annotated[
        str | None, typer.Option(help="Pattern of mixture columns: 'train_{}', 'phase_{phase}_{}'.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Metric column, or a pattern such as 'loss_{}'.")
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help="Share of the budget of each phase: '0.8,0.2'.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The column that names a run.")] = None,
    layout: Annotated[str | None, typer.Option(help="regmix or olmix: columns by name.")] = None,
    store: Annotated[str | None, typer.Option(help="SQLite file, URL or @FILE.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Recommend a mixture, or up to three stages, from small runs, and write it for a trainer.

    Example: cuvee recommend runs.csv --tokens 1_000_000_000 --available corpus --write megatron
    """
    from cuvee.recipes import recommend as recipe
    from cuvee.recommend.reading import LAYOUTS, Columns
    from cuvee.recommend.recommend import Request
    from cuvee.recommend.words import text
    from cuvee.recommend.writers import FORMATS
    from cuvee.recommend.writers.base import Target

    known = LAYOUTS.get(layout or "", Columns())
    if layout is not None and layout not in LAYOUTS:
        raise _mistake(f"--layout is {layout!r}: use {' or '.join(LAYOUTS)}")
    columns = Columns(
        mixture=mixture or known.mixture,
        metrics=tuple(metrics or known.metrics),
        shares=tuple(_number(part, "--phase") for part in phase.split(",")) if phase else (),
        key=key or known.key,
        higher=tuple(higher or ()),
    )
    runs = recipe.known_runs(sources, columns, store)
    if available is not None:
        runs = runs.with_available(recipe.available_tokens(available))
    request = Request(
        objective=_pairs(objective, "--objective") or None,
        tokens=tokens,
        epoch_cap=epoch_cap,
        caps=_pairs(cap, "--cap"),
        floors=_pairs(floor, "--floor"),
        present=recipe.read_numbers(Path(present)) if present.endswith(".json") else present,
        most_stages=stages,
        caution=caution,
        pareto=two_names(pareto, "--pareto"),
        outputs=outputs,
        seed=seed,
    )
    target = Target(
        steps=steps,
        sequence_length=sequence_length,
        paths={k: str(v) for k, v in recipe.read_object(paths).items()} if paths else {},
        lengths=recipe.read_numbers(lengths) if lengths else {},
        samples=recipe.read_counts(samples) if samples else {},
    )
    wanted = recipe.Outputs(output, tuple(write or ()), target, next_runs)
    found, files = recipe.recommend_and_write(runs, request, wanted)
    say(text(found) + "\n")
    for name in write or ():
        writer = FORMATS[name]
        notes = f"; {writer.notes}" if writer.notes else ""
        if writer.unit == "samples" and not lengths:
            notes += "; without --lengths, samples of all domains are taken to be equally long"
        say(f"{name}: weights of {writer.unit}{notes}")
    say("written: " + ", ".join(str(path) for path in files))


def _pairs(given: list[str] | None, option: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given or ():
        name, equals, value = text.rpartition("=")
        if not equals:
            raise _mistake(f"{option} is {text!r}: give NAME=NUMBER")
        if name in found:
            raise _mistake(f"{option} names {name} twice: give it once")
        found[name] = _number(value, option)
    return found


def two_names(given: str | None, option: str) -> tuple[str, str] | None:
    """Return the names in `A,B`, or None without the option. `ConfigError` for anything else."""
    if given is None:
        return None
    names = [name.strip() for name in given.split(",")]
    if len(names) != 2:
        raise _mistake(f"{option} is {given!r}: give two names, A,B")
    return names[0], names[1]


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _mistake(f"{option}: {text!r} is not a number")
    return value


def _mistake(message: str) -> Exception:
    from cuvee.core.errors import ConfigError

    return ConfigError(message)
