"""`SlurmFleet`: workers as jobs of a Slurm cluster, submitted with submitit.

    fleet = SlurmFleet(
        store, make_trainer, proxy, group="regmix", workers=64,
        folder=Path("runs/jobs"), partition="gpu", gpus=1,
    )
    policy = search(method, corpus, fleet)

A job takes one run after another from the store until none is open. Jobs keep running if their
driver is killed. A driver that is started again plans no run twice, but submits jobs of its own. A
driver that ends in another way cancels its jobs. A job that is cancelled, preempted or out of time
receives a signal, saves and releases its run. If a job is lost, its lease expires and another job
resumes its run.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from cuvee.core.errors import ConfigError, StoreError, pip_install
from cuvee.fleet.engine import FleetOptions, StoreFleet, Worker
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer
from cuvee.fleet.worker import work_until_signalled

if TYPE_CHECKING:
    from submitit import Job

Cluster = Literal["slurm", "local"]

_QUEUE_POLL_SECONDS = 5.0  # while cancelled jobs end
_WARNING_SECONDS = 120  # a job receives its signal this long before its time is over


class SlurmFleet(StoreFleet):
    """Runs workers as Slurm jobs. See `StoreFleet` for the other options.

    `folder` is where submitit keeps jobs and their output. It must be on a file system that all
    nodes share, and is made readable by its owner only, because the address and password of the
    store are in it. Each job has `threads` CPUs, `gpus` GPUs and `minutes` of time.
    `cluster="local"` runs jobs as processes of this host, for tests. Needs the extra
    `slurm`.

    Raises `ConfigError` if there is no Slurm on this host, and `StoreError` for a SQLite store with
    it.
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
                f"Slurm's jobs run on other hosts, and {store.address.shown} can be written from "
                "one only: use a PostgreSQL store (--store postgresql://… or @FILE)"
            )
        self._orders = dataclasses.replace(self._orders, idle_seconds=2.0)
        self._folder = folder.absolute()
        self._cluster = cluster
        parameters = {
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", f"cuvee-{self._group}")[:60],
            "timeout_min": minutes,
            "cpus_per_task": self._orders.threads,
            "gpus_per_node": gpus or None,
            "mem_gb": memory_gb,
            "slurm_partition": partition,
            "slurm_signal_delay_s": min(_WARNING_SECONDS, 30 * minutes),
        }
        self._parameters = {name: value for name, value in parameters.items() if value is not None}
        self._executor: Any = None

    def _start(self, slot: int) -> Worker:
        if self._executor is None:
            self._executor = self._connect()
        return _Job(self._executor.submit(work_until_signalled, self._orders))

    def _connect(self) -> Any:
        try:
            import submitit
        except ImportError:
            raise ConfigError(f"the engine slurm needs submitit: {pip_install('slurm')}") from None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        try:
            executor = submitit.AutoExecutor(self._folder, cluster=self._cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"there is no Slurm here ({error}): start the driver where `sbatch` works"
            ) from error
        executor.update_parameters(**self._parameters)
        return executor


class _Job:
    """A worker as a Slurm job."""

    def __init__(self, job: Job[None]) -> None:
        self._job = job
        self._ask_again = float("inf")

    def alive(self) -> bool:
        # Only the queue knows that a job is gone if it never began.
        ask = time.monotonic() >= self._ask_again
        if ask:
            self._ask_again = time.monotonic() + _QUEUE_POLL_SECONDS
        return not self._job.done(force_check=ask)

    def trouble(self) -> str | None:
        if not self._job.paths.result_pickle.exists():  # submitit would block until it exists
            return (
                f"job {self._job.job_id} ended without a result; its output is in "
                f"{self._job.paths.stderr}"
            )
        error = self._job.exception()
        return str(error) if error else None

    def leave(self) -> None:
        self._job.cancel(check=False)
        self._ask_again = time.monotonic() + _QUEUE_POLL_SECONDS

    def close(self) -> None:
        if self.alive():
            self._job.cancel(check=False)
