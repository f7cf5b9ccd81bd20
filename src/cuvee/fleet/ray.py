"""`RayFleet`: workers as tasks of an existing Ray cluster.

    fleet = RayFleet(store, make_trainer, proxy, group="regmix", workers=64, gpus=0.25)
    policy = search(method, corpus, fleet)

A worker is one Ray task that takes one run after another from the store. If its node is lost, its
lease expires, another worker resumes its run, and the driver asks Ray for a new worker. Cancelling
a task sends it a SIGINT, which asks the worker to leave.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

from cuvee.core.errors import ConfigError, StoreError, pip_install
from cuvee.fleet.engine import FleetOptions, StoreFleet, Worker
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer
from cuvee.fleet.worker import work_until_signalled

if TYPE_CHECKING:
    from ray import ObjectRef

_CONNECT_SECONDS = 10.0


class RayFleet(StoreFleet):
    """Runs workers as Ray tasks. See `StoreFleet` for the other options.

    `address` is the cluster's `host:port`; "auto" means $RAY_ADDRESS, or the cluster that this host
    is part of. Each worker requests `threads` CPUs and `gpus` GPUs; a fraction of a GPU is enough
    for tiny proxies. Corpus and checkpoint folder must have the same path on every node, and every
    node needs cuvee with the extra `ray`.

    Raises `ConfigError` if there is no cluster, and `StoreError` if it has several hosts and the
    store is a SQLite file.
    """

    def __init__(
        self,
        store: Store,
        make_trainer: MakeTrainer,
        proxy: Mapping[str, Any],
        *,
        address: str = "auto",
        gpus: float = 0.0,
        **options: Unpack[FleetOptions],
    ) -> None:
        super().__init__(store, make_trainer, proxy, **options)
        self._orders = dataclasses.replace(self._orders, idle_seconds=2.0)
        self._address = address
        self._gpus = gpus

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            import ray
        except ImportError:
            raise ConfigError(f"the engine ray needs Ray: {pip_install('ray')}") from None
        ours = not ray.is_initialized()
        if ours:
            try:
                _check_reachable(self._address)
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"there is no Ray cluster at {self._address!r} ({error}): start one with "
                    "`ray start --head`, or give "
                    "the address of one as ray.address"
                ) from error
        try:
            yield
        finally:
            if ours:
                ray.shutdown()

    def _start(self, slot: int) -> Worker:
        import ray

        hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        if self._store.address.is_sqlite and hosts != {ray.util.get_node_ip_address()}:
            raise StoreError(
                f"the Ray cluster has the hosts {', '.join(sorted(hosts))}, and "
                f"{self._store.address.shown} can be written "
                "from one only: use a PostgreSQL store (--store postgresql://… or @FILE)"
            )
        # One process per task, as in the other engines.
        task = ray.remote(max_calls=1)(work_until_signalled)
        resources = {
            "num_cpus": self._orders.threads,
            "num_gpus": self._gpus,
            "name": f"cuvee {self._group}",
        }
        return _Task(task.options(**resources, max_retries=0).remote(self._orders))

    def _pause(self, workers: Sequence[Worker], seconds: float) -> bool:
        import ray

        return bool(
            ray.wait(
                [worker.task for worker in workers if isinstance(worker, _Task)], timeout=seconds
            )[0]
        )


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody answers at `address`; Ray itself takes minutes to notice."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


class _Task:
    """A worker as a Ray task."""

    def __init__(self, task: ObjectRef[None]) -> None:
        self.task = task

    def alive(self) -> bool:
        import ray

        return not ray.wait([self.task], timeout=0)[0]

    def trouble(self) -> str | None:
        import ray

        try:
            ray.get(self.task)
        except ray.exceptions.TaskCancelledError:
            return None
        except Exception as error:  # Ray raises a subclass of the class that the task raised
            return str(error)
        return None

    def leave(self) -> None:
        import ray

        ray.cancel(self.task)

    def close(self) -> None:
        import ray

        ray.cancel(self.task, force=True)
