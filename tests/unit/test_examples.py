"""The examples: each matches the command that it names, its methods can be built, and its
models have the stated sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cuvee.data.label.labelers import ByMap
from cuvee.recipes.config.schema import CompareConfig, PolicyChoice, RunConfig, TrainConfig, load
from cuvee.recipes.config.yaml_file import read_yaml
from cuvee.recipes.search import SearchConfig
from cuvee.training.model import model_config, size_of

EXAMPLES = Path(__file__).parents[2] / "examples"
MAPS = sorted((EXAMPLES / "ablations" / "maps").glob("*.yaml"))
CONFIGURED = sorted(path for path in EXAMPLES.rglob("*.yaml") if path not in MAPS)
KINDS: dict[str, type[RunConfig]] = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "search": SearchConfig,
}


def read(path: Path) -> RunConfig:
    """By the first command in its comments that takes it."""
    told = re.search(
        rf"^#\s+cuvee (\w+) {re.escape(str(path.relative_to(EXAMPLES.parent)))}",
        path.read_text(),
        re.MULTILINE,
    )
    assert told, f"{path} must say in a comment which command takes it"
    return load(KINDS[told[1]], path)


@pytest.mark.parametrize("path", CONFIGURED, ids=lambda path: path.stem)
def test_an_example_is_for_the_command_that_it_names(path: Path) -> None:
    config = read(path)
    choices = (
        config.methods if isinstance(config, CompareConfig) else [getattr(config, "method", None)]
    )
    for choice in choices:
        if isinstance(choice, PolicyChoice):  # it is there once its search was run
            search = path.parent / f"{choice.policy.parent.name}.yaml"
            assert isinstance(read(search), SearchConfig), "and that search is an example too"
        elif choice is not None:
            choice.build(seed=1)
    if "/" not in config.model:  # else a folder that a run leaves
        model_config(config.model, vocab_size=4096)


def test_comparisons_of_small_ablations_share_their_settings() -> None:
    """So that what two of them ask for can be one run (benchmarks/ablations.py)."""
    configs = [read(path) for path in CONFIGURED if path.parent.name == "ablations"]
    small = [
        config
        for config in configs
        if isinstance(config, CompareConfig) and config.model != "pythia-1b"
    ]
    assert len(small) >= 7
    assert (
        len({(config.model, config.train) for config in small})
        == len({config.model for config in small})
        == 2
    )
    assert all({"ac_odm", "hds"} & {choice.label for choice in config.methods} for config in small)


def parameters(spec: Any, vocab_size: int) -> int:
    """Without making any weights."""
    with torch.device("meta"):
        return size_of(
            AutoModelForCausalLM.from_config(model_config(spec, vocab_size=vocab_size)), 128
        ).parameters


@pytest.mark.parametrize(
    ("comparison", "vocab_size"), [("proxy_size", 50304), ("proxy_size_tiny", 4096)]
)
def test_proxies_are_to_their_target_as_in_the_paper(comparison: str, vocab_size: int) -> None:
    """70M, 160M and 410M for 1B, and small ones in the same proportions."""
    config = read(EXAMPLES / "ablations" / f"{comparison}.yaml")
    assert isinstance(config, CompareConfig)
    target = parameters(config.model, vocab_size)
    proxies = [
        choice.policy.parent.name for choice in config.methods if isinstance(choice, PolicyChoice)
    ]
    models = [read(EXAMPLES / "ablations" / f"{name}.yaml").model for name in proxies]
    shares = [parameters(model, vocab_size) / target for model in models]
    assert shares == pytest.approx([0.07, 0.16, 0.41], rel=0.12)


def test_domains_are_merged_by_meaning_and_the_targets_stay_apart() -> None:
    eleven, five = (
        read_yaml(EXAMPLES / "ablations" / "maps" / f"29_to_{count}.yaml") for count in (11, 5)
    )
    for table, count in ((eleven, 11), (five, 5)):
        ByMap.of(table, "the map")
        assert (len(table), len(set(table.values()))) == (29, count)
        for target in ("math", "code_python"):
            assert [domain for domain, merged in table.items() if merged == target] == [target]
    assert len({(eleven[domain], five[domain]) for domain in eleven}) == 11, (
        "five is eleven, merged again"
    )
