"""`search`: trains proxy runs in a fleet of workers and writes the policy learned from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cuvee import loop
from cuvee.core.domain import natural_K
from cuvee.core.epochs import epochs_K
from cuvee.core.errors import ConfigError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Trainer
from cuvee.core.registry import TRAINERS
from cuvee.core.trajectory import Cost, Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.engine import FleetOptions, OnChange, StoreFleet
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.ray import RayFleet
from cuvee.fleet.slurm import SlurmFleet
from cuvee.fleet.store.store import Store
from cuvee.policies.fixed import Fixed
from cuvee.policies.paced import ReadsCaps
from cuvee.recipes.build import build_trainer
from cuvee.recipes.config.schema import (
    MethodChoice,
    RunConfig,
    Seed,
    TrainConfig,
    parse,
    sha256_of_model,
    short_digest,
)
from cuvee.recipes.learn import Learning, LearnResult
from cuvee.recipes.preflight import check_same_search, check_search, check_writable
from cuvee.recipes.progress.fleet_watch import FleetStatus, FleetWatch
from cuvee.recipes.progress.timing import peak_memory, time_training, validated_seconds
from cuvee.recipes.stores import open_store
from cuvee.recommend.checks.protocol import repetition_warnings
from cuvee.training.distributed import Ranks
from cuvee.training.placement import computing_threads

_STRICT = ConfigDict(extra="forbid", frozen=True)
Partition = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,-]{1,100}$")]


class LocalOptions(BaseModel):
    """Workers are processes of this host."""

    model_config = _STRICT
    devices: tuple[str, ...] = ()
    """CUDA devices, assigned to workers in turn. Workers may share a device."""


class RayOptions(BaseModel):
    """Workers are tasks of an existing Ray cluster."""

    model_config = _STRICT
    address: Annotated[str, Field(min_length=1)] = "auto"
    """`HOST:PORT`, or auto: $RAY_ADDRESS, else the cluster to which this host belongs."""
    gpus: float = Field(default=0.0, ge=0.0)
    """GPUs per proxy. With a fraction, several proxies share one GPU."""


class SlurmOptions(BaseModel):
    """Workers are jobs of a Slurm cluster."""

    model_config = _STRICT
    partition: Partition | None = None
    minutes: int = Field(default=240, ge=1)
    """Time limit of a job. It saves its state before that, and another job resumes."""
    gpus: int = Field(default=0, ge=0)
    memory_gb: int | None = Field(default=None, ge=1)
    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes of this host instead of jobs, for trials."""


class SearchConfig(RunConfig):
    """Configuration of a search. `model` and `train` are those of the proxies.

    The policy is written to `out`/NAME/policy.
    """

    method: MethodChoice
    seed: Seed = 0
    max_attempts: int = Field(default=3, ge=1)
    """The most attempts at a proxy run before it counts as failed."""
    max_failed_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """The largest share of proxies that may fail. The method learns from the others."""
    together: int = Field(default=1, ge=1)
    """The most proxies that a worker trains as one program, where that is faster and exact."""
    target_tokens: int | None = Field(default=None, ge=1)
    """The target run's budget, to compare repetition of domains. Default: RegMix's `tokens`."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Where workers run. Each engine has its own section of options."""
    local: LocalOptions = LocalOptions()
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()

    def proxy(self, corpus_fingerprint: str) -> dict[str, Any]:
        """Return what a worker needs to build a proxy's trainer, as plain JSON.

        It includes fingerprints, so another corpus or base model in the same place is another run.
        """
        same = self.model_dump(mode="json", include={"model", "trainer", "train"})
        if self.guard.epochs is not None:
            same["guard"] = {"epochs": self.guard.epochs}
        if folder := self.base_folder:
            same |= {"model": str(folder), "model_sha256": sha256_of_model(folder)}
        return {**same, "corpus": str(self.corpus.absolute()), "fingerprint": corpus_fingerprint}

    def group(self, corpus_fingerprint: str) -> str:
        """The name of the runs' group in the store. Equal for equal proxies, method and seed."""
        digest = short_digest(self.proxy(corpus_fingerprint))
        return f"{self.name[:55]}-{self.method.label}-s{self.seed}-{digest}"


@dataclass(frozen=True)
class SearchPlan:
    """The runs that a method requests next and their cost.

    A method may request more when it has seen those runs.
    """

    runs: int
    logged: int
    each: Cost
    """Cost of one run. FLOPs cover training and validation, without the policy's probes.

    Its seconds are an estimate from `estimated_from`.
    """
    estimated_from: str = ""
    memory: int = 0
    """Peak memory of one run in bytes: of the device on a GPU, else of the process."""

    @property
    def total(self) -> Cost:
        return Cost(
            self.runs * self.each.tokens, self.runs * self.each.flops, self.runs * self.each.seconds
        )

    def seconds(self, workers: int) -> float:
        """Estimated seconds until all runs are done, with `workers` workers of equal speed."""
        return math.ceil(self.runs / workers) * self.each.seconds


def make_trainer(proxy: Mapping[str, Any], seed: int) -> Trainer:
    """Build a proxy's trainer in a worker.

    Raises `ConfigError` if the corpus or the base model differs from the planned one.
    """
    content = {
        key: value for key, value in proxy.items() if key not in ("fingerprint", "model_sha256")
    }
    config = parse(TrainConfig, {**content, "seed": seed}, "the task")
    corpus = Corpus.open(config.corpus).without_test()
    _check(config.corpus, corpus.fingerprint, proxy["fingerprint"])
    if "model_sha256" in proxy:
        _check(Path(proxy["model"]), sha256_of_model(Path(proxy["model"])), proxy["model_sha256"])
    return build_trainer(config, corpus, Ranks())


def _check(place: Path, found: str, planned: str) -> None:
    if found != planned:
        raise ConfigError(
            f"{place} has fingerprint {found}, but the run was planned for {planned}: "
            "search again, or restore the old content"
        )


def repetition_checks(config: SearchConfig) -> list[str]:
    """Return a warning for each domain whose repetition in a proxy is far from the target run's.

    There is none if the target's budget is not known. The mixture compared is the roots of natural
    shares, the base of RegMix's prior.
    """
    target = config.target_tokens or getattr(config.method.build(config.seed), "tokens", None)
    if target is None:
        return []
    domains = Corpus.open(config.corpus).domains
    roots_K = np.sqrt(natural_K(domains))
    mixture = Mixture.normalise([domain.name for domain in domains], roots_K)
    train = config.train
    tokens = train.total_steps * train.batch_size * train.sequence_length
    return repetition_warnings(domains, mixture, tokens, target)


def plan(config: SearchConfig) -> SearchPlan:
    """Return what the search would do next, without storing any run.

    One proxy is trained for about two seconds to estimate memory and, if no run is done yet, time.
    """
    with _opened(config, writes=_policy_folder(config)) as (corpus, fleet):
        logged = fleet.load()
    each: Cost = TRAINERS.get(config.trainer).price(config.model, corpus, config.train)
    method = config.method.build(config.seed, config.objective)
    proposed = method.propose(corpus, logged)
    # Some methods propose their proxies one by one.
    to_come = max(len(proposed), getattr(method, "proxies", 0) - len(logged)) if proposed else 0
    if not proposed:
        return SearchPlan(0, len(logged), each)
    seconds, estimated_from = _estimate_seconds(config, corpus, proposed, logged)
    return SearchPlan(
        to_come, len(logged), each + Cost(seconds=seconds), estimated_from, peak_memory()
    )


def logged_runs(config: SearchConfig) -> list[Run]:
    """Return the finished proxy runs of this search."""
    with _opened(config, writes=None) as (_, fleet):
        return fleet.load()


def _estimate_seconds(
    config: SearchConfig, corpus: Corpus, proposed: Sequence[Policy], logged: Sequence[Run]
) -> tuple[float, str]:
    """Return the seconds of one proxy run, and what the estimate is based on."""
    still = Fixed(Mixture.natural(corpus.domains), probes=proposed[0].probes)
    with computing_threads(config.threads):
        trainer = make_trainer(_without_validation(config.proxy(corpus.fingerprint)), config.seed)
        _, seconds, steps = time_training(trainer, still)
    if logged:
        mean = sum(run.cost.seconds for run in logged) / len(logged)
        return mean, f"the {len(logged)} that are done"
    kind = TRAINERS.get(config.trainer)
    unvalidated = replace(config.train, validate_every=0, validation_tokens=0)
    priced: Cost = kind.price(config.model, corpus, config.train)
    bare: Cost = kind.price(config.model, corpus, unvalidated)
    training = seconds / steps * config.train.total_steps
    return validated_seconds(training, priced, bare), f"{steps} steps on this machine"


def _without_validation(proxy: Mapping[str, Any]) -> dict[str, Any]:
    return {**proxy, "train": {**proxy["train"], "validate_every": 0, "validation_tokens": 0}}


def search(
    config: SearchConfig,
    *,
    workers: int = 1,
    on_change: Callable[[FleetStatus], None] | None = None,
) -> Path:
    """Train the missing proxies, write the policy for the target run and return its folder.

    A second call resumes. Several drivers may share one store. `on_change` is called about once a
    second.
    """
    folder = _policy_folder(config)
    with _opened(config, workers, on_change, writes=folder) as (corpus, fleet):
        learning = _learning(config, None)
        _commit(learning, corpus, fleet, loop.explore(learning, corpus, fleet))
        return _write(learning, config, folder, corpus, fleet).folder


def learn(
    config: SearchConfig,
    out: Path | None = None,
    observer: Callable[[Any], None] | None = None,
) -> LearnResult:
    """Learn from the finished proxy runs and write the same policy folder as `search`.

    `out` is the folder, by default that of `search`. Learning resumes after an interruption.
    `observer` receives the progress of a method that takes long. Raises `ConfigError` if the
    method needs no proxy runs, `StoreError` if no run is done, and what the method raises if there
    are too few.
    """
    folder = out or _policy_folder(config)
    with _opened(config, writes=folder) as (corpus, fleet):
        learning = _learning(config, observer)
        logged = fleet.load()
        if not learning.propose(corpus, ()):
            raise ConfigError(
                f"{config.method.label} does not learn from logged runs: use it as the method of "
                "`cuvee train`"
            )
        if not logged:
            raise StoreError(
                f"no run of {config.group(corpus.fingerprint)!r} is done: run the proxies first "
                "with `cuvee search --runs-only` and the same file"
            )
        _commit(learning, corpus, fleet, logged)
        return _write(learning, config, folder, corpus, fleet)


def _commit(learning: Learning, corpus: Corpus, fleet: StoreFleet, finished: Sequence[Run]) -> None:
    failed = fleet.failed() if learning.learns_from_failed else []
    learning.commit(corpus, [*finished, *failed])


def _learning(config: SearchConfig, observer: Callable[[Any], None] | None) -> Learning:
    working = config.out / config.name / "learning"
    epochs = config.guard.epochs
    train = config.train
    tokens = train.total_steps * train.batch_size * train.sequence_length

    def with_caps(policy: Policy) -> Policy:
        if epochs is None or not isinstance(policy, ReadsCaps):
            return policy
        return policy.capped(epochs, tokens)

    method = config.method.build(config.seed, config.objective)
    return Learning(method, working, config.threads, observer, with_caps)


def _write(
    learning: Learning, config: SearchConfig, folder: Path, corpus: Corpus, fleet: StoreFleet
) -> LearnResult:
    return learning.write(
        folder, config.name, provenance_of(config, corpus.fingerprint), fleet.spent()
    )


def _policy_folder(config: SearchConfig) -> Path:
    return config.out / config.name / "policy"


_OF_PROXIES = ("model", "model_sha256", "trainer", "train")


def provenance_of(config: SearchConfig, corpus_fingerprint: str) -> dict[str, Any]:
    """Return what identifies a search in the provenance of its policy, as plain JSON."""
    setting = config.setting(corpus_fingerprint)
    proxies = {key: setting[key] for key in _OF_PROXIES if key in setting}
    return {
        **proxies,
        "guard": {"epochs": setting["guard"].get("epochs")},
        "method": config.method.model_dump(mode="json"),
        "objective": config.objective,
        "corpus": corpus_fingerprint,
        "seed": config.seed,
    }


def run_proxies(
    config: SearchConfig,
    *,
    workers: int = 1,
    on_change: Callable[[FleetStatus], None] | None = None,
) -> list[Run]:
    """Train the missing proxies and return all proxy runs: the first half of `search`."""
    with _opened(config, workers, on_change, writes=_policy_folder(config)) as (corpus, fleet):
        return loop.explore(_learning(config, None), corpus, fleet)


@contextmanager
def _opened(
    config: SearchConfig,
    workers: int = 1,
    on_change: Callable[[FleetStatus], None] | None = None,
    *,
    writes: Path | None,
) -> Iterator[tuple[Corpus, StoreFleet]]:
    """Open the corpus and a fleet over the store. The store is closed at the end of the block.

    `writes` is the folder for the policy, if there will be one. Raises `ConfigError` if it holds
    the policy of another search.
    """
    corpus = Corpus.open(config.corpus).without_test()
    epochs_K(config.guard.epochs, corpus.names)  # raises for a cap that does not fit
    method = config.method.build(config.seed, config.objective)
    check_search(method, corpus, config.trainer, config.train)
    check_writable(config.out)
    if writes is not None:
        check_same_search(writes, provenance_of(config, corpus.fingerprint))
    with open_store(config.store) as store:
        watch = FleetWatch(store, config.group(corpus.fingerprint))
        tell: OnChange | None = on_change and (lambda tally: on_change(watch.look(tally)))
        yield corpus, _fleet(config, store, corpus, workers, tell)


def _fleet(
    config: SearchConfig,
    store: Store,
    corpus: Corpus,
    workers: int,
    on_change: OnChange | None,
) -> StoreFleet:
    # Absolute, because workers on other hosts have other working directories.
    folder = (config.out / config.name).absolute()
    proxy = config.proxy(corpus.fingerprint)
    options: FleetOptions = {
        "group": config.group(corpus.fingerprint),
        "seed": config.seed,
        "workers": workers,
        "checkpoints": folder / "proxies",
        "every": config.checkpoint_every,
        "max_attempts": config.max_attempts,
        "max_failed_ratio": config.max_failed_ratio,
        "together": config.together,
        "threads": config.threads,
        "plugins": config.plugins,
        "on_change": on_change,
    }
    match config.engine:
        case "ray":
            return RayFleet(store, make_trainer, proxy, **config.ray.model_dump(), **options)
        case "slurm":
            return SlurmFleet(
                store,
                make_trainer,
                proxy,
                folder=folder / "jobs",
                **config.slurm.model_dump(),
                **options,
            )
        case _:
            return LocalFleet(store, make_trainer, proxy, **config.local.model_dump(), **options)
