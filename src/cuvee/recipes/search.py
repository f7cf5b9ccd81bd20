"""`search`: proxy runs in a fleet of workers until the method knows enough, and the policy that it commits to, as a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Cost
from cuvee.data.corpus import Corpus
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.rows import Tally
from cuvee.loop import search as search_loop
from cuvee.policies.files import save_policy
from cuvee.recipes.build import build_trainer
from cuvee.recipes.config import MethodChoice, RunConfig, Seed, TrainConfig, parse
from cuvee.recipes.stores import open_store
from cuvee.training.distributed import Ranks
from cuvee.training.model import build_model, size_of


class SearchConfig(RunConfig):
    """`model` and `train` are the proxy's. The policy is written to `out`/NAME/policy."""

    method: MethodChoice
    seed: Seed = 0
    max_attempts: int = Field(default=3, ge=1)
    """How often a proxy run is tried before it is given up."""

    def proxy(self, corpus_fingerprint: str) -> dict[str, Any]:
        """What a worker needs to build a proxy's trainer, as plain JSON; the fingerprint makes another corpus another run."""
        same = self.model_dump(mode="json", include={"model", "train"})
        same["train"].pop("seed", None)
        return {**same, "corpus": str(self.corpus.absolute()), "fingerprint": corpus_fingerprint}

    @property
    def group(self) -> str:
        return f"{self.name}-{self.method.label}"


@dataclass(frozen=True)
class Plan:
    """What `method` asks for next, and what that would cost; a method may ask again when it has seen those runs."""

    runs: int
    logged: int
    each: Cost

    @property
    def total(self) -> Cost:
        return Cost(self.runs * self.each.tokens, self.runs * self.each.flops)


def make_trainer(proxy: Mapping[str, Any], seed: int) -> Any:
    """A proxy's trainer, built in a worker. Raises `ConfigError` if the corpus is not the one that the run was planned for."""
    content = {key: value for key, value in proxy.items() if key != "fingerprint"}
    config = parse(TrainConfig, {**content, "seed": seed}, "the task")
    corpus = Corpus.open(config.corpus)
    if corpus.fingerprint != proxy["fingerprint"]:
        raise ConfigError(
            f"{config.corpus} has fingerprint {corpus.fingerprint}, the run was planned for {proxy['fingerprint']}: "
            "search again, or bring the old corpus back"
        )
    return build_trainer(config, corpus, Ranks())


def plan(config: SearchConfig) -> Plan:
    """Trains nothing."""
    corpus = Corpus.open(config.corpus)
    size = size_of(build_model(config.model, corpus, seed=config.seed), config.train.sequence_length)
    tokens = config.train.total_steps * config.train.batch_size * config.train.sequence_length
    with open_store(config.store) as store:
        logged = _fleet(config, store, corpus).load()
        proposed = config.method.build(config.seed).propose(corpus, logged)
    return Plan(len(proposed), len(logged), Cost(tokens, tokens * size.flops_per_token))


def search(config: SearchConfig, *, workers: int = 1, on_change: Callable[[Tally], None] | None = None) -> Path:
    """Runs the proxies that are missing, and writes the policy for the target. Returns its folder.

    Running it again goes on where it stopped; several drivers may share one store.
    """
    corpus = Corpus.open(config.corpus)
    method = config.method.build(config.seed)
    with open_store(config.store) as store:
        fleet = _fleet(config, store, corpus, workers, on_change)
        policy: Policy = search_loop(method, corpus, fleet)
        cost = sum((run.cost for run in fleet.load()), Cost())
    folder = config.out / config.name / "policy"
    save_policy(
        folder,
        policy,
        {
            "method": config.method.model_dump(mode="json"),
            "corpus": corpus.fingerprint,
            "seed": config.seed,
            "proxies": {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds},
        },
    )
    return folder


def _fleet(
    config: SearchConfig,
    store: Any,
    corpus: Corpus,
    workers: int = 1,
    on_change: Callable[[Tally], None] | None = None,
) -> LocalFleet:
    return LocalFleet(
        store,
        make_trainer,
        config.proxy(corpus.fingerprint),
        group=config.group,
        seed=config.seed,
        workers=workers,
        checkpoints=config.out / config.name / "proxies",
        every=config.checkpoint_every,
        max_attempts=config.max_attempts,
        on_change=on_change,
    )
