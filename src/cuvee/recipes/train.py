"""`train`: trains the run of one configuration, from the beginning or from its last checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import TakesDomains
from cuvee.core.trajectory import Cost, Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import is_alive, readable, worker_name
from cuvee.integrations.trackers import open_trackers
from cuvee.loop import run
from cuvee.policies.files import load_requested, save_policy
from cuvee.policies.guard.guard import Guard
from cuvee.policies.guard.operator import Operator
from cuvee.recipes.build import build_policy, build_trainer, record_of
from cuvee.recipes.config.schema import TrainConfig
from cuvee.recipes.journals import FollowingJournal, SavingJournal, WatchedJournal, log_to
from cuvee.recipes.preflight import check_writable
from cuvee.recipes.progress.stopping import Stop, StopRequest
from cuvee.recipes.progress.watch import Observer, Unobserved
from cuvee.recipes.reports.domains import write_model_card
from cuvee.recipes.stores import open_store
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.distributed import Leader, Ranks
from cuvee.training.placement import computing_threads


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    group: str | None = None,
    stop: Stop | None = None,
) -> Run:
    """Train the run of `config` and return it. A finished run is returned without training.

    An interrupted run resumes with `resume`; without it, `ConfigError` is raised. Under torchrun
    every process calls this function, and only rank 0 writes. A request of `stop`, by default
    SIGINT or SIGTERM, ends the run after the current interval with everything saved, and raises
    `Stopped`. `group` is the comparison to which the run belongs.
    """
    observer = observer or Unobserved()
    corpus = Corpus.open(config.corpus)
    check_writable(config.out)
    # A policy that cannot steer should fail before anything is created.
    guarded = build_policy(config, corpus)
    run_id = config.run_id(corpus.fingerprint)
    with open_store(config.store) as store:
        known = store.find(run_id)
        if known is None and resume and group is None:
            refuse_changed(config, corpus, store)
        if known is not None and known.status == "done":
            observer.end(
                run_id, f"is finished already: {known.cost.tokens:,} tokens, nothing to do"
            )
            return store.load(run_id)
        refuse_interrupted(known, resume)
        ranks = Ranks.connect()
        try:
            with (
                computing_threads(config.threads),
                StopRequest(observer.stopping) if stop is None else nullcontext(stop) as asked,
            ):
                seen = observer if ranks.rank == 0 else Unobserved()
                return _train(config, corpus, guarded, store, ranks, seen, asked, group)
        finally:
            ranks.close()


def check_resumable(config: TrainConfig) -> None:
    """Raise the `ConfigError` of `refuse_changed` before anything else is said or done."""
    corpus = Corpus.open(config.corpus)
    with open_store(config.store) as store:
        if store.find(config.run_id(corpus.fingerprint)) is None:
            refuse_changed(config, corpus, store)


def refuse_changed(
    config: TrainConfig, corpus: Corpus, store: Store, beside: Collection[str] | None = None
) -> None:
    """Raise `ConfigError` if a run of this name was interrupted under other settings.

    The error names the settings that differ. `beside` are the ids of a comparison. Its methods,
    models and seeds have one name, so a run then counts only if it has the same ones and another id.
    """
    now = record_of(config, corpus)
    # Ids begin with the name, cut to 55 characters with the label and the seed.
    listing = store.listing(beginning=config.name[:55])
    for known in reversed(listing.runs):
        if known.status == "done" or not known.intervals or known.config.get("name") != config.name:
            continue
        differ = sorted(_differences(known.config, now))
        if beside is not None and (
            known.id in beside
            or (known.name, known.seed) != (config.label, config.seed)
            or any(key.split(".")[0] in _APART for key in differ)
        ):
            continue
        raise ConfigError(
            f"--resume finds no run with these settings, but {known.id} was interrupted at "
            f"{known.progress:.0%} with another {', '.join(differ)}: give the settings of that run "
            "to continue it, or start a new run without --resume"
        )


_APART = {"model", "model_sha256", "part_seeds", "policy"}
"""Keys in which runs of one comparison may differ."""


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The dotted keys under which two configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path


def refuse_interrupted(known: RunSummary | None, resume: bool) -> None:
    """Raise `ConfigError` if the run has begun and is not finished, unless `resume` is given.

    The error says whether the run was interrupted or another process still trains it.
    """
    if known is None or known.status == "done" or not known.intervals or resume:
        return
    where = f"at {known.progress:.0%} of its budget"
    if known.status == "running" and is_alive(known.worker or "") is not False:
        raise ConfigError(
            f"run {known.id} is {where} and is being trained by {readable(known.worker)}: "
            "wait for that process, or stop it"
        )
    why = f" ({known.reason})" if known.reason else ""
    raise ConfigError(
        f"run {known.id} was interrupted {where}{why}: continue it with --resume, or start another "
        "one under another name, as in name=second-try"
    )


def late_decisions(store: Store, known: RunSummary) -> dict[int, bool]:
    """Return whether each recorded decision of the run was late, by timestep."""
    metrics = store.metrics(known.id) if known.intervals else []
    return {t: bool((one.get("guard") or {}).get("late")) for t, one in enumerate(metrics)}


def _train(
    config: TrainConfig,
    corpus: Corpus,
    guarded: Guard,
    store: Store,
    ranks: Ranks,
    observer: Observer,
    stop: Stop,
    group: str | None,
) -> Run:
    run_id = config.run_id(corpus.fingerprint)
    record = record_of(config, corpus)
    folder = (config.out / run_id).absolute()
    trainer = build_trainer(config, corpus, ranks)
    policy = Leader(guarded, ranks)
    checkpoints = Checkpoints(folder / "checkpoints")

    def watched(inner: SavingJournal) -> WatchedJournal:
        return WatchedJournal(inner, run_id, ranks, stop, observer)

    if ranks.rank > 0:
        so_far = run(trainer, policy, watched(FollowingJournal(store, run_id, checkpoints)))
        return Run(run_id, config.seed, record, so_far, trainer.cost)
    tracked = log_to(open_trackers(config.trackers, folder))
    store.create(config.label, config.seed, record, group=group, run_id=run_id)
    claim = store.claim_run(run_id, worker_name())
    takes = trainer if isinstance(trainer, TakesDomains) and ranks.size == 1 else None
    guarded.operator = Operator(claim, load_requested, takes)
    journal = RunJournal(store, claim, checkpoints, config.checkpoint_every, tracked)
    with journal.attempt(trainer):
        guarded.recorded = late_decisions(store, claim.run)
        trajectory = run(trainer, policy, watched(journal))
        model = folder / "model"
        claim.heartbeat()  # raises if another process has the run: what follows is that one's
        trainer.export(model)
        if model.exists():
            done = Run(run_id, config.seed, record, trajectory, trainer.cost)
            write_model_card(model, done)
        provenance = {"run": run_id, "corpus": corpus.fingerprint, "seed": config.seed}
        before = config.policy.proxies if config.policy else Cost()
        spent = {} if before is None else {"proxies": asdict(before + trainer.cost)}
        claim.heartbeat()
        save_policy(folder / "policy", guarded, {**provenance, **spent})
        exported = str(model) if model.exists() else None
        journal.finish(trainer, policy=str(folder / "policy"), model=exported)
    finished = store.load(run_id)
    where = f", model in {_short(model)}" if exported else ""
    observer.end(run_id, f"is finished: {finished.cost.tokens:,} tokens{where}")
    return finished


def _short(path: Path) -> str:
    """Return the path relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
