"""Turns configurations into policies, models and trainers. No other module does this."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.core.protocols import Policy, Trainer
from cuvee.core.registry import TRAINERS
from cuvee.data.corpus.corpus import Corpus
from cuvee.policies.files import check_can_be_saved
from cuvee.policies.guard.guard import Guard
from cuvee.policies.paced import ReadsCaps
from cuvee.recipes.config.questions import ReadsFeedback
from cuvee.recipes.config.schema import TrainConfig
from cuvee.recipes.preflight import check_probes
from cuvee.training.distributed import Ranks


def record_of(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what the store keeps as a run's configuration.

    It has everything that decides what the run computes (its identity), the cost of the proxies
    behind its policy, and each domain's bytes per token, which convert losses to bits per byte.
    """
    widths: dict[str, float] = {}
    for name in corpus.names:
        # Unknown for shards without a tokenizer or without a `valid` split.
        with suppress(CorpusError):
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
    """Return the policy of the run, wrapped in the guard that enforces its limits.

    Raises `PolicyError` if no mixture over the corpus satisfies the limits or if a saved policy
    does not fit the corpus, and `ConfigError` for a method that needs proxy runs first.
    """
    config.guard.bounds(corpus.names)
    check_objective(config.objective, corpus)
    train = config.train
    step = train.batch_size * train.sequence_length
    policy = _saved(config, corpus) or _commit(config, corpus)
    if isinstance(policy, ReadsCaps):
        policy = policy.capped(config.guard.epochs, train.total_steps * step)
    check_can_be_saved(policy)
    check_probes(policy, corpus, config.trainer, train.sequence_length)
    return Guard(policy, config.guard, train.interval * step)


def check_objective(objective: Mapping[str, float] | None, corpus: Corpus) -> None:
    """Raise `ConfigError` if the objective names a domain that is unknown or not validated."""
    named = objective or {}
    if unknown := sorted(set(named) - set(corpus.names)):
        raise ConfigError(
            f"objective names {', '.join(unknown)}, but the corpus has {', '.join(corpus.names)}"
        )
    if missing := [name for name in named if not corpus.has(name, "valid")]:
        raise ConfigError(
            f"objective names {', '.join(missing)}, which the corpus has no validation text of: "
            "give the domain a `valid` split, or leave it out"
        )
    if named and not any(named.values()):
        raise ConfigError(f"objective is {dict(named)}: at least one weight must be above 0")


def _saved(config: TrainConfig, corpus: Corpus) -> Policy | None:
    """Load the saved policy, if there is one, with this run's questions instead of its own."""
    if config.policy is None:
        return None
    policy = config.policy.load()
    asked = config.evaluation
    if isinstance(policy, ReadsFeedback):
        policy.check(corpus.domains)
        return (
            policy.with_evaluation(asked.files, asked.share)
            if asked
            else policy.with_evaluation(None)
        )
    if asked:
        raise ConfigError(
            f"evaluation is given, but the policy {config.policy.label} reads no feedback: "
            "remove evaluation"
        )
    return policy


def _commit(config: TrainConfig, corpus: Corpus) -> Policy:
    method = config.method.build(config.seed_of("agent"), config.objective)
    if wanted := len(method.propose(corpus, ())):
        raise ConfigError(
            f"{config.method.label} learns from proxy runs, {wanted} to begin with: run "
            "`cuvee search` with this method, then use the folder that it writes, as in "
            "policy=runs/search/policy, instead of the method"
        )
    return method.commit(corpus, ())


def build_trainer(config: TrainConfig, corpus: Corpus, ranks: Ranks) -> Trainer:
    """Build the registered trainer `config.trainer`. All randomness depends on the seeds."""
    order = config.part_seeds.get("order")
    settings = replace(config.train, seed=config.seed_of("weights"), order_seed=order)
    trainer: Trainer = TRAINERS.get(config.trainer).build(config.model, corpus, settings, ranks)
    return trainer
