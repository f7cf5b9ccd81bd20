"""`compare`: trains methods × seeds, one run after another or several in worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cuvee.core.errors import ConfigError, CuveeError, TrainingError
from cuvee.core.registry import import_plugins
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.build import build_policy
from cuvee.recipes.config.schema import CompareConfig, TrainConfig
from cuvee.recipes.progress.stopping import PipedStop, Stopped, StopRequest
from cuvee.recipes.progress.watch import Observer, Progress, Unobserved
from cuvee.recipes.reports.claims import register_claims
from cuvee.recipes.stores import open_store
from cuvee.recipes.train import refuse_changed, refuse_interrupted, train

_POLL_SECONDS = 0.2
"""How long the pool waits for messages before it checks for a stop request again."""


def compare(
    config: CompareConfig,
    *,
    resume: bool = False,
    workers: int = 1,
    observer: Observer | None = None,
) -> list[Run]:
    """Train the runs of `config`, of one model, and return them by seed. Finished ones are kept.

    With `workers` above 1, that many runs train at a time, each in its own process. A run that
    fails in training does not stop the others; the first such error is raised after all have ended.
    On SIGINT or SIGTERM every run saves a checkpoint, and `Stopped` is raised.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}: at least 1 is needed")
    assert config.models is None, "CompareConfig.by_model gives one comparison per model"
    corpus = Corpus.open(config.corpus)
    configs = {one.run_id(corpus.fingerprint): one for one in config.runs()}
    for one in configs.values():
        # A method that does not fit the corpus should fail now, not after hours.
        build_policy(one, corpus)
    observer = observer or Unobserved()
    with open_store(config.store) as store:
        known = {run_id: run for run_id in configs if (run := store.find(run_id))}
        for run_id in configs:
            refuse_interrupted(known.get(run_id), resume)
            if resume and run_id not in known:
                refuse_changed(configs[run_id], corpus, store, beside=configs)
        group = config.group(corpus.fingerprint)
        finished = sum(run_id in known and known[run_id].status == "done" for run_id in configs)
        register_claims(config, group, finished, len(configs))
        with StopRequest(observer.stopping) as stop:
            if workers == 1:
                failures = _one_by_one(list(configs.values()), resume, group, observer, stop)
            else:
                left = {
                    i: one
                    for i, one in configs.items()
                    if i not in known or known[i].status != "done"
                }
                for run_id in (i for i in configs if i not in left):
                    train(configs[run_id], observer=observer)  # reports the finished run
                failures = _WorkerPool(left, resume, group, observer, stop).work(workers)
        if failures:
            raise failures[0]
        return [store.load(run_id) for run_id in configs]


def _one_by_one(
    configs: Sequence[TrainConfig], resume: bool, group: str, observer: Observer, stop: StopRequest
) -> list[CuveeError]:
    failures: list[CuveeError] = []
    for done, config in enumerate(configs):
        if stop.signal is not None:
            raise Stopped(f"stopped with {done} of {len(configs)} runs done", stop.signal)
        try:
            train(config, resume=resume, observer=observer, group=group, stop=stop)
        except TrainingError as error:
            failures.append(error)
    return failures


class _WorkerPool:
    """Trains runs in worker processes, so a crash affects one run only.

    Each process has its own pipe to this one. In a shared queue, a process that dies while writing
    would keep the queue's lock.
    """

    def __init__(
        self,
        configs: dict[str, TrainConfig],
        resume: bool,
        group: str,
        observer: Observer,
        stop: StopRequest,
    ) -> None:
        self._waiting = dict(configs)
        self._resume = resume
        self._group = group
        self._observer = observer
        self._stop = stop
        self._running: dict[Connection, BaseProcess] = {}
        self._failures: list[CuveeError] = []

    def work(self, workers: int) -> list[CuveeError]:
        total = len(self._waiting)
        stopping = False
        try:
            while self._running or (self._waiting and self._stop.signal is None):
                while self._waiting and len(self._running) < workers and self._stop.signal is None:
                    run_id = next(iter(self._waiting))
                    self._begin(run_id, self._waiting.pop(run_id))
                self._receive(_POLL_SECONDS)
                if self._stop.signal is not None and not stopping:
                    stopping = True
                    for pipe in self._running:
                        with suppress(OSError):  # this process has just ended
                            pipe.send("stop")
        finally:
            # Processes are still running only after an error in this one.
            for process in self._running.values():
                process.terminate()
        if self._stop.signal is not None:
            done = total - len(self._waiting)
            raise Stopped(
                f"stopped with {done} of {total} runs begun; all their work is saved",
                self._stop.signal,
            )
        return self._failures

    def _begin(self, run_id: str, config: TrainConfig) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(run_id, config, self._resume, self._group, theirs), name=run_id
        )
        process.start()
        theirs.close()  # so that the pipe closes when the process ends
        self._running[ours] = process

    def _receive(self, seconds: float) -> None:
        """Pass on the messages of all processes for `seconds`, then return even if more wait."""
        until = time.monotonic() + seconds
        while self._running and (left := until - time.monotonic()) > 0:
            for pipe in wait(list(self._running), left):
                assert isinstance(pipe, Connection)
                try:
                    what, details = pipe.recv()
                except (EOFError, OSError):
                    self._remove(pipe)
                    continue
                if what == "failed":
                    self._failures.append(details[0])
                else:
                    getattr(self._observer, what)(*details)

    def _remove(self, pipe: Connection) -> None:
        """Remove an ended process. If it crashed, record that as a failure of its run."""
        pipe.close()
        process = self._running.pop(pipe)
        process.join()
        if process.exitcode:
            died = f"the process of run {process.name} died with exit code {process.exitcode}"
            self._observer.end(process.name, "died")
            self._failures.append(
                TrainingError(f"{died}: its output may say why; continue with --resume")
            )


class _Relay:
    """An observer that sends all events to the parent process, as long as there is one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def stopping(self) -> None: ...

    def begin(self, run_id: str, note: str) -> None:
        self.send("begin", run_id, note)

    def interval(self, progress: Progress) -> None:
        self.send("interval", progress)

    def end(self, run_id: str, note: str) -> None:
        self.send("end", run_id, note)

    def send(self, what: str, *details: object) -> None:
        with suppress(OSError):
            self._pipe.send((what, details))


def _work(run_id: str, config: TrainConfig, resume: bool, group: str, pipe: Connection) -> None:
    """Main function of a worker process. It ignores Ctrl-C and waits for the parent's request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    relay = _Relay(pipe)
    try:
        import_plugins(config.plugins)
        train(config, resume=resume, observer=relay, group=group, stop=PipedStop(pipe))
    except CuveeError as error:
        relay.send("failed", error)
    except Stopped as stopped:
        relay.end(run_id, str(stopped).removeprefix(f"{run_id} "))
