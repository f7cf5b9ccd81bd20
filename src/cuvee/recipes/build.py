"""The only place where configurations become objects: stores, corpora, policies, models and trainers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.domain import natural_shares
from cuvee.core.errors import CorpusError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.fleet.rows import RunSummary
from cuvee.fleet.store import Store
from cuvee.policies.files import load_policy
from cuvee.policies.guard import Guard
from cuvee.recipes.config import TrainConfig

if TYPE_CHECKING:
    from cuvee.data.corpus import Corpus
    from cuvee.training.distributed import Ranks
    from cuvee.training.trainer import LMTrainer

DEFAULT_STORE = "runs/cuvee.db"


def open_store(given: str | None, must_exist: bool = False) -> Store:
    """The store that is named, else the one in $CUVEE_STORE, else runs/cuvee.db; with `must_exist` no file is created."""
    place = given or os.environ.get("CUVEE_STORE") or DEFAULT_STORE
    if "://" not in place and not place.startswith("@"):
        if must_exist and not Path(place).is_file():
            raise StoreError(f"there is no store {place}: name one with --store, or train something first")
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    return Store.open(place)


def find_runs(store: Store, ids: Sequence[str] = (), group: str | None = None) -> list[RunSummary]:
    """The runs with these ids, or ids that begin so, in this order; all of the group, or of the store, if none is given."""
    known = store.runs(group=group)
    if not ids:
        return known
    found = []
    for wanted in ids:
        exact = [run for run in known if run.id == wanted]
        matches = exact or [run for run in known if run.id.startswith(wanted)]
        if not matches:
            raise StoreError(f"no run {wanted!r} in {store!r}: `cuvee runs list` shows what there is")
        if len(matches) > 1:
            raise StoreError(
                f"{wanted!r} begins the ids of {len(matches)} runs: {', '.join(run.id for run in matches)}"
            )
        found += matches
    return found


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
    steers: Policy = load_policy(config.policy) if config.policy else config.method.build(config.seed).commit(corpus, ())
    return Guard(steers, config.guard)


def build_trainer(config: TrainConfig, corpus: Corpus, ranks: Ranks) -> LMTrainer:
    """Model, stream and trainer. All that is random in them follows from the configuration's seed, whatever the method."""
    from cuvee.data.stream import MixtureStream
    from cuvee.training.model import build_model
    from cuvee.training.trainer import LMTrainer

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
