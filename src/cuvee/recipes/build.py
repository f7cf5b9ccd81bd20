"""The only place where configurations become objects: policies, models and trainers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from cuvee.core.domain import natural_shares
from cuvee.core.errors import CorpusError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.data.corpus import Corpus
from cuvee.data.stream import MixtureStream
from cuvee.policies.files import load_policy
from cuvee.policies.guard import Guard
from cuvee.recipes.config import TrainConfig
from cuvee.training.distributed import Ranks
from cuvee.training.model import build_model
from cuvee.training.trainer import LMTrainer


def record_of(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """What the store keeps as a run's configuration: all that decides what it computes, and what turns its losses into bits."""
    widths: dict[str, float] = {}
    for name in corpus.names:
        with suppress(CorpusError):  # not known of shards that came without a tokenizer or without a `valid` split
            widths[name] = corpus.bytes_per_token(name, "valid")
    return {"name": config.name, **config.identity(corpus.fingerprint), "bytes_per_token": widths}


def build_policy(config: TrainConfig, corpus: Corpus) -> Guard:
    """What steers, within the limits of the guard. Raises `PolicyError` if no mixture over the corpus satisfies them."""
    config.guard.bounds(corpus.names)
    steers: Policy = (
        load_policy(config.policy) if config.policy else config.method.build(config.seed).commit(corpus, ())
    )
    return Guard(steers, config.guard)


def build_trainer(config: TrainConfig, corpus: Corpus, ranks: Ranks) -> LMTrainer:
    """Model, stream and trainer. All that is random in them follows from the configuration's seed, whatever the method."""
    settings = replace(config.train, seed=config.seed)
    stream = MixtureStream(
        corpus,
        Mixture.of(natural_shares(corpus.domains)),
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    return LMTrainer(build_model(config.model, corpus, seed=config.seed), stream, corpus, settings, ranks)
