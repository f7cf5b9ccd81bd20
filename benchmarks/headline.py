"""Each headline claim beside what this machine measures: docs/results.md.

    python benchmarks/headline.py --corpus DIR --questions FILE… --tables DIR      about 3 hours
    python benchmarks/headline.py --corpus DIR … --only online --only decisions    some jobs only
    python benchmarks/headline.py --page docs/results.md --out DIR                 only the page

A job is another benchmark program at a size that fits. What its last line prints is kept in
OUT/JOB.json, and the same command continues after an interruption. `--import JOB FILE` takes a JSON
that was measured elsewhere. DIR of --tables holds RegMix's published tables (see recommend.py).

A claim has a bar. The verdict follows the interval: **holds** if all of it is on the claimed side
of the bar, **fails** if all of it is on the other side, else **open**. A figure without an interval
says "no interval". A claim whose job has not run is listed as not run.

The last line is one JSON object with a row for each claim.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCARCE = "scarce-code_python"


@dataclass(frozen=True)
class Job:
    """A benchmark program with its arguments; `{corpus}` and the like are filled in."""

    program: str
    arguments: str
    needs: tuple[str, ...] = ()


JOBS: dict[str, Job] = {
    "online": Job(
        "online.py",
        "--corpus {corpus} --variant scarce --targets code_python --target-bytes 75000 "
        "--batch-size 16 --seeds 5 --trials 8 --out {out}/online",
        ("corpus",),
    ),
    "agent": Job(
        "agent.py",
        "--corpus {corpus} --questions {questions} --regime scarce --target code_python "
        "--proxies 24 --out {out}/agent",
        ("corpus", "questions"),
    ),
    "unseen": Job("unseen.py", "--corpus {corpus} --out {out}/unseen", ("corpus",)),
    "recommend": Job("recommend.py", "--tables {tables}", ("tables",)),
    "decisions": Job("decision_time.py", ""),
    "signals": Job("probe_overhead.py", "--presets llama-5m --domains 22 --seconds 120"),
    "trainer": Job("controller_overhead.py", ""),
    "stream": Job("stream_speed.py", ""),
}


@dataclass(frozen=True)
class Claim:
    """A sentence, the published figure, and where ours stands in a job's JSON.

    `figure` returns a number or [estimate, low, high]. The claim is that it is `side` the `bar`.
    """

    text: str
    published: str
    job: str
    figure: Callable[[Mapping[str, Any]], Any]
    side: str
    bar: float


def of(*keys: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return what follows `keys` into nested objects."""

    def figure(result: Mapping[str, Any]) -> Any:
        found: Any = result
        for key in keys:
            found = found[key]
        return found

    return figure


def with_interval(key: str, interval: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: [result[key], *result[interval]]


def universal(result: Mapping[str, Any]) -> Any:
    """Return the gain over half/half of the first target of unseen.py."""
    target = next(iter(result["targets"].values()))
    name = "universal, untold"
    return [target["gain_to_half"][name], *target["ci95"][f"gain_to_half.{name}"]]


def scarce(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a figure of the first case (cap and schedule) of agent.py's scarce regime."""
    return lambda result: next(iter(result["scarce"].values()))[name]


CLAIMS = (
    Claim("AC-ODM reaches ODM's best loss in fewer steps", "0.34", "online",
          of(SCARCE, "steps_vs_odm", "ac_odm"), "below", 1.0),
    Claim("HDS reaches natural's best loss in fewer steps", "0.56", "online",
          of(SCARCE, "steps_vs_natural", "hds"), "below", 1.0),
    Claim("AC-ODM ends below the best static mixture found (nats)", "", "online",
          of(SCARCE, "vs_best_static", "ac_odm"), "below", 0.0),
    Claim("HDS ends below the best static mixture found (nats)", "", "online",
          of(SCARCE, "vs_best_static", "hds"), "below", 0.0),
    Claim("AC-ODM wins four fifths of the room from `even` to the best path found", "", "online",
          of(SCARCE, "share_of_room", "ac_odm"), "above", 0.8),
    Claim("AC-ODM with noise for a reward ends higher (nats)", "yes", "online",
          of(SCARCE, "noise_minus_real", "ac_odm"), "above", 0.0),
    Claim("AC-ODM beats the closed form `gain` (nats)", "", "online",
          of(SCARCE, "agent_minus_gain", "ac_odm"), "below", 0.0),
    Claim("HDS beats the closed form `gain` (nats)", "", "online",
          of(SCARCE, "agent_minus_gain", "hds"), "below", 0.0),
    Claim("AC-ODM learned on a proxy ends below the best static mixture (nats)", "yes", "online",
          of(SCARCE, "vs_best_static", "ac_odm_proxy"), "below", 0.0),
    Claim("Data Mixing Agent beats the best static mixture (relative fall of loss)", "", "agent",
          scarce("gain_vs_best_static"), "above", 0.0),
    Claim("The universal policy needs no proxy and beats half/half (relative fall, first target)",
          "", "unseen", universal, "above", 0.0),
    Claim("`recommend` ranks RegMix's runs (Spearman's ρ)", "0.987", "recommend",
          of("regmix_1m_spearman"), "above", 0.987),
    Claim("`recommend` picks the best of 256 real runs (regret, nats)", "", "recommend",
          of("regmix_regret_at_1"), "below", 0.01),
    Claim("Stages are never claimed where order cannot matter (share of worlds)", "", "recommend",
          of("false_phases"), "below", 0.05),
    Claim("A decision of the history agent at 52 domains (ms)", "", "decisions",
          of("full_52", "cpu_median"), "below", 20.0),
    Claim("AC-ODM's signals: time of a step over a plain one, 5M parameters", "", "signals",
          of("step_ratio_strided"), "below", 1.02),
    Claim("Steering the Hugging Face Trainer with ODM: time of a step over a plain one", "",
          "trainer", with_interval("hf_step_ratio_loss", "hf_step_ratio_loss_95"), "below", 1.01),
    Claim("the same with gradient alignment", "", "trainer",
          with_interval("hf_step_ratio_alignment", "hf_step_ratio_alignment_95"), "below", 1.02),
    Claim("The stream against a gather of known rows, rows of 2,048 tokens (speed)", "", "stream",
          of("limit_ratio_2048"), "above", 0.9),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A claim with what was measured."""

    claim: str
    published: str
    estimate: float | None
    interval: tuple[float, float] | None
    verdict: str
    seconds: float | None
    command: str


def judge(estimate: float, interval: tuple[float, float] | None, side: str, bar: float) -> str:
    """Return holds, fails or open."""
    low, high = interval or (estimate, estimate)
    if side == "above":
        low, high, bar = -high, -low, -bar
    verdict = "holds" if high < bar else "fails" if low >= bar else "open"
    return verdict if interval else f"{verdict}, no interval"


def row_of(claim: Claim, out: Path) -> Row:
    job = JOBS[claim.job]
    command = f"benchmarks/{job.program} {job.arguments}".strip()
    file = out / f"{claim.job}.json"
    if not file.exists():
        return Row(claim.text, claim.published, None, None, "not run", None, command)
    kept = json.loads(file.read_text())
    try:
        figure = claim.figure(kept["result"])
    except (KeyError, StopIteration):
        figure = None
    if figure is None:
        return Row(claim.text, claim.published, None, None, "no figure", kept["seconds"], command)
    values = figure if isinstance(figure, list) else [figure]
    interval = None
    if len(values) == 3 and None not in values[1:]:
        interval = (float(values[1]), float(values[2]))
    verdict = judge(float(values[0]), interval, claim.side, claim.bar)
    wanted = f"{verdict} ({claim.side} {claim.bar:g})"
    seconds = kept["seconds"]
    return Row(claim.text, claim.published, float(values[0]), interval, wanted, seconds, command)


def run_job(name: str, out: Path, inputs: Mapping[str, str]) -> None:
    """Run a job, unless its JSON exists, and keep what its last line printed."""
    file = out / f"{name}.json"
    job = JOBS[name]
    missing = [need for need in job.needs if not inputs.get(need)]
    if file.exists() or missing:
        print(
            f"{name}: {'done' if file.exists() else 'needs --' + ', --'.join(missing)}", flush=True
        )
        return
    filled = job.arguments.format(**inputs).split()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / job.program), *filled], stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        print(f"{name}: failed with exit code {done.returncode}; the others go on", flush=True)
        return
    keep(file, json.loads(done.stdout.splitlines()[-1]), seconds)
    print(f"{name}: {seconds:.0f} s", flush=True)


def keep(file: Path, result: Any, seconds: float | None) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"result": result, "seconds": seconds}))
    part.rename(file)


def page(rows: Sequence[Row]) -> str:
    """Return the rows as a page of Markdown."""
    lines = [
        "# Results",
        "",
        "Claims of the papers and of cuvee, and what the benchmarks measure. Written by",
        "`benchmarks/headline.py`, not by hand. Intervals are 95 %. A claim **holds** or **fails**",
        "if its whole interval is on one side of the bar, and is **open** otherwise. Claims that",
        "fail stay on this page.",
        "",
        "| claim | published | ours | 95 % interval | verdict | hours |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = "" if row.estimate is None else f"{row.estimate:.4g}"
        interval = "" if row.interval is None else f"{row.interval[0]:.4g} to {row.interval[1]:.4g}"
        hours = "" if row.seconds is None else f"{row.seconds / 3600:.2f}"
        lines.append(
            f"| {row.claim} | {row.published} | {ours} | {interval} | {row.verdict} | {hours} |"
        )
    commands = list(dict.fromkeys(row.command for row in rows))
    lines += ["", "Hours are those of the whole job on this machine.", "", "## Commands", "", "```"]
    return "\n".join([*lines, *commands, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="", help="folder of raw text")
    parser.add_argument("--questions", nargs="+", default=[], help="question files")
    parser.add_argument("--tables", default="", help="RegMix's published tables")
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--only", action="append", choices=sorted(JOBS), default=[])
    parser.add_argument("--import", dest="imported", nargs=2, action="append", default=[],
                        metavar=("JOB", "FILE"), help="use a JSON measured elsewhere")  # fmt: skip
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    inputs = {
        "corpus": options.corpus,
        "questions": " ".join(options.questions),
        "tables": options.tables,
        "out": str(options.out),
    }
    for name, file in options.imported:
        keep(options.out / f"{name}.json", json.loads(Path(file).read_text()), None)
    for name in options.only or ([] if options.page and not options.corpus else JOBS):
        run_job(name, options.out, inputs)
    rows = [row_of(claim, options.out) for claim in CLAIMS]
    if options.page:
        options.page.write_text(page(rows), encoding="utf-8")
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
