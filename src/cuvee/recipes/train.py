"""`train`: one configuration → one run, from wherever it stopped to its end."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Cost, Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.fleet.store.worker_name import is_dead, worker_name
from cuvee.loop import run
from cuvee.policies.files import save_policy
from cuvee.policies.guard.guard import Guard
from cuvee.recipes.build import build_policy, build_trainer, record_of
from cuvee.recipes.config.schema import TrainConfig
from cuvee.recipes.journals import FollowingJournal, SavingJournal, WatchedJournal
from cuvee.recipes.progress.stopping import Stop, StopRequest
from cuvee.recipes.progress.watch import Observer, Unobserved
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
    """Trains what `config` says and returns the run; if it is finished already, returns that and does nothing.

    A run that was interrupted goes on with `resume`, and is refused without it. Under torchrun every process calls this and
    rank 0 alone writes. When `stop` asks, by default for SIGINT and SIGTERM, the run ends with `Stopped` after the interval
    under way, everything saved. `group` is what a comparison files its runs under.
    """
    observer = observer or Unobserved()
    corpus = Corpus.open(config.corpus)
    guarded = build_policy(
        config, corpus
    )  # so that what cannot steer is found out before anything is created
    run_id = config.run_id(corpus.fingerprint)
    with open_store(config.store) as store:
        known = next((found for found in store.runs() if found.id == run_id), None)
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
                StopRequest() if stop is None else nullcontext(stop) as asked,
            ):
                seen = observer if ranks.rank == 0 else Unobserved()
                return _train(config, corpus, guarded, store, ranks, seen, asked, group)
        finally:
            ranks.close()


def refuse_interrupted(known: RunSummary | None, resume: bool) -> None:
    """Raises `ConfigError` if the run has begun, is not finished, and nobody said that it shall go on, or somebody is at it."""
    if known is None or known.status == "done" or not known.intervals or resume:
        return
    where = f"at {known.progress:.0%} of its budget"
    if known.status == "running" and not is_dead(known.worker or ""):
        raise ConfigError(
            f"run {known.id} is {where} and {known.worker} has it: wait for that process, or stop it"
        )
    why = f" ({known.reason})" if known.reason else ""
    raise ConfigError(
        f"run {known.id} was interrupted {where}{why}: continue it with --resume, or start another one by giving it "
        "another name, as in name=second-try"
    )


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
    store.create(config.label, config.seed, record, group=group, run_id=run_id)
    journal = RunJournal(
        store, store.claim_run(run_id, worker_name()), checkpoints, config.checkpoint_every
    )
    with journal.attempt(trainer):
        run(trainer, policy, watched(journal))
        model = folder / "model"
        trainer.export(model)
        provenance = {"run": run_id, "corpus": corpus.fingerprint, "seed": config.seed}
        before = config.policy.proxies if config.policy else Cost()
        spent = {} if before is None else {"proxies": asdict(before + trainer.cost)}
        save_policy(folder / "policy", guarded, {**provenance, **spent})
        exported = str(model) if model.exists() else None
        journal.finish(trainer, policy=str(folder / "policy"), model=exported)
    finished = store.load(run_id)
    where = f", model in {_short(model)}" if exported else ""
    observer.end(run_id, f"is finished: {finished.cost.tokens:,} tokens{where}")
    return finished


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
