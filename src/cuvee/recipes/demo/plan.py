"""The plan of the demo: its stages, model, budgets and configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.config.questions import Evaluation
from cuvee.recipes.config.schema import CompareConfig, MethodChoice, PolicyChoice, TrainConfig
from cuvee.recipes.search import SearchConfig
from cuvee.training.settings import TrainerSettings


@dataclass(frozen=True)
class Stage:
    """A stage of the demo: its title and its purpose."""

    title: str
    why: str


STAGES = (
    Stage(
        "Gather text",
        "eleven domains of this Python environment; mathematics and graph theory are the target",
    ),
    Stage("Build the corpus", "tokens by domain, and questions from held-out text"),
    Stage(
        "Pre-train the base", "a small model that knows the source domains, as a released one would"
    ),
    Stage(
        "Run the proxies",
        "short continuations of it under different paths of mixtures, to observe their effect",
    ),
    Stage(
        "Learn the agent",
        "only from the logs of the proxies, which also show whether to trust it",
    ),
    Stage(
        "Continue the base under each mixture",
        "twice as long as a proxy, with the agent, static mixtures and other methods",
    ),
    Stage(
        "Write the report",
        "what was learned of the target, what was forgotten of the source, and the cost",
    ),
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
}

_BASE = TrainerSettings(
    steps=1400,
    batch_size=8,
    sequence_length=128,
    learning_rate=5e-3,
    interval=100,
    validate_every=4,
    validation_tokens=4096,
)
_CONTINUED = replace(_BASE, steps=400, learning_rate=2e-3, interval=10, validate_every=8)
_PROXY = replace(_CONTINUED, steps=200, validate_every=0, validation_tokens=0)


@dataclass(frozen=True)
class DemoPlan:
    """The size of the demo. With the defaults it takes under eight minutes on two cores."""

    vocab_size: int = 2048
    base: TrainerSettings = _BASE
    proxy: TrainerSettings = _PROXY
    proxies: int = 24
    agent: Mapping[str, Any] = field(
        default_factory=lambda: {"bc_updates": 150, "updates": 300, "eval_every": 75}
    )
    continued: TrainerSettings = _CONTINUED
    methods: tuple[str, ...] = ("natural", "uniform", "target_only", "odm")
    """Methods to compare with the agent and the universal policy."""
    seeds: tuple[int, ...] = (0, 1, 2)
    share: float = 0.15
    """The highest cost of evaluating the model, as a share of the cost of an interval."""


def base_config(folder: Path, plan: DemoPlan, corpus: Corpus) -> TrainConfig:
    """The base model's run: source domains in proportion to their tokens, no target domain."""
    method = MethodChoice.model_validate({"name": "source_only", "label": "source-only"})
    return TrainConfig(
        name="demo-base",
        corpus=corpus.folder,
        model=dict(MODEL),
        train=plan.base,
        method=method,
        store=store(folder),
        out=folder / "runs",
    )


def search_config(
    folder: Path, plan: DemoPlan, base: Path, questions: Mapping[str, Sequence[str]]
) -> SearchConfig:
    """The proxies' search, for `cuvee search` and `cuvee learn`."""
    method = {
        "name": "data_mixing_agent",
        "evaluation": {name: list(files) for name, files in questions.items()},
        "proxies": plan.proxies,
        "share": plan.share,
        "agent": dict(plan.agent),
    }
    return SearchConfig(
        name="demo-proxies",
        corpus=folder / "corpus",
        model=str(base),
        train=plan.proxy,
        method=MethodChoice.model_validate(method),
        store=store(folder),
        out=folder / "runs",
    )


def compare_config(
    folder: Path, plan: DemoPlan, base: Path, questions: Mapping[str, Sequence[str]], agent: Path
) -> CompareConfig:
    """The comparison of the target runs."""
    steering: list[MethodChoice | PolicyChoice] = [
        *(MethodChoice.model_validate(name) for name in plan.methods),
        PolicyChoice.model_validate({"policy": str(agent), "label": "agent"}),
        PolicyChoice.model_validate("universal"),
    ]
    return CompareConfig(
        name="demo",
        corpus=folder / "corpus",
        model=str(base),
        train=plan.continued,
        methods=tuple(steering),
        evaluation=Evaluation.model_validate({**questions, "share": plan.share}),
        seeds=plan.seeds,
        baseline=plan.methods[0],
        store=store(folder),
        out=folder / "runs",
        checkpoint_every=10,
    )


def store(folder: Path) -> str:
    return str(folder / "runs.db")


def as_yaml(config: CompareConfig | SearchConfig, head: str) -> str:
    """Return the configuration as YAML that cuvee accepts and that is easy to edit."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    content["train"] = {
        key: value for key, value in content["train"].items() if value != _DEFAULTS[key]
    }
    if isinstance(config, CompareConfig):
        content["methods"] = [_short(choice) for choice in config.methods]
    return f"# {head}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _short(choice: MethodChoice | PolicyChoice) -> Any:
    if isinstance(choice, MethodChoice):
        return choice.label
    return {
        "policy": choice.label if choice.is_shipped else str(choice.policy),
        "label": choice.label,
    }


_DEFAULTS = asdict(TrainerSettings())
