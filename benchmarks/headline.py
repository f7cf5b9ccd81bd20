"""Each headline claim beside what this machine measures: docs/results.md and the README's tables.

    python benchmarks/headline.py --corpus DIR --questions FILE… --tables DIR      about 3 hours
    python benchmarks/headline.py --corpus DIR … --only online --only decisions    some jobs only
    python benchmarks/headline.py --page                                           only the pages

A job is another benchmark program at a size that fits. What its last line prints is kept in
docs/lab/results/JOB.json, and the same command continues after an interruption: a job whose file
exists does not run again. The hours of a job that was interrupted are not known. `--only` also runs
what does not fit into three hours (`sizes`, `transfers`, `junk`, `misset`) or needs packages of its own
(`peers`). `--import JOB FILE` takes a JSON that was measured elsewhere. DIR of --tables
holds RegMix's published tables (see recommend.py). The pages are made of the kept files alone.

A claim has a bar. The verdict follows the interval: **holds** if all of it is on the claimed side
of the bar, **fails** if all of it is on the other side, else **open**. A figure without an interval
is only compared with the bar. A claim whose job has not run is listed as not run.

The last line is one JSON object with a row for each claim.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scale_page import with_figures

HERE = Path(__file__).parent
ROOT = HERE.parent
KEPT = ROOT / "docs" / "lab" / "results"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
SCALE = ROOT / "docs" / "lab" / "scale.md"
BEGIN, END = "<!-- written by benchmarks/headline.py -->", "<!-- to here -->"
SCARCE = "scarce-code_python"
MEASURED = "against `natural`"
"""The column of the README's table of methods that is written here."""
VARIATIONS = ("actor", "sft", "universal")
"""Other agents of ours, which are no baselines of the Data Mixing Agent."""


@dataclass(frozen=True)
class Job:
    """A benchmark program with its arguments; `{corpus}` and the like are filled in.

    `seeds` says of a result how often what was repeated; `tokens` is its training, all included.
    """

    program: str
    arguments: str
    needs: tuple[str, ...] = ()
    seeds: Callable[[Mapping[str, Any]], str] = lambda _: ""
    tokens: Callable[[Mapping[str, Any]], float | None] = lambda _: None
    fits: bool = True
    """Whether it runs without being named."""


def of(*keys: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return what follows `keys` into nested objects."""

    def figure(result: Mapping[str, Any]) -> Any:
        found: Any = result
        for key in keys:
            found = found[key]
        return found

    return figure


def scarce(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a figure of the first case (cap and schedule) of agent.py's scarce regime."""
    return lambda result: next(iter(result["scarce"].values()))[name]


def seeds_of_scarce(result: Mapping[str, Any]) -> str:
    return str(len(next(iter(scarce("average")(result).values()))))


def judged_seeds(variant: str) -> Callable[[Mapping[str, Any]], str]:
    def seeds(result: Mapping[str, Any]) -> str:
        found = result[variant]["seeds"]
        return f"{found['judged']} of {found['trained']}"

    return seeds


ONLINE = "--corpus {corpus} --batch-size 16 --trials 8 --workers 1"
QUESTIONS = "--corpus {corpus} --questions {questions}"


def on_variant(variant: str) -> Job:
    return Job(
        "online.py",
        f"{ONLINE} --variant {variant} --seeds 5 --out {{out}}/online "
        "--methods natural uniform gain odm ac_odm ac_odm_noise hds hds_noise",
        ("corpus",),
        judged_seeds(variant),
        of(variant, "cost_tokens", "everything"),
        fits=False,
    )


JOBS: dict[str, Job] = {
    "online": Job(
        "online.py",
        f"{ONLINE} --variant scarce --targets code_python --target-bytes 75000 --seeds 5 "
        "--out {out}/online",
        ("corpus",),
        judged_seeds(SCARCE),
        of(SCARCE, "cost_tokens", "everything"),
    ),
    "agent": Job(
        "agent.py",
        f"{QUESTIONS} --regime scarce --target code_python --judged agent --caps 4 "
        "--schedules cosine --tokens 614400 --target-bytes 75000 --proxies 24 --seeds 3 "
        "--out {out}/agent",
        ("corpus", "questions"),
        seeds_of_scarce,
        scarce("cost"),
    ),
    "unseen": Job(
        "unseen.py",
        "--corpus {corpus} --targets 1 --out {out}/unseen",
        ("corpus",),
        lambda result: str(result["seeds"]),
        of("cost"),
    ),
    "ranks": Job("recommend.py", "--tables {tables} --parts ranks", ("tables",)),
    "regret": Job("recommend.py", "--tables {tables} --parts regret", ("tables",)),
    "stages": Job("recommend.py", "--tables {tables} --parts stages", ("tables",)),
    "decisions": Job(
        "decision_time.py", "", seeds=lambda result: f"{result['decisions']} decisions"
    ),
    "signals": Job(
        "probe_overhead.py",
        "--presets llama-5m --domains 22 --seconds 120",
        seeds=lambda result: f"{result['cases'][-1]['rounds']} rounds",
    ),
    "trainer": Job(
        "controller_overhead.py", "", seeds=lambda result: f"{result['intervals']} intervals"
    ),
    "stream": Job("stream_speed.py", "--seconds 2"),
    "report": Job("report.py", "", seeds=lambda result: f"{result['runs']} runs"),
    "scale": Job("scale.py", ""),
    "peers": Job(
        "stream_speed.py",
        "--seconds 2 --peer-seconds 2 --peers {peers}",
        ("peers",),
        fits=False,
    ),
    "junk": on_variant("junk"),
    "misset": on_variant("misset"),
    "transfers": Job(
        "agent.py",
        f"{QUESTIONS} --out {{out}}/transfers",
        ("corpus", "questions"),
        lambda _: "2; of transfers 1",
        of("cost", "tokens"),
        fits=False,
    ),
    "sizes": Job(
        "agent_checks.py",
        f"--check sizes {QUESTIONS} --out {{out}}/transfers",
        ("corpus", "questions"),
        lambda result: f"{result['seeds']}, {result['mixtures']} mixtures",
        of("cost", "tokens"),
        fits=False,
    ),
}


@dataclass(frozen=True)
class Claim:
    """A sentence, who made it and the published figure, and where ours stands in a job's JSON.

    `figure` returns a number or [estimate, low, high]. The claim is that it is `side` the `bar`.
    `absent` says what it means that there is no figure.
    """

    text: str
    source: str
    published: str
    job: str
    figure: Callable[[Mapping[str, Any]], Any]
    side: str
    bar: float
    absent: str = "no figure"


def with_interval(key: str, interval: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: [result[key], *result[interval]]


def both(figure: Any, bounds: Sequence[float] | None) -> Any:
    return None if figure is None else [figure, *(bounds or (None, None))]


def universal(way: str, against: str = "half") -> Callable[[Mapping[str, Any]], Any]:
    """Return a gain of the universal policy on the first target of unseen.py."""

    def figure(result: Mapping[str, Any]) -> Any:
        target = next(iter(result["targets"].values()))
        name = f"universal, {way}"
        gain = f"gain_to_{against}"
        return both(target[gain][name], target["ci95"][f"{gain}.{name}"])

    return figure


def least_gain(result: Mapping[str, Any]) -> Any:
    """Return the gain over the baseline over which it is least."""
    gains = scarce("gain_vs")(result)
    hardest = min((name for name in gains if name not in VARIATIONS), key=gains.__getitem__)
    return both(gains[hardest], scarce("ci95")(result)[hardest])


def transferred(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: both(
        result["transfer"][name], result["ci95"].get(f"transfer.{name}.agent")
    )


def main_agent(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: both(result[name], result["ci95"].get(name))


def ranked(size: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return Spearman's ρ between proxies of a width and target runs."""

    def figure(result: Mapping[str, Any]) -> Any:
        found = result["sizes"][size]["feedback"]
        return both(found["value"], found["interval"])

    return figure


def ratio(*keys: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a difference in nats as a ratio of perplexities."""

    def figure(result: Mapping[str, Any]) -> Any:
        found = of(*keys)(result)
        return found and [None if nats is None else math.exp(nats) for nats in found]

    return figure


def last_case(name: str, interval: str | None = None) -> Callable[[Mapping[str, Any]], Any]:
    def figure(result: Mapping[str, Any]) -> Any:
        case = result["cases"][-1]
        return both(case[name], case[interval] if interval else None)

    return figure


def share_of(count: float, total: int) -> list[float]:
    """Return a share with its 95 % interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    half = z * spread / (1 + z * z / total)
    return [share, max(0.0, middle - half), min(1.0, middle + half)]


def false_phases(result: Mapping[str, Any]) -> Any:
    """Return how often stages were claimed, of the half of the worlds where order cannot matter."""
    worlds = result["stages"]["worlds"] // 2
    return share_of(round(result["false_phases"] * worlds), worlds)


def slowest_decision(result: Mapping[str, Any]) -> Any:
    """Return the seconds of the slowest method of scale.py, without those that refuse."""
    methods = [one for one in result["decisions"].values() if isinstance(one, Mapping)]
    return max(one["next_s"] for one in methods if "next_s" in one)


AC_ODM, HDS, DMA, REGMIX, OURS = "AC-ODM", "HDS", "Data Mixing Agent", "RegMix", "cuvee"
NEVER = "**open**: not every seed reaches it"
CLAIMS = (
    Claim("AC-ODM reaches ODM's best loss in fewer steps", AC_ODM, "0.34", "online", of(SCARCE,
          "steps_vs_odm", "ac_odm"), "below", 1.0, NEVER),
    Claim("AC-ODM reaches natural's best loss in fewer steps", OURS, "", "online", of(SCARCE,
          "steps_vs_natural", "ac_odm"), "below", 1.0, NEVER),
    Claim("HDS reaches natural's best loss in fewer steps", HDS, "0.56", "online", of(SCARCE,
          "steps_vs_natural", "hds"), "below", 1.0, NEVER),
    Claim("HDS reaches ODM's best loss in fewer steps", OURS, "", "online", of(SCARCE,
          "steps_vs_odm", "hds"), "below", 1.0, NEVER),
    Claim("AC-ODM's final perplexity over ODM's", AC_ODM, "0.79", "online", ratio(SCARCE,
          "vs_odm", "ac_odm"), "below", 1.0),
    Claim("HDS's final perplexity over natural's", OURS, "", "online", ratio(SCARCE, "vs_natural",
          "hds"), "below", 1.0),
    Claim("AC-ODM learned on a half as wide proxy ends below ODM (nats)", AC_ODM, "yes", "online",
          of(SCARCE, "vs_odm", "ac_odm_proxy"), "below", 0.0),
    Claim("AC-ODM learned on a half as wide proxy ends below the best static mixture (nats)",
          OURS, "", "online", of(SCARCE, "vs_best_static", "ac_odm_proxy"), "below", 0.0),
    Claim("AC-ODM with noise for a reward ends higher (nats)", OURS, "", "online", of(SCARCE,
          "noise_minus_real", "ac_odm"), "above", 0.0),
    Claim("HDS with noise for a reward ends higher (nats)", OURS, "", "online", of(SCARCE,
          "noise_minus_real", "hds"), "above", 0.0),
    Claim("AC-ODM ends below the best static mixture found (nats)", OURS, "", "online", of(SCARCE,
          "vs_best_static", "ac_odm"), "below", 0.0),
    Claim("HDS ends below the best static mixture found (nats)", OURS, "", "online", of(SCARCE,
          "vs_best_static", "hds"), "below", 0.0),
    Claim("AC-ODM beats the closed form `gain` (nats)", OURS, "", "online", of(SCARCE,
          "agent_minus_gain", "ac_odm"), "below", 0.0),
    Claim("HDS beats the closed form `gain` (nats)", OURS, "", "online", of(SCARCE,
          "agent_minus_gain", "hds"), "below", 0.0),
    Claim("Scarce target: AC-ODM wins four fifths of the room from `even` to the best path found",
          OURS, "", "online", of(SCARCE, "share_of_room", "ac_odm"), "above", 0.8),
    Claim("Scarce target: HDS wins four fifths of the room", OURS, "", "online", of(SCARCE,
          "share_of_room", "hds"), "above", 0.8),
    Claim("Junk domains: AC-ODM wins four fifths of the room from natural or uniform", OURS, "",
          "junk", of("junk", "share_of_room", "ac_odm"), "above", 0.8),
    Claim("Junk domains: HDS wins four fifths of the room", OURS, "", "junk", of("junk",
          "share_of_room", "hds"), "above", 0.8),
    Claim("Misset blend: AC-ODM wins four fifths of the room from uniform", OURS, "", "misset",
          of("misset", "share_of_room", "ac_odm"), "above", 0.8),
    Claim("Misset blend: HDS wins four fifths of the room", OURS, "", "misset", of("misset",
          "share_of_room", "hds"), "above", 0.8),
    Claim("Misset blend: AC-ODM with noise for a reward ends higher (nats)", OURS, "", "misset",
          of("misset", "noise_minus_real", "ac_odm"), "above", 0.0),
    Claim("Scarce target: Data Mixing Agent beats the best static mixture (fall of loss)", OURS,
          "", "agent", scarce("gain_vs_best_static"), "above", 0.0),
    Claim("Scarce target: Data Mixing Agent beats each baseline (least fall of loss)", DMA,
          "+3.02 points", "agent", least_gain, "above", 0.0),
    Claim("Even target: Data Mixing Agent beats the best of seven baselines (fall of loss)", DMA,
          "+3.02 points", "transfers", main_agent("avg_gain_vs_best_baseline"), "above", 0.0),
    Claim("Even target: Data Mixing Agent needs fewer source tokens than that baseline (share saved)",
          DMA, "2.14B of 21B tokens", "transfers", main_agent("source_tokens_saved"), "above", 0.0),
    Claim("Data Mixing Agent gains on unseen source domains (fall of loss)", DMA, "yes",
          "transfers", transferred("source"), "above", 0.0),
    Claim("Data Mixing Agent gains with another model (fall of loss)", DMA, "yes", "transfers",
          transferred("model"), "above", 0.0),
    Claim("Data Mixing Agent gains in another domain space (fall of loss)", DMA, "yes",
          "transfers", transferred("space"), "above", 0.0),
    Claim("Data Mixing Agent gains on another target field (fall of loss)", DMA,
          "46.30 against 44.85", "transfers", transferred("field"), "above", 0.0),
    Claim("Proxies of width 16 rank mixtures as target runs do (Spearman's ρ)", DMA, "", "sizes",
          ranked("16"), "above", 0.8),
    Claim("Proxies of width 32 rank mixtures as target runs do (Spearman's ρ)", DMA, "", "sizes",
          ranked("32"), "above", 0.8),
    Claim("Proxies of width 64 rank mixtures as target runs do (Spearman's ρ)", DMA, "", "sizes",
          ranked("64"), "above", 0.8),
    Claim("The universal policy needs no proxy and beats half/half (fall of loss, first target)",
          OURS, "", "unseen", universal("untold"), "above", 0.0),
    Claim("The universal policy with feedback beats half/half (fall of loss)", OURS, "", "unseen",
          universal("told"), "above", 0.0),
    Claim("The universal policy beats the best static mixture (fall of loss)", OURS, "", "unseen",
          universal("untold", "best"), "above", 0.0),
    Claim("`recommend` ranks RegMix's runs (Spearman's ρ)", REGMIX, "0.987", "ranks",
          with_interval("regmix_1m_spearman", "regmix_1m_spearman_95"), "above", 0.987),
    Claim("`recommend` picks the best of 256 real runs, from 512 (regret, nats)", OURS, "",
          "ranks", of("regmix_regret_at_1"), "below", 0.01),
    Claim("`recommend` from 64 runs: regret less that of RegMix's procedure (nats)", OURS, "",
          "regret", of("regret", "64", "ours_less_regmix"), "below", 0.0),
    Claim("Stages are never claimed where order cannot matter (share of worlds)", OURS, "",
          "stages", false_phases, "below", 0.05),
    Claim("A decision of the history agent at 52 domains (ms)", OURS, "", "decisions",
          of("full_52", "cpu_median"), "below", 20.0),
    Claim("AC-ODM's signals: time of a step over a plain one, 5M parameters", AC_ODM, "1.004",
          "signals", last_case("step_ratio_strided_cpu", "step_ratio_strided_cpu_ci95"), "below",
          1.02),
    Claim("AC-ODM's signals: memory over that of a plain step", AC_ODM, "1.02", "signals",
          last_case("memory_ratio"), "below", 1.05),
    Claim("Steering the Hugging Face Trainer with ODM: time of a step over a plain one", OURS, "",
          "trainer", with_interval("hf_step_ratio_loss", "hf_step_ratio_loss_95"), "below", 1.01),
    Claim("Steering it with gradient alignment: time of a step over a plain one", OURS, "",
          "trainer", with_interval("hf_step_ratio_alignment", "hf_step_ratio_alignment_95"),
          "below", 1.02),
    Claim("Steering it with AC-ODM: time of a step over a plain one", OURS, "", "trainer",
          with_interval("hf_step_ratio_ac_odm", "hf_step_ratio_ac_odm_95"), "below", 1.1),
    Claim("The stream against a gather of known rows, rows of 2,048 tokens (speed)", OURS, "",
          "stream", of("limit_ratio_2048"), "above", 0.9),
    Claim("The stream against a gather, rows of 64 tokens (speed)", OURS, "", "stream",
          of("limit_ratio_64"), "above", 0.5),
    Claim("A report of 200 runs over 52 domains (s of one processor)", OURS, "", "report",
          of("cpu_seconds"), "below", 15.0),
    Claim("A report of 200 runs over 52 domains (MB)", OURS, "", "report", of("megabytes"),
          "below", 6.0),
    Claim("10⁴ domains, 10¹³ tokens: state of the stream (MB)", OURS, "", "scale",
          of("stream", "state_megabytes"), "below", 1.0),
    Claim("10⁴ domains, interval 10⁵: the slowest decision, agents before they learn (s)", OURS,
          "", "scale", slowest_decision, "below", 1.0),
    Claim("A report of four runs over 10⁴ domains (MB)", OURS, "", "scale",
          lambda result: result["report"][0]["megabytes"], "below", 6.0),
    Claim("The stream against the fastest peer whose weights can change, rows of 64 tokens (speed)", OURS, "",
          "peers", of("vs_best_dynamic_peer"), "above", 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A claim with what was measured."""

    claim: str
    source: str
    published: str
    estimate: float | None
    interval: tuple[float, float] | None
    seeds: str
    tokens: float | None
    hours: float | None
    verdict: str
    job: str
    command: str


def judge(estimate: float, interval: tuple[float, float] | None, side: str, bar: float) -> str:
    """Return the verdict in words. Only an interval makes a claim hold or fail."""
    other = {"above": "below", "below": "above"}[side]
    if interval is None:
        where = side if (estimate > bar) == (side == "above") and estimate != bar else f"not {side}"
        return f"{where} {bar:g}, without an interval"
    low, high = interval
    if (low > bar) if side == "above" else (high < bar):
        return f"**holds**: the interval is {side} {bar:g}"
    if (high <= bar) if side == "above" else (low >= bar):
        return f"**fails**: the interval is not {side} {bar:g}"
    return f"**open**: the interval reaches {other} {bar:g}"


def row_of(claim: Claim, kept: Path) -> Row:
    job = JOBS[claim.job]
    row: dict[str, Any] = {
        "claim": claim.text,
        "source": claim.source,
        "published": claim.published,
    }
    row |= {"job": claim.job, "command": command_of(job)}
    nothing: dict[str, Any] = {
        "estimate": None,
        "interval": None,
        "seeds": "",
        "tokens": None,
        "hours": None,
    }
    file = kept / f"{claim.job}.json"
    if not file.exists():
        return Row(**row, **nothing, verdict="not run")
    measured = json.loads(file.read_text())
    result, seconds = measured["result"], measured["seconds"]
    row |= {"seeds": known(job.seeds, result) or "", "tokens": known(job.tokens, result)}
    row["hours"] = None if seconds is None else seconds / 3600
    figure = known(claim.figure, result)
    if figure is None:
        return Row(**row, estimate=None, interval=None, verdict=claim.absent)
    values = figure if isinstance(figure, list) else [figure]
    interval = None
    if len(values) == 3 and None not in values[1:]:
        interval = (float(values[1]), float(values[2]))
    estimate = float(values[0])
    verdict = judge(estimate, interval, claim.side, claim.bar)
    return Row(**row, estimate=estimate, interval=interval, verdict=verdict)


def known(figure: Callable[[Mapping[str, Any]], Any], result: Mapping[str, Any]) -> Any:
    """Return a figure, or None if the result does not have it."""
    try:
        return figure(result)
    except (KeyError, StopIteration, IndexError):
        return None


def command_of(job: Job) -> str:
    """Return the command with names in place of the reader's folders."""
    inputs = {name: name.upper() for name in ("corpus", "questions", "tables", "peers", "out")}
    return f"python benchmarks/{job.program} {job.arguments.format(**inputs)}".strip()


def run_job(name: str, kept: Path, inputs: Mapping[str, str]) -> None:
    """Run a job, unless its JSON exists, and keep what its last line printed."""
    file = kept / f"{name}.json"
    job = JOBS[name]
    missing = [need for need in job.needs if not inputs.get(need)]
    if file.exists() or missing:
        print(
            f"{name}: {'done' if file.exists() else 'needs --' + ', --'.join(missing)}", flush=True
        )
        return
    filled = job.arguments.format(**inputs).split()
    begun = Path(inputs["out"]) / f"{name}.begun"
    interrupted = begun.exists()
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.touch()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / job.program), *filled], stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        print(f"{name}: failed with exit code {done.returncode}; the others go on", flush=True)
        return
    keep(file, json.loads(done.stdout.splitlines()[-1]), None if interrupted else seconds)
    begun.unlink()
    print(f"{name}: {seconds:.0f} s", flush=True)


def keep(file: Path, result: Any, seconds: float | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    text = json.dumps({"seconds": seconds, "result": result}, indent=1)
    part.write_text(f"{text}\n", encoding="utf-8")
    part.rename(file)


def take(file: Path) -> tuple[Any, float | None]:
    """Return result and seconds of a kept file, or of a log whose last line is a job's JSON."""
    text = file.read_text(encoding="utf-8").strip()
    try:
        found = json.loads(text)
    except ValueError:
        found = json.loads(text.splitlines()[-1])
    if isinstance(found, dict) and set(found) == {"seconds", "result"}:
        return found["result"], found["seconds"]
    return found, None


def figures_of(row: Row) -> tuple[str, str]:
    """Return estimate and interval as text."""
    ours = "" if row.estimate is None else number(row.estimate)
    between = "" if row.interval is None else " to ".join(map(number, row.interval))
    return ours, between


def number(value: float) -> str:
    """Return a figure with four digits, or with five decimals if it is small."""
    shown = f"{value:.5f}" if abs(value) < 0.001 else f"{value:.4g}"
    return shown.replace("-", "−")


def cost_of(row: Row) -> str:
    tokens = "" if row.tokens is None else f"{row.tokens / 1e6:.0f}M tokens"
    hours = "" if row.hours is None else f"{row.hours:.2f} h"
    return ", ".join(filter(None, (tokens, hours)))


def page(rows: Sequence[Row]) -> str:
    """Return the rows as a page of Markdown."""
    verdicts = [row.verdict for row in rows]
    counts = {
        word: sum(verdict.startswith(f"**{word}**") for verdict in verdicts)
        for word in ("holds", "fails", "open")
    }
    run = sum(verdict != "not run" for verdict in verdicts)
    lines = [
        "# Results",
        "",
        "Claims of the papers and of cuvee, and what the benchmarks measure. Written by",
        "`benchmarks/headline.py` from the files in `docs/lab/results`, not by hand. Intervals are",
        "95 %. A claim **holds** or **fails** if its whole interval is on one side of the bar, and is",
        "**open** otherwise. Claims that fail stay on this page.",
        "",
        f"Of {len(rows)} claims, {run} are measured: {counts['holds']} hold, {counts['fails']} fail,"
        f" {counts['open']} are open,",
        f"and {run - sum(counts.values())} have no interval. Models have 0.1 million parameters unless"
        " the claim says otherwise.",
        "Times are ratios within a run, or processor time, on two cores that other work shared; hours",
        "are by the clock of this busy machine.",
        "",
        "| claim | by | published | ours | 95 % interval | seeds | total cost of the job | verdict | job |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.claim} | {row.source} | {row.published} | {' | '.join(figures_of(row))} | {row.seeds} "
        f"| {cost_of(row)} | {row.verdict} | {row.job} |"
        for row in rows
    ]
    lines += [
        "",
        "Seeds of online runs: the intervals are over those that the search for the best path did not",
        "use. Tokens are those of all training of the job, proxies and the search included.",
        "Published figures are at 1 to 3 billion parameters, ours at 0.1 million.",
        "",
        "## Commands",
        "",
        "| job | command |",
        "|---|---|",
    ]
    lines += [f"| {name} | `{command_of(job)}` |" for name, job in JOBS.items()]
    return "\n".join([*lines, ""])


def readme_table(rows: Sequence[Row]) -> str:
    """Return the claims that were measured with an interval, as the README's table."""
    lines = ["| claim | published | ours (95 % interval) | verdict |", "|---|---|---|---|"]
    for row in rows:
        if row.interval is not None:
            ours, between = figures_of(row)
            verdict = row.verdict.partition(":")[0]
            lines.append(f"| {row.claim} | {row.published} | {ours} ({between}) | {verdict} |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """Return the README with the table between its two marks."""
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    return between.sub(lambda _: f"\n{table}\n\n", text)


def with_measured(text: str, kept: Path) -> str:
    """Return the README with the column `MEASURED` of its table of methods filled in.

    A cell has the difference in final loss to `natural` of each method that the row names, as the
    job `online` measured it. It is empty for methods that the job does not have.
    """
    found = known(of(SCARCE, "vs_natural"), result_of("online", kept) or {}) or {}
    lines = text.split("\n")
    heads = [i for i, line in enumerate(lines) if f"| {MEASURED} |" in line]
    for head in heads:
        place = cells_of(lines[head]).index(MEASURED)
        for i in range(head + 2, len(lines)):
            if not lines[i].startswith("|"):
                break
            cells = cells_of(lines[i])
            cells[place] = against_natural(re.findall(r"`(\w+)`", cells[0]), found)
            lines[i] = f"| {' | '.join(cells)} |"
    return "\n".join(lines)


def result_of(job: str, kept: Path) -> Mapping[str, Any] | None:
    """Return what a job measured, or None if it has not run."""
    file = kept / f"{job}.json"
    if not file.exists():
        return None
    result: Mapping[str, Any] = json.loads(file.read_text())["result"]
    return result


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def against_natural(names: Sequence[str], found: Mapping[str, Sequence[float]]) -> str:
    """Return the differences of methods, and of those that were learned on proxies."""
    said = []
    for name in names:
        for key, note in ((name, ""), (f"{name}_proxy", "from proxies ")):
            if key in found:
                mean, low, high = map(number, found[key])
                who = f"`{name}` " if len(names) > 1 else ""
                said.append(f"{who}{note}{mean} ({low} to {high})")
    return "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="", help="folder of raw text")
    parser.add_argument("--questions", nargs="+", default=[], help="question files")
    parser.add_argument("--tables", default="", help="RegMix's published tables")
    parser.add_argument("--peers", default="", help="made by benchmarks/peers/make_venv.sh")
    parser.add_argument("--out", type=Path, default=Path("runs/headline"), help="for the runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the jobs' JSON")
    parser.add_argument("--page", action="store_true", help="write the pages; run no job")
    parser.add_argument("--only", action="append", choices=sorted(JOBS), default=[])
    parser.add_argument("--import", dest="imported", nargs=2, action="append", default=[],
                        metavar=("JOB", "FILE"), help="use a JSON measured elsewhere")  # fmt: skip
    options = parser.parse_args()
    if unknown := {name for name, _ in options.imported} - set(JOBS):
        parser.error(f"--import: there is no job {', '.join(unknown)}; jobs are {', '.join(JOBS)}")
    inputs = {
        "corpus": options.corpus,
        "questions": " ".join(options.questions),
        "tables": options.tables,
        "peers": options.peers,
        "out": str(options.out),
    }
    for name, file in options.imported:
        keep(options.kept / f"{name}.json", *take(Path(file)))
    jobs = options.only or [name for name, job in JOBS.items() if job.fits]
    for name in [] if options.page or options.imported else jobs:
        run_job(name, options.kept, inputs)
    rows = [row_of(claim, options.kept) for claim in CLAIMS]
    if options.kept == KEPT:
        PAGE.write_text(page(rows), encoding="utf-8")
        readme = with_table(README.read_text(encoding="utf-8"), readme_table(rows))
        README.write_text(with_measured(readme, options.kept), encoding="utf-8")
        scale = with_figures(SCALE.read_text(encoding="utf-8"), result_of("scale", options.kept))
        SCALE.write_text(scale, encoding="utf-8")
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
