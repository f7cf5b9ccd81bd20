"""The only place where configurations become objects: policies, models and trainers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.core.protocols import Policy, Trainer
from cuvee.core.registry import TRAINERS
from cuvee.data.corpus.corpus import Corpus
from cuvee.policies.files import check_can_be_saved
from cuvee.policies.guard.guard import Guard
from cuvee.recipes.config.questions import ReadsFeedback
from cuvee.recipes.config.schema import TrainConfig
from cuvee.training.distributed import Ranks


def record_of(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """What the store keeps as a run's configuration: all that decides what it computes, what its policy has cost before it, and
    what turns its losses into bits."""
    widths: dict[str, float] = {}
    for name in corpus.names:
        with suppress(
            CorpusError
        ):  # not known of shards that came without a tokenizer or without a `valid` split
            widths[name] = corpus.bytes_per_token(name, "valid")
    proxies = config.policy.proxies if config.policy else None
    spent = {"proxies": asdict(proxies)} if proxies else {}
    return {
        "name": config.name,
        **config.identity(corpus.fingerprint),
        **spent,
        "bytes_per_token": widths,
    }


def build_policy(config: TrainConfig, corpus: Corpus) -> Guard:
    """What steers, within the limits of the guard.

    Raises `PolicyError` if no mixture over the corpus satisfies them or a saved policy is not for such a corpus, and
    `ConfigError` for a method that has to learn from proxies first.
    """
    config.guard.bounds(corpus.names)
    train = config.train
    interval = train.interval * train.batch_size * train.sequence_length
    policy = _saved(config, corpus) or _commit(config, corpus)
    check_can_be_saved(policy)
    return Guard(policy, config.guard, interval)


def _saved(config: TrainConfig, corpus: Corpus) -> Policy | None:
    """The saved policy that is to steer, if one is, with the run's questions in place of those that it was saved with."""
    if config.policy is None:
        return None
    policy = config.policy.load()
    asked = config.evaluation
    if isinstance(policy, ReadsFeedback):
        policy.check(corpus.domains)
        return policy.evaluating(asked.files, asked.share) if asked else policy.evaluating(None)
    if asked:
        raise ConfigError(
            f"evaluation is given, and the policy {config.policy.label} reads no feedback: leave it out"
        )
    return policy


def _commit(config: TrainConfig, corpus: Corpus) -> Policy:
    method = config.method.build(config.seed)
    if wanted := len(method.propose(corpus, ())):
        raise ConfigError(
            f"{config.method.label} learns from proxy runs, {wanted} to begin with: run `cuvee search` with this method, then "
            "give the folder that it writes, as in policy=runs/search/policy, in place of the method"
        )
    return method.commit(corpus, ())


def build_trainer(config: TrainConfig, corpus: Corpus, ranks: Ranks) -> Trainer:
    """The registered trainer of that name. All randomness follows from the configuration's seed."""
    settings = replace(config.train, seed=config.seed)
    trainer: Trainer = TRAINERS.get(config.trainer).build(config.model, corpus, settings, ranks)
    return trainer
