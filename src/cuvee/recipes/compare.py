"""`compare`: methods × seeds, each run once, one after the other or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from cuvee.core.errors import ConfigError, CuveeError, TrainingError
from cuvee.core.trajectory import Run
from cuvee.data.corpus import Corpus
from cuvee.recipes.build import build_policy
from cuvee.recipes.config import CompareConfig, TrainConfig
from cuvee.recipes.stopping import Stop, Stopped, StopRequest, ToldToStop
from cuvee.recipes.stores import open_store
from cuvee.recipes.train import refuse_interrupted, train
from cuvee.recipes.watch import Observer, Progress, Unobserved

_LOOK_EVERY = 0.2  # seconds between two looks at the processes


def compare(
    config: CompareConfig, *, resume: bool = False, workers: int = 1, observer: Observer | None = None
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
        build_policy(one, corpus)  # so that a method that does not fit is found out now and not after hours
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
                left = {i: one for i, one in configs.items() if i not in known or known[i].status != "done"}
                for run_id in (i for i in configs if i not in left):
                    train(configs[run_id], observer=observer)  # only says so: not worth a process
                failures = _Crew(left, resume, group, observer, stop).work(workers)
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


class _Crew:
    """Runs in processes of their own, so many at a time: what one of them breaks, the others do not notice."""

    def __init__(
        self, configs: dict[str, TrainConfig], resume: bool, group: str, observer: Observer, stop: StopRequest
    ) -> None:
        self._waiting = dict(configs)
        self._resume, self._group, self._observer, self._stop = resume, group, observer, stop
        context = multiprocessing.get_context("spawn")
        self._context, self._events, self._told = context, context.Queue(), context.Event()
        self._running: dict[str, BaseProcess] = {}
        self._failures: list[CuveeError] = []

    def work(self, workers: int) -> list[CuveeError]:
        total = len(self._waiting)
        try:
            while self._running or (self._waiting and self._stop.signal is None):
                while self._waiting and len(self._running) < workers and self._stop.signal is None:
                    run_id = next(iter(self._waiting))
                    self._begin(run_id, self._waiting.pop(run_id))
                self._listen(_LOOK_EVERY)
                self._bury()
                if self._stop.signal is not None:
                    self._told.set()
        finally:
            for process in self._running.values():  # there are some only if something went wrong here: end them at once
                process.terminate()
        if self._stop.signal is not None:
            done = total - len(self._waiting)
            raise Stopped(f"stopped with {done} of {total} runs begun, all that they did is saved", self._stop.signal)
        return self._failures

    def _begin(self, run_id: str, config: TrainConfig) -> None:
        arguments = (run_id, config, self._resume, self._group, self._events, self._told)
        process = self._context.Process(target=_work, args=arguments, name=run_id)
        process.start()
        self._running[run_id] = process

    def _listen(self, seconds: float) -> None:
        """Passes on what comes in `seconds`, and no longer, however much the processes have to say."""
        until = time.monotonic() + seconds
        with suppress(queue.Empty):
            while (left := until - time.monotonic()) > 0:
                what, details = self._events.get(timeout=left)
                if what == "failed":
                    self._failures.append(details[0])
                else:
                    getattr(self._observer, what)(*details)

    def _bury(self) -> None:
        for run_id, process in list(self._running.items()):
            if process.exitcode is None:
                continue
            del self._running[run_id]
            if process.exitcode:
                died = f"the process of run {run_id} died with exit code {process.exitcode}"
                self._observer.end(run_id, "died")
                self._failures.append(TrainingError(f"{died}: its output may say why; continue with --resume"))
        if not self._running:
            self._listen(_LOOK_EVERY)  # last words


class _Relay:
    """An observer that passes everything on to the process that looks on."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def begin(self, run_id: str, note: str) -> None:
        self._events.put(("begin", (run_id, note)))

    def interval(self, progress: Progress) -> None:
        self._events.put(("interval", (progress,)))

    def end(self, run_id: str, note: str) -> None:
        self._events.put(("end", (run_id, note)))


def _work(run_id: str, config: TrainConfig, resume: bool, group: str, events: Any, told: Any) -> None:
    """What a process of the crew does. Ctrl-C reaches it too, but it waits to be told by the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop: Stop = ToldToStop(told)
    try:
        train(config, resume=resume, observer=_Relay(events), group=group, stop=stop)
    except CuveeError as error:
        events.put(("failed", (error,)))
    except Stopped as stopped:
        events.put(("end", (run_id, str(stopped).removeprefix(f"{run_id} "))))
