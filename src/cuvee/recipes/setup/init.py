"""`init`: writes a commented configuration for a corpus, sized to the machine and a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cuvee.core.domain import Domain, available_K
from cuvee.core.errors import ConfigError
from cuvee.core.files import write_atomic
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.config.yaml_file import quoted
from cuvee.recipes.setup.estimate import MANY_EPOCHS
from cuvee.training.model import PRESETS, build_model, size_of

CPU_FLOPS = 2.0e10
"""Assumed floating-point operations a second of one core on small models."""
GPU_FLOPS = 1.0e14
"""Assumed for a data-centre GPU in bfloat16. `--dry-run` measures the real speed of either."""
TOKENS_PER_PARAMETER = 20.0
"""The compute-optimal ratio (Hoffmann et al., arXiv 2203.15556)."""
_LISTED = 30  # domains that the comment lists


@dataclass(frozen=True)
class Sizes:
    """The model and the budget of each run of a configuration, and how many runs it has."""

    model: str
    tokens: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    runs: int


def read_budget(text: str) -> float:
    """Return the seconds of a budget such as `90s`, `10m` or `2h`. Raises `ConfigError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if not found or not float(found[1]):
        raise ConfigError(f"the budget is {text!r}: write a time, as in 90s, 10m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def choose_sizes(corpus: Corpus, seconds: float, runs: int = 1) -> Sizes:
    """Return the largest preset whose `runs` runs read 20 tokens per parameter in `seconds`.

    The smallest preset is used if none does. Above 10,000 tokens, no budget reads the corpus more
    than four times.
    """
    speed = GPU_FLOPS if torch.cuda.is_available() else CPU_FLOPS
    most = MANY_EPOCHS * sum(available_K(corpus.domains))
    name = ""
    affordable = 0.0
    parameters = 0
    for preset in (preset for preset in PRESETS if preset.startswith("llama")):
        with torch.device("meta"):  # sizes need no memory for weights
            size = size_of(build_model(preset, corpus), 256)
        # The rest of the time is for validation and start-up.
        tokens = 0.8 * seconds / runs * speed / size.flops_per_token
        if name and tokens < TOKENS_PER_PARAMETER * size.parameters:
            break
        name = preset
        affordable = tokens
        parameters = size.parameters
    budget = max(int(min(affordable, most) // 10_000) * 10_000, 10_000)
    rate = 3e-3 if parameters < 20_000_000 else 6e-4
    return Sizes(name, budget, 16, 256, rate, runs)


def write_config(corpus: Path, path: Path, budget: str = "10m") -> Sizes:
    """Write a configuration of `cuvee compare` for the corpus to `path`.

    It compares natural and uniform shares with the method that fits the corpus: `gain` for a
    target, `even` too if it is scarce, else `odm`. A target with less validation text than a row
    gets `late` instead of `gain` if it is scarce, else `odm`. Raises `ConfigError` if the file
    exists or the budget cannot be read, and `CorpusError` if there is no corpus.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: give another file with -o, or remove it")
    opened = Corpus.open(corpus)
    sizes = choose_sizes(opened, read_budget(budget), runs=4)
    scarce = _scarce(opened, sizes.tokens)
    if not scarce:
        sizes = choose_sizes(opened, read_budget(budget), runs=3)
    write_atomic(path, _text(opened, corpus, path, sizes, budget, scarce).encode())
    return sizes


def _scarce(corpus: Corpus, tokens: int) -> list[str]:
    """Return the targets that a run of `tokens` under uniform shares reads more than four times."""
    share = tokens / len(corpus.names)
    return [
        domain.name for domain in _targets(corpus) if available_K([domain])[0] * MANY_EPOCHS < share
    ]


def _targets(corpus: Corpus) -> list[Domain]:
    """Return the target domains that have validation text."""
    return [
        domain for domain in corpus.domains if domain.is_target and corpus.has(domain.name, "valid")
    ]


def _methods(corpus: Corpus, scarce: Sequence[str], row_tokens: int) -> str:
    """Return the methods to try beside static shares, with the reason for each.

    `gain` measures on rows of `row_tokens` tokens of the targets' validation text.
    """
    targets = {domain.name for domain in _targets(corpus)}
    entries = [entry for entry in corpus.manifest.domains if entry.name in targets]
    measured = any(entry.valid and entry.valid.tokens >= row_tokens for entry in entries)
    reasons = {"odm": "a bandit that follows the training loss; for `gain`, name a target"}
    if targets:
        reasons = {
            "odm": "a bandit that follows the training loss; `gain` needs more validation text"
        }
    if measured:
        reasons = {"gain": "more of the domains that help the target, measured while training"}
    if scarce:
        last = ("gain", "late, beside what helps") if measured else ("late", "rising to the end")
        reasons = {
            "even": f"{', '.join(scarce)} spread evenly: first at a low learning rate",
            last[0]: f"{last[1]}: first at a high learning rate",
        }
    return "".join(f"  - {name:<24}# {reason}\n" for name, reason in reasons.items())


def _text(
    corpus: Corpus, folder: Path, path: Path, sizes: Sizes, budget: str, scarce: Sequence[str]
) -> str:
    rows = "\n".join(
        f"#   {domain.name}: {domain.tokens:,} tokens{', target' if domain.is_target else ''}"
        for domain in corpus.domains[:_LISTED]
    )
    left = len(corpus.names) - _LISTED
    more = f"\n#   … and {left} more" if left > 0 else ""
    aim = _objective(corpus)
    return f"""\
# cuvee compare {path}
# Written by `cuvee init` for a budget of {budget} on this machine; `--dry-run` measures the real time.
# `cuvee validate {path}` checks it. Every key: docs/configuration.md.
# The corpus:
{rows}{more}

corpus: {quoted(str(folder))}
model: {sizes.model:<22}# a preset, or the folder of a Hugging Face model to continue from
methods:                    # each trains its own model from the same initial weights
  - natural
  - uniform
{_methods(corpus, scarce, sizes.sequence_length)}baseline: natural
seeds: [0]                  # five or more before you trust a difference

{aim}
guard:
  epochs: {MANY_EPOCHS:.0f}                 # no domain is read more often

train:
  tokens: {sizes.tokens:_}
  batch_size: {sizes.batch_size}
  sequence_length: {sizes.sequence_length}
  learning_rate: {sizes.learning_rate:g}
  interval: 10              # optimizer steps between decisions
"""


def _objective(corpus: Corpus) -> str:
    """The key `objective`: the target domains, or a comment that shows how to write it."""
    if targets := _targets(corpus):
        lines = "".join(f"  {quoted(domain.name)}: 1\n" for domain in targets)
        return f"objective:                  # what counts: the target domains\n{lines}"
    validated = [domain for domain in corpus.domains if corpus.has(domain.name, "valid")]
    example = quoted((validated or corpus.domains)[0].name)
    return (
        "# objective:                # what counts; without it, all validated domains alike\n"
        f"#   {example}: 1\n"
    )
