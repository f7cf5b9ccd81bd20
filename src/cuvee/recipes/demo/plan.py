"""The plan of the demo: its stages, model, budget and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cuvee.recipes.config.schema import CompareConfig, PolicyChoice
from cuvee.training.settings import TrainerSettings

TARGET = "mathematics"


@dataclass(frozen=True)
class Stage:
    """A stage of the demo: its title and its purpose."""

    title: str
    why: str


STAGES = (
    Stage(
        "Gather text",
        "ten domains of this Python environment; of mathematics, the target, there is little",
    ),
    Stage("Build the corpus", "a tokenizer, and tokens by domain"),
    Stage(
        "Train under each mixture",
        "the same small model, the same text; only the mixture differs",
    ),
    Stage("Write the report", "which mixture to train on, how sure that is, and what it costs"),
)

MODEL: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    # √(2 / (5·64)), as presets have it. With transformers' 0.02, some seeds of so narrow a model stay
    # at the unigram loss for a third of the run: natural ended at 5.26 to 5.49 with seeds 11 to 14,
    # and ends at 4.91 to 4.93 with this.
    "initializer_range": 0.079,
}


_TRAIN = TrainerSettings(
    steps=400,
    batch_size=8,
    sequence_length=128,
    learning_rate=5e-3,
    interval=10,
    validate_every=10,
    validation_tokens=4096,
)


@dataclass(frozen=True)
class DemoPlan:
    """The size of the demo. With the defaults it takes about five minutes on two cores.

    Model and methods were chosen with seeds 11 to 14, which are none of `seeds`.
    """

    vocab_size: int = 2048
    train: TrainerSettings = _TRAIN
    methods: tuple[Any, ...] = ("natural", "uniform", "even", "gain", {"policy": "universal"})
    """The last is the agent that ships with cuvee."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 4.0
    """How often the target may be read."""


def compare_config(folder: Path, plan: DemoPlan) -> CompareConfig:
    """The comparison, for `cuvee compare`."""
    return CompareConfig.model_validate(
        {
            "name": "demo",
            "corpus": folder / "corpus",
            "model": dict(MODEL),
            "methods": plan.methods,
            "baseline": "natural",
            "seeds": plan.seeds,
            "objective": {TARGET: 1.0},
            "guard": {"epochs": {TARGET: plan.epochs}},
            "train": plan.train,
            "store": store(folder),
            "out": folder / "runs",
            "checkpoint_every": 20,
        }
    )


def store(folder: Path) -> str:
    return str(folder / "runs.db")


def as_yaml(config: CompareConfig, head: str) -> str:
    """Return the configuration as YAML that cuvee accepts and that is easy to edit."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    content["train"] = {
        key: value for key, value in content["train"].items() if value != _DEFAULTS[key]
    }
    content["methods"] = [
        {"policy": choice.label} if isinstance(choice, PolicyChoice) else choice.label
        for choice in config.methods
    ]
    return f"# {head}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


_DEFAULTS = asdict(TrainerSettings())
