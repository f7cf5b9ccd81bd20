"""`validate`: reads a configuration and makes the checks that its command makes before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.domain import available_K
from cuvee.core.registry import TRAINERS
from cuvee.data.corpus.corpus import Corpus
from cuvee.methods.baselines.paced import Even
from cuvee.recipes.build import build_policy
from cuvee.recipes.config.schema import (
    CompareConfig,
    MethodChoice,
    PolicyChoice,
    RunConfig,
    TrainConfig,
    load,
)
from cuvee.recipes.config.yaml_file import override, read_yaml
from cuvee.recipes.preflight import check_search, check_writable
from cuvee.recipes.search import SearchConfig
from cuvee.recipes.setup.estimate import MANY_EPOCHS
from cuvee.training.model import check_model
from cuvee.training.trainer import LMTrainer


@dataclass(frozen=True)
class Validated:
    """A configuration without errors: the command that runs it, and remarks on its choices."""

    command: str
    config: RunConfig
    remarks: tuple[str, ...]


def validate(path: Path, overrides: Sequence[str] = ()) -> Validated:
    """Check the configuration of `cuvee train`, `compare` or `search` at `path`; train nothing.

    The keys tell which command it is for. Raises the `CuveeError` that the command would raise.
    """
    config = _load(path, overrides)
    corpus = Corpus.open(config.corpus)
    check_writable(config.out)
    if TRAINERS.get(config.trainer) is LMTrainer:
        for model in getattr(config, "models", None) or [config.model]:
            check_model(model, corpus)
    if isinstance(config, TrainConfig) and _proposes(config, corpus):
        config = load(SearchConfig, path, overrides)
    if isinstance(config, SearchConfig):
        method = config.method.build(config.seed, config.objective)
        check_search(method, corpus.without_test(), config.trainer, config.train)
        return Validated("search", config, tuple(remarks(config, corpus)))
    runs = [config] if isinstance(config, TrainConfig) else config.runs()
    for run in runs:
        build_policy(run, corpus)
    command = "train" if isinstance(config, TrainConfig) else "compare"
    return Validated(command, config, tuple(remarks(config, corpus)))


def _load(path: Path, overrides: Sequence[str]) -> TrainConfig | CompareConfig | SearchConfig:
    content = read_yaml(path)
    override(content, overrides)
    if "methods" in content:
        return load(CompareConfig, path, overrides)
    if content.keys() & (SearchConfig.model_fields.keys() - TrainConfig.model_fields.keys()):
        return load(SearchConfig, path, overrides)
    return load(TrainConfig, path, overrides)


def _proposes(config: TrainConfig, corpus: Corpus) -> bool:
    """Whether the method learns from proxy runs, so that the configuration is for a search."""
    method = config.method.build(config.seed, config.objective)
    return config.policy is None and bool(method.propose(corpus, ()))


def remarks(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    """Yield what is allowed and probably not meant."""
    names = corpus.names
    if len(names) == 1:
        yield (
            f"the corpus has one domain ({names[0]}), so there is nothing to mix: give "
            "`cuvee corpus build` several files or folders, or --domain-column"
        )
    if not any(corpus.has(name, "valid") for name in names):
        yield (
            "the corpus has no validation text, so losses are of training text only: build it "
            "again with a larger --valid-share, as in 0.1"
        )
    elif not config.train.validation_tokens:
        yield "train.validation_tokens is 0, so nothing is validated"
    yield from _no_objective(config, corpus)
    yield from _repetition(config, corpus)
    yield from _exploration(config, corpus)


def _choices(config: RunConfig) -> list[MethodChoice]:
    """Return the methods of a configuration, without saved policies."""
    choices: Sequence[MethodChoice | PolicyChoice] = getattr(config, "methods", ())
    if isinstance(config, TrainConfig | SearchConfig):
        choices = [config.method]
    return [choice for choice in choices if isinstance(choice, MethodChoice)]


def _no_objective(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    """Methods without an objective count all validated domains alike."""
    targets = [domain.name for domain in corpus.domains if domain.is_target]
    alike = []
    for choice in _choices(config):
        method = choice.build(0, config.objective)
        if getattr(method, "objective", None) == {} and (targets or isinstance(method, Even)):
            alike.append(choice.label)
    if alike and targets:
        yield (
            f"there is no objective, so all validated domains count alike for {', '.join(alike)}, "
            f"not the target alone: say what counts, as in 'objective={{{targets[0]}: 1}}'"
        )
    elif alike:
        yield (
            f"{', '.join(alike)} spread a scarce target over the run, but the corpus has no target "
            "domain and there is no objective, so all validated domains count alike: say what "
            f"counts, as in 'objective={{{corpus.names[0]}: 1}}'"
        )


def _repetition(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    train = config.train
    batch = train.batch_size * train.sequence_length
    tokens = train.total_steps * batch
    available = sum(available_K(corpus.domains))
    epochs = tokens / available
    if tokens - batch > MANY_EPOCHS * available:  # the last batch may be more than was asked for
        yield (
            f"{tokens:,} training tokens read the whole corpus {epochs:.1f} times; after about "
            f"{MANY_EPOCHS:.0f} epochs, repeated text teaches little: train on fewer tokens, or "
            "add text"
        )


def _exploration(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    """ODM plays the uniform mixture until ε_t < 1/K, which is after K ln K steps."""
    K = len(corpus.names)
    steps = config.train.total_steps
    if steps <= K * math.log(K) and any(one.name == "odm" for one in _choices(config)):
        yield (
            f"odm mixes {K} domains uniformly for its first {math.ceil(K * math.log(K))} "
            f"steps, and the run has {steps}: train longer"
        )
