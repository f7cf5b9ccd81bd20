"""`compare`: methods × seeds, each run once, one after the other or several at a time in processes of their own."""

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
from cuvee.recipes.stores import open_store
from cuvee.recipes.train import refuse_interrupted, train

_LOOK_EVERY = 0.2  # seconds between two looks at the processes


def compare(
    config: CompareConfig,
    *,
    resume: bool = False,
    workers: int = 1,
    observer: Observer | None = None,
) -> list[Run]:
    """Trains what `config` says and returns its runs, seed by seed. A run that is finished is not repeated.

    With `workers` above 1, so many runs go on at a time, each in a process of its own. A run that fails in training does
    not stop the others; the first such error is raised when all have ended. SIGINT and SIGTERM end every run with a
    checkpoint and raise `Stopped`.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}: at least 1 is needed")
    corpus = Corpus.open(config.corpus)
    configs = {one.run_id(corpus.fingerprint): one for one in config.runs()}
    for one in configs.values():
        build_policy(
            one, corpus
        )  # so that a method that does not fit is found out now and not after hours
    observer = observer or Unobserved()
    with open_store(config.store) as store:
        known = {run.id: run for run in store.runs()}
        for run_id in configs:
            refuse_interrupted(known.get(run_id), resume)
        group = config.group(corpus.fingerprint)
        with StopRequest() as stop:
            if workers == 1:
                failures = _one_by_one(list(configs.values()), resume, group, observer, stop)
            else:
                left = {
                    i: one
                    for i, one in configs.items()
                    if i not in known or known[i].status != "done"
                }
                for run_id in (i for i in configs if i not in left):
                    train(configs[run_id], observer=observer)  # only says so: not worth a process
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
    """Runs in processes of their own, so many at a time: what one of them breaks, the others do not notice.

    Each has a line of its own to the process that looks on. One queue for all would be lost with its lock when a process dies
    while it writes.
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
        told = False
        try:
            while self._running or (self._waiting and self._stop.signal is None):
                while self._waiting and len(self._running) < workers and self._stop.signal is None:
                    run_id = next(iter(self._waiting))
                    self._begin(run_id, self._waiting.pop(run_id))
                self._listen(_LOOK_EVERY)
                if self._stop.signal is not None and not told:
                    told = True
                    for line in self._running:
                        with suppress(OSError):  # that one has just ended
                            line.send("stop")
        finally:
            for process in (
                self._running.values()
            ):  # there are some only if something went wrong here: end them at once
                process.terminate()
        if self._stop.signal is not None:
            done = total - len(self._waiting)
            raise Stopped(
                f"stopped with {done} of {total} runs begun, all that they did is saved",
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
        theirs.close()  # so that the line ends with the process
        self._running[ours] = process

    def _listen(self, seconds: float) -> None:
        """Passes on what comes in `seconds`, and no longer, however much the processes have to say."""
        until = time.monotonic() + seconds
        while self._running and (left := until - time.monotonic()) > 0:
            for line in wait(list(self._running), left):
                assert isinstance(line, Connection)
                try:
                    what, details = line.recv()
                except (EOFError, OSError):
                    self._bury(line)
                    continue
                if what == "failed":
                    self._failures.append(details[0])
                else:
                    getattr(self._observer, what)(*details)

    def _bury(self, line: Connection) -> None:
        line.close()
        process = self._running.pop(line)
        process.join()
        if process.exitcode:
            died = f"the process of run {process.name} died with exit code {process.exitcode}"
            self._observer.end(process.name, "died")
            self._failures.append(
                TrainingError(f"{died}: its output may say why; continue with --resume")
            )


class _Relay:
    """An observer that passes everything on to the process that looks on, as long as there is one."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def begin(self, run_id: str, note: str) -> None:
        self.say("begin", run_id, note)

    def interval(self, progress: Progress) -> None:
        self.say("interval", progress)

    def end(self, run_id: str, note: str) -> None:
        self.say("end", run_id, note)

    def say(self, what: str, *details: object) -> None:
        with suppress(OSError):
            self._line.send((what, details))


def _work(run_id: str, config: TrainConfig, resume: bool, group: str, line: Connection) -> None:
    """What a worker process does. Ctrl-C reaches it too, but it waits for the stop request of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    relay = _Relay(line)
    try:
        import_plugins(config.plugins)
        train(config, resume=resume, observer=relay, group=group, stop=PipedStop(line))
    except CuveeError as error:
        relay.say("failed", error)
    except Stopped as stopped:
        relay.end(run_id, str(stopped).removeprefix(f"{run_id} "))
