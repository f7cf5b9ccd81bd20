"""`SlurmFleet`: the same workers as jobs of a Slurm cluster, submitted through submitit.

    fleet = SlurmFleet(store, make_trainer, proxy, group="regmix", workers=64, folder=Path("runs/jobs"), partition="gpu", gpus=1)
    policy = search(method, corpus, fleet)

A job takes run after run from the store until none is open. It outlives a driver that is killed; one that is started again plans
no run twice, but submits jobs of its own beside those. A driver that ends otherwise cancels its jobs. A job that is cancelled,
preempted or out of time is told so by a signal, saves and gives its run back; one that is lost loses its lease, and another one
goes on with its run.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from cuvee.core.errors import ConfigError, StoreError
from cuvee.fleet.engine import FleetOptions, StoreFleet, Worker
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer
from cuvee.fleet.worker import work_until_signalled

if TYPE_CHECKING:
    from submitit import Job

Cluster = Literal["slurm", "local"]

_ASK_QUEUE_EVERY = 5.0  # seconds, while jobs that were cancelled come to their end
_WARNED_SECONDS = 120  # before its time is over, a job is told


class SlurmFleet(StoreFleet):
    """`folder` is where submitit keeps jobs and their output, on a file system that all nodes see; it is made readable by its
    owner only, since what a job needs to open the store lies there. Each job has `threads` CPUs, `gpus` GPUs and `minutes` of
    time. `cluster="local"` runs the jobs as processes of this host, to try things out. For the rest see `StoreFleet`.

    Needs `pip install 'cuvee[slurm]'`. Raises `ConfigError` if Slurm is not here, and `StoreError` for a SQLite store on it.
    """

    def __init__(
        self,
        store: Store,
        make_trainer: MakeTrainer,
        proxy: Mapping[str, Any],
        *,
        folder: Path,
        cluster: Cluster = "slurm",
        partition: str | None = None,
        minutes: int = 240,
        gpus: int = 0,
        memory_gb: int | None = None,
        **options: Unpack[FleetOptions],
    ) -> None:
        super().__init__(store, make_trainer, proxy, **options)
        if cluster == "slurm" and store.address.is_sqlite:
            raise StoreError(
                f"Slurm's jobs run on other hosts, and {store.address.shown} can be written from one only: "
                "use a PostgreSQL store (--store postgresql://… or @FILE)"
            )
        self._orders = dataclasses.replace(self._orders, idle_seconds=2.0)
        self._folder, self._cluster = folder.absolute(), cluster
        wanted = {
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", f"cuvee-{self._group}")[:60],
            "timeout_min": minutes,
            "cpus_per_task": self._orders.threads,
            "gpus_per_node": gpus or None,
            "mem_gb": memory_gb,
            "slurm_partition": partition,
            "slurm_signal_delay_s": min(_WARNED_SECONDS, 30 * minutes),
        }
        self._wanted = {name: value for name, value in wanted.items() if value is not None}
        self._executor: Any = None

    def _start(self, slot: int) -> Worker:
        if self._executor is None:
            self._executor = self._connect()
        return _Job(self._executor.submit(work_until_signalled, self._orders))

    def _connect(self) -> Any:
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "the engine slurm needs submitit: pip install 'cuvee[slurm]'"
            ) from None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        try:
            executor = submitit.AutoExecutor(self._folder, cluster=self._cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"there is no Slurm here ({error}): start the driver where `sbatch` works"
            ) from error
        executor.update_parameters(**self._wanted)
        return executor


class _Job:
    def __init__(self, job: Job[None]) -> None:
        self._job, self._ask_again = job, float("inf")

    def alive(self) -> bool:
        ask = (
            time.monotonic() >= self._ask_again
        )  # of a job that never began, only the queue knows that it is gone
        if ask:
            self._ask_again = time.monotonic() + _ASK_QUEUE_EVERY
        return not self._job.done(force_check=ask)

    def trouble(self) -> str | None:
        if not self._job.paths.result_pickle.exists():  # submitit would wait for it
            return f"job {self._job.job_id} ended without a result; its output is in {self._job.paths.stderr}"
        error = self._job.exception()
        return str(error) if error else None

    def leave(self) -> None:
        self._job.cancel(check=False)
        self._ask_again = time.monotonic() + _ASK_QUEUE_EVERY

    def close(self) -> None:
        if self.alive():
            self._job.cancel(check=False)
