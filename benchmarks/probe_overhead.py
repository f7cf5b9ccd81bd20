"""The cost of probes in a training step: time, memory, and against separate backward passes.

    python benchmarks/probe_overhead.py [--presets llama-1m llama-5m] [--domains 22 52]
                                        [--seconds 300] [--profile]

A case is a model and a number of domains K, with 16 rows × 256 tokens per step, `LMTrainer`'s loss
and AdamW, on one CPU thread (on a GPU: bf16, and 50m and 410m). Token ids are drawn from one Zipf
law per domain; their meaning does not matter here. The probes are those of AC-ODM and HDS:
alignment, loss by domain, weight norms.

Time. Each round does three steps on the same batch, in random order: `without` any probe,
`measured`, and `unmeasured` (probes attached, but off by their stride). Ratios to `without` are
taken within a round. Reported are medians over rounds with a 95 % bootstrap interval over rounds.
`step_ratio` measures each step; `step_ratio_strided` is for an interval of 10 steps at the default
stride. Both include the work at the interval's end. `*_cpu` are the same from processor time, which
other processes on the machine disturb less.

Memory. The peak resident set of a new process that trains two steps, with and without probes, with
every large tensor in its own pages. `memory_ratio` is of the whole process, `memory_ratio_tensors`
without what was resident before the model was built. On a GPU: the peak of allocated memory.

Separate backward passes. For each domain in the batch: a forward pass of its rows, and the gradient
of its mean loss with respect to the measured layers only, which is the cheapest way without the
probe. `vs_separate_backward` compares that, on a CPU in processor time, with the time of the
alignment's sums (`probe_seconds`, measured inside the step).

Errors. Largest |Ĝ_ij − G_ij| / (‖g_i‖‖g_j‖): `max_rel_error` in exact mode, `max_rel_error_default`
with the default memory limit (sketched for large K).

The last line is one JSON object; its first figures are the worst over K of the largest preset.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tokenizers
import torch
from torch import Tensor

from cuvee.core.domain import Domain
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.base import Context, Meter, MicroBatch
from cuvee.probes.layer_taps import find_layers
from cuvee.probes.loss import LossByDomain
from cuvee.probes.norms import WeightNorms
from cuvee.probes.sketch import GradientSums
from cuvee.training.loss import NextTokenLoss
from cuvee.training.model import build_model

ROWS, LENGTH, INTERVAL = 16, 256, 10
KINDS = ("without", "measured", "unmeasured")


class Vocabulary:
    def __init__(self, size: int) -> None:
        self.vocab_size = size
        self.end_of_text = 0

    def tokenizer(self) -> tokenizers.Tokenizer:
        raise NotImplementedError("the tokens are random numbers")


class Step:
    """A bare training step: forward, backward, AdamW."""

    def __init__(self, preset: str, device: torch.device) -> None:
        gpu = device.type == "cuda"
        self.device, self.vocabulary = device, 50_304 if gpu else 4096
        self.model = build_model(preset, Vocabulary(self.vocabulary)).to(device)
        self.loss = NextTokenLoss(self.model, compute=torch.bfloat16 if gpu else torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.context = Context(self.model, device)

    def batch(self, count: int, generator: np.random.Generator) -> MicroBatch:
        domain_B = generator.integers(0, count, ROWS)
        ranks_BL = generator.zipf(1.2, (ROWS, LENGTH)) + 37 * domain_B[:, None]
        counted_BL = torch.ones(ROWS, LENGTH, dtype=torch.bool, device=self.device)
        counted_BL[:, -1] = False
        return MicroBatch(
            tokens_BL=torch.from_numpy(ranks_BL % self.vocabulary).to(self.device),
            domain_BL=torch.from_numpy(domain_B).to(self.device)[:, None].expand(ROWS, LENGTH),
            counted_BL=counted_BL,
            denominator=float(ROWS * (LENGTH - 1)),
        )

    def __call__(self, batch: MicroBatch, meters: Sequence[Meter], step: int = 0) -> None:
        for meter in meters:
            meter.begin_step(step)
        for meter in meters:
            meter.before_forward(batch)
        loss, loss_BL = self.loss(batch.tokens_BL, batch.counted_BL, batch.bound())
        for meter in meters:
            meter.after_forward(batch, loss_BL)
        loss.backward()  # type: ignore[no-untyped-call]
        for meter in meters:
            meter.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def attach(self, count: int, **options: Any) -> list[Meter]:
        probes = (GradientAlignment(**options), LossByDomain(), WeightNorms())
        meters: list[Meter] = [probe.attach(self.context) for probe in probes]
        begin(meters, count)
        return meters

    def separate(self, batch: MicroBatch, count: int) -> Tensor:
        """(K, weights) gradients of each domain's mean loss, by one forward and backward pass
        each."""
        layers = find_layers(self.model, None)
        weights: list[Tensor] = [layer.get_parameter("weight") for layer in layers.values()]
        gradients = torch.zeros(
            count, sum(weight.numel() for weight in weights), device=self.device
        )
        for k in torch.unique(batch.domain_BL[:, 0]).tolist():
            rows = batch.domain_BL[:, 0] == k
            counted_BL = batch.counted_BL[rows]
            loss, _ = self.loss(batch.tokens_BL[rows], counted_BL, float(counted_BL.sum()))
            gradients[k] = torch.cat(
                [part.reshape(-1) for part in torch.autograd.grad(loss, weights)]
            )
        return gradients


def begin(meters: Sequence[Meter], count: int) -> None:
    domains = tuple(Domain(f"domain{k}", tokens=1) for k in range(count))
    for meter in meters:
        meter.begin_interval(domains)


def end(meters: Sequence[Meter]) -> None:
    for meter in meters:
        meter.read(meter.sums())


def clock(work: Callable[[], object], device: torch.device) -> np.ndarray:
    """(wall, processor) seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return np.array([time.perf_counter() - before[0], time.process_time() - before[1]])


def time_case(
    step: Step, count: int, seconds: float, generator: np.random.Generator
) -> dict[str, Any]:
    meters: dict[str, list[Meter]] = {
        "without": [],
        "measured": step.attach(count, stride=1),
        "unmeasured": step.attach(count, stride=10**9),
    }

    def next_interval() -> None:
        end(meters["measured"])
        begin(meters["measured"], count)

    for kind in KINDS:  # warms up, and takes the one step that an interval always measures
        step(step.batch(count, generator), meters[kind])
    rounds: list[list[np.ndarray]] = []
    ends, stop = [], time.monotonic() + seconds
    while time.monotonic() < stop or len(rounds) < 5:
        batch, times = step.batch(count, generator), {}
        for kind in generator.permutation(KINDS):
            times[kind] = clock(partial(step, batch, meters[kind]), step.device)
        rounds.append([times[kind] for kind in KINDS])
        ends.append(clock(next_interval, step.device))
    for meter in [*meters["measured"], *meters["unmeasured"]]:
        meter.close()
    return {**ratios(np.array(rounds), np.array(ends)), "rounds": len(rounds)}


def ratios(seconds_R32: np.ndarray, ends_R2: np.ndarray) -> dict[str, Any]:
    """Medians over R rounds of ratios within a round, and their bootstrap intervals."""
    share = math.ceil(INTERVAL / GradientAlignment().stride) / INTERVAL
    found: dict[str, Any] = {}
    chosen_NR = np.random.default_rng(0).integers(0, len(seconds_R32), (2000, len(seconds_R32)))
    for column, suffix in ((0, ""), (1, "_cpu")):
        without_R, measured_R, unmeasured_R = seconds_R32[:, :, column].T
        end_R = np.median(ends_R2[:, column]) / INTERVAL / without_R
        each_R = measured_R / without_R + end_R
        strided_R = share * measured_R / without_R + (1 - share) * unmeasured_R / without_R + end_R
        for name, ratio_R in (("step_ratio", each_R), ("step_ratio_strided", strided_R)):
            found[name + suffix] = float(np.median(ratio_R))
            low, high = np.quantile(np.median(ratio_R[chosen_NR], axis=1), [0.025, 0.975])
            found[f"{name}{suffix}_ci95"] = [float(low), float(high)]
        found[f"step_seconds{suffix}"] = float(np.median(without_R))
    found["interval_end_seconds"] = float(np.median(ends_R2[:, 0]))
    return found


def direct_case(step: Step, count: int, generator: np.random.Generator) -> dict[str, float]:
    """Seconds per step inside the alignment's sums.

    They are measured there because the difference of two whole steps is noisier than they are long.
    """
    meters, spent, original = step.attach(count, stride=1), [], GradientSums.add

    def timed(*arguments: Any) -> None:
        spent.append(clock(lambda: original(*arguments), step.device))

    GradientSums.add = timed  # type: ignore[method-assign, assignment]
    try:
        steps = []
        for _ in range(5):
            spent.clear()
            step(step.batch(count, generator), meters)
            steps.append(np.sum(spent, axis=0))
    finally:
        GradientSums.add = original  # type: ignore[method-assign]
        for meter in meters:
            meter.close()
    wall, cpu = np.median(steps, axis=0).tolist()
    return {"probe_seconds": wall, "probe_seconds_cpu": cpu}


def append_separate(step: Step, batch: MicroBatch, count: int, into: list[Tensor]) -> None:
    into.append(step.separate(batch, count))


def compare_case(step: Step, count: int, generator: np.random.Generator) -> dict[str, Any]:
    """Errors, and the seconds that separate passes take on the same batches."""
    errors = {"max_rel_error": 0.0, "max_rel_error_default": 0.0}
    modes = {"max_rel_error": {"memory": 2**40}, "max_rel_error_default": {}}
    seconds = []
    for _ in range(3):
        batch = step.batch(count, generator)
        gradients: list[Tensor] = []
        seconds.append(clock(partial(append_separate, step, batch, count, gradients), step.device))
        exact_KK = (gradients[0].double() @ gradients[0].double().T).cpu().numpy()
        norms_K = np.sqrt(exact_KK.diagonal())
        weights = {name: weight.detach().clone() for name, weight in step.model.named_parameters()}
        for name, options in modes.items():
            step.model.load_state_dict(weights, strict=False)
            meters = step.attach(count, stride=1, **options)
            step(batch, meters)
            gram = meters[0].read(meters[0].sums())["alignment"]
            relative_KK = np.abs(gram.values - exact_KK) / np.maximum(
                np.outer(norms_K, norms_K), 1e-30
            )
            errors[name] = max(errors[name], float(relative_KK[gram.present].max()))
            for meter in meters:
                meter.close()
    wall, cpu = np.median(seconds, axis=0).tolist()
    return {**errors, "separate_seconds": wall, "separate_seconds_cpu": cpu}


def resident_peak() -> int:
    """Bytes, of this process alone. (`ru_maxrss` starts from what the parent had.)"""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def peak(preset: str, count: int, device: torch.device) -> None:
    """Child process: prints memory before the model and at the peak. No domains: no probes."""
    before, generator = resident_peak(), np.random.default_rng(0)
    step = Step(preset, device)
    meters = step.attach(count, stride=1) if count else []
    for number in range(2):
        step(step.batch(count or 22, generator), meters, number)
    end(meters)
    print(
        json.dumps(
            [0, torch.cuda.max_memory_allocated()]
            if device.type == "cuda"
            else [before, resident_peak()]
        )
    )


@cache
def peak_of_child(preset: str, count: int, device: torch.device) -> np.ndarray:
    """What `peak` prints. Processes differ by a few MB: the mean of two."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, __file__, "--peak", preset, str(count), "--device", device.type]
    outputs = [
        subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return np.asarray(np.mean(found, axis=0))


def memory_case(preset: str, count: int, device: torch.device) -> dict[str, float]:
    before, without = peak_of_child(preset, 0, device)
    before_with, with_probes = peak_of_child(preset, count, device)
    return {
        "memory_ratio": with_probes / without,
        "memory_ratio_tensors": (with_probes - before_with) / (without - before),
        "peak_bytes": without,
    }


def show_profile(preset: str, count: int, device: torch.device) -> None:
    step, generator = Step(preset, device), np.random.default_rng(0)
    meters = step.attach(count, stride=1)
    for number in range(2):
        step(step.batch(count, generator), meters, number)
    for title, chosen in (("without probes", []), ("with probes", meters)):
        with torch.profiler.profile() as profile:
            step(step.batch(count, generator), chosen)
        print(f"{preset}, K = {count}, {title}")
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=48
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--presets", nargs="+", help="smallest first")
    parser.add_argument("--domains", nargs="+", type=int, default=[22, 52])
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="for timing, over all cases; other work takes about 3 minutes",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print where the largest preset's steps spend their time",
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    if args.peak:
        return peak(args.peak[0], int(args.peak[1]), device)
    presets = args.presets or (
        ["llama-50m", "llama-410m"] if device.type == "cuda" else ["llama-1m", "llama-5m"]
    )
    if args.profile:
        return show_profile(presets[-1], args.domains[-1], device)
    # Larger models step more slowly, so they get more of the time.
    weights = {preset: 4.0**i for i, preset in enumerate(presets)}
    cases = []
    for preset in presets:
        for count in args.domains:
            generator, step = np.random.default_rng(count), Step(preset, device)
            seconds = args.seconds * weights[preset] / sum(weights.values()) / len(args.domains)
            case: dict[str, Any] = {"preset": preset, "domains": count}
            case |= time_case(step, count, seconds, generator)
            case |= direct_case(step, count, generator)
            case |= compare_case(step, count, generator)
            suffix = "_cpu" if device.type == "cpu" else ""
            case["vs_separate_backward"] = (
                case[f"separate_seconds{suffix}"] / case[f"probe_seconds{suffix}"]
            )
            case |= memory_case(preset, count, device)
            cases.append(case)
            print(json.dumps(case), flush=True)
    largest = [case for case in cases if case["preset"] == presets[-1]]
    worst = {
        name: max(case[name] for case in largest)
        for name in ("step_ratio", "step_ratio_strided", "memory_ratio")
    }
    worst["vs_separate_backward"] = min(case["vs_separate_backward"] for case in largest)
    worst["max_rel_error"] = max(case["max_rel_error"] for case in cases)
    print(json.dumps({**worst, "device": device.type, "torch": torch.__version__, "cases": cases}))


if __name__ == "__main__":
    main()
