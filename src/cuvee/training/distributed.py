"""Data-parallel ranks: sums over ranks, agreement between ranks, and a policy on rank 0.

Ranks exchange only tensors and fixed-size bytes, never pickled objects. The network between them is
trusted.

A step costs two collectives. The first gathers 88 bytes per rank *before* the forward pass. With it
every rank checks that all train the same step under the same mixture, and learns how many tokens
count in the whole batch. The second sums the gradients. So no step is ever trained on mixtures that
differ.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Policy, Probe, State
from cuvee.core.trajectory import Trajectory
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.probes.base import Place

# After a failed collective, a rank waits this long for the last other rank to report its failure.
_ROLL_CALL_SECONDS = 3.0
# The longest difference between the start times of ranks: machines boot at different speeds.
_JOIN_SECONDS = 600.0
_ORIGIN = dict.fromkeys(("data_rank", "context_rank", "tensor_rank", "stage"), 0)


class Ranks:
    """The ranks of a run, as seen by this process. `Ranks()` is a single rank without exchanges."""

    def __init__(
        self,
        store: Any | None = None,
        rank: int = 0,
        size: int = 1,
        timeout: float = 600.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        assert 0 <= rank < size
        assert store is not None or size == 1
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self._store = store
        self._group = group
        self._roll = "failed"
        """Prefix of the keys in the store by which ranks report a failure."""

    @classmethod
    def connect(cls, *, timeout: float = 600.0) -> Ranks:
        """Connect the processes that `torchrun` started: gloo between CPUs, NCCL between GPUs.

        Without `torchrun` the result is a single rank. A rank that waits more than `timeout`
        seconds for the others raises `TrainingError`.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        limit = timedelta(seconds=timeout)
        join = timedelta(seconds=max(timeout, _JOIN_SECONDS))
        store, rank, size = next(rendezvous("env://", timeout=join))
        store.set_timeout(limit)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        return cls(store, rank, size, timeout)

    @classmethod
    def adopt(cls, group: dist.ProcessGroup | None = None, *, timeout: float = 600.0) -> Ranks:
        """Use the processes of `group`, by default all that a host's trainer has connected.

        Without a process group the result is a single rank. The ranks exchange CPU tensors in a
        gloo group of their own, so a failure here leaves the host's groups intact. All processes
        of the group must call this at the same time.
        """
        if not dist.is_initialized():
            return cls()
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        if len(members) == 1:
            return cls()
        own = dist.new_group(
            members, timedelta(seconds=timeout), "gloo", use_local_synchronization=True
        )
        assert isinstance(own, dist.ProcessGroup)
        store = dist.distributed_c10d._get_default_store()
        ranks = cls(store, dist.get_rank(own), len(members), timeout, own)
        ranks._roll = f"cuvee-failed/{own.group_name}"
        return ranks

    def close(self) -> None:
        """Leave the group. Groups that a host has connected stay connected."""
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

    def sum(self, tensor: Tensor, what: str) -> None:
        """Replace `tensor` on every rank by its sum over ranks.

        `what` names the exchange in errors. Raises `TrainingError` if a rank does not take part.
        """
        if self.size > 1:
            with self._together(what):
                dist.all_reduce(tensor, group=self._group)

    def from_first(self, tensor: Tensor, what: str) -> None:
        """Replace `tensor` on every rank by that of rank 0.

        Raises `TrainingError` if a rank does not take part.
        """
        if self.size > 1:
            with self._together(what):
                dist.broadcast(tensor, group=self._group, group_src=0)

    def agree(self, step: int, batch: Batch | MixtureUpdate, counted: int) -> int:
        """Check that all ranks train the same step next; return Σ `counted` over ranks.

        They must have the same step, mixture and log of mixtures. Otherwise every rank raises
        `TrainingError`, which names the rank that differs from rank 0 and both values.
        """
        if self.size == 1:
            return counted
        own = [
            counted,
            step,
            batch.version,
            *_to_words(batch.mixture_digest),
            *_to_words(batch.log_digest),
        ]
        counts, *rows = self._gather(own, f"the agreement before step {step}")
        for rank, row in enumerate(rows):
            if row != rows[0]:
                raise TrainingError(
                    f"ranks disagree: rank {rank} is at {_describe(row)}, rank 0 at "
                    f"{_describe(rows[0])}. This step was not trained; give every rank the same "
                    "mixture, and restart from the last checkpoint"
                )
        return sum(counts)

    def same(self, what: str, digest: str) -> None:
        """Check that all ranks have the same sha256 of `what`.

        Otherwise every rank raises `TrainingError`, which names a rank that differs from rank 0.
        """
        if self.size == 1:
            return
        _, *rows = self._gather([0, *_to_words(digest)], f"the comparison of {what}")
        for rank, row in enumerate(rows):
            if row != rows[0]:
                raise TrainingError(
                    f"ranks disagree on {what}: rank {rank} has {_to_hex(row)}, rank 0 has "
                    f"{_to_hex(rows[0])}. Start every rank with the same files and settings"
                )

    def same_rows(self, step: int, data_rank: int, digest: str | None) -> None:
        """Check that ranks with the same `data_rank` read the same rows; None if it read none.

        `digest` is the sha256 of the rows. Every rank raises `TrainingError` if two differ.
        """
        own = [data_rank, *(_to_words(digest) if digest else [0] * 4)]
        data_ranks, *rows = self._gather(own, f"the comparison of the rows of step {step}")
        first: dict[int, int] = {}
        for rank, (place, row) in enumerate(zip(data_ranks, rows, strict=True)):
            other = first.setdefault(place, rank) if any(row) else rank
            if row != rows[other]:
                raise TrainingError(
                    f"rank {rank} and rank {other} have data rank {place}, but read different rows "
                    f"in step {step}, which was not trained: read rows by the data-parallel "
                    "coordinate, not by the global rank"
                )

    def gather(self, data: bytes, what: str) -> list[bytes]:
        """Return the bytes of every rank, in the order of ranks, on every rank.

        Raises `TrainingError` if a rank does not take part.
        """
        if self.size == 1:
            return [data]
        (lengths,) = self._gather([len(data)], what)[:1]
        own = torch.zeros(max(lengths), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        table = torch.empty(self.size, max(lengths), dtype=torch.uint8)
        with self._together(what):
            dist.all_gather(list(table.unbind()), own, group=self._group)
        return [row[:n].numpy().tobytes() for row, n in zip(table, lengths, strict=True)]

    def _gather(self, own: Sequence[int], what: str) -> list[list[int]]:
        """Return the first numbers of all ranks as one list, then the rest of each rank."""
        mine = torch.tensor(own, dtype=torch.int64)
        table = torch.empty(self.size, len(mine), dtype=torch.int64)
        with self._together(what):
            dist.all_gather(list(table.unbind()), mine, group=self._group)
        return [table[:, 0].tolist(), *table[:, 1:].tolist()]

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a timeout or a lost connection, different in each backend
            raise TrainingError(
                f"rank {self.rank} could not finish {what}: {self._missing()} (waited up to "
                f"{self.timeout:g} s; {str(error).splitlines()[0]}). "
                "Restart from the last checkpoint"
            ) from error

    def _missing(self) -> str:
        """Describe which ranks are missing, from a roll call through the rendezvous store.

        The store still works when a collective has failed. Connections are closed first, so that
        ranks that still wait for this one fail at once and answer too.
        """
        assert self._store is not None
        self.close()
        deadline = time.monotonic() + self.timeout + _ROLL_CALL_SECONDS
        silent = list(range(self.size))
        try:
            self._store.set(f"{self._roll}/{self.rank}", "1")
            while silent and time.monotonic() < deadline:
                known = len(silent)
                silent = [
                    rank for rank in silent if not self._store.check([f"{self._roll}/{rank}"])
                ]
                if known > len(silent) == 1:  # one missing rank is expected; wait a little longer
                    deadline = min(deadline, time.monotonic() + _ROLL_CALL_SECONDS)
                time.sleep(0.05)
        except RuntimeError:
            return "the launcher and its store are not reachable either"
        if not silent:
            return "the connection between the ranks failed"
        return f"no answer from rank {', '.join(map(str, silent))}, which hangs or was killed"


class Leader:
    """A policy that decides on rank 0 only. The others receive its mixture, bit by bit the same.

    With it, `loop.run` does the same steps on every rank. The policy learns only on rank 0, so save
    the state of rank 0.
    """

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self.policy = policy
        self.ranks = ranks

    @property
    def probes(self) -> Sequence[Probe]:
        return self.policy.probes

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the mixture of rank 0's policy over the domains of `so_far`.

        If the policy raises on rank 0, the other ranks raise `TrainingError`. On a single rank, the
        mixture may also have domains that join with it.
        """
        if self.ranks.size == 1:
            return self.policy.mixture(so_far)
        names = so_far.names
        message = torch.full((1 + len(names),), torch.nan, dtype=torch.float64)
        if self.ranks.rank == 0:
            try:
                mixture = self.policy.mixture(so_far).to(names)
            except Exception:
                self.ranks.from_first(message, "the exchange of the mixture")
                raise
            message = torch.from_numpy(np.concatenate([[1.0], mixture.weights_K]))
        self.ranks.from_first(message, "the exchange of the mixture")
        if torch.isnan(message[0]):
            raise TrainingError("the policy failed on rank 0; its output has the reason")
        return Mixture(names, message[1:].numpy())

    def learn(self, so_far: Trajectory) -> Metrics:
        return self.policy.learn(so_far) if self.ranks.rank == 0 else {}

    def state_dict(self) -> State:
        return self.policy.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.policy.load_state_dict(state)


def weights_of(model: nn.Module, place: Place, ranks: Ranks) -> int:
    """Return the number of weights of the whole model, of which each rank may hold a part.

    Every rank calls it with its own place. Raises `ConfigError` on every rank unless the places fill
    their grid: no two may be equal, and the grid has as many places as there are ranks.
    """
    own = sum(weight.numel() for weight in model.parameters() if place.reports(weight))
    message = json.dumps({"weights": own, **asdict(place)}).encode()
    found = [json.loads(data) for data in ranks.gather(message, "the comparison of places")]
    total: int = sum(each.pop("weights") for each in found)
    for rank, each in enumerate(found):
        size = Place(**{**each, "stage_layers": tuple(each["stage_layers"])}).size
        problems = {
            size != ranks.size: f"its grid has {size} places",
            {**each, **_ORIGIN} != {**found[0], **_ORIGIN}: "rank 0 has another grid",
            found.index(each) < rank: f"rank {found.index(each)} is there too",
        }
        if problem := problems.get(True):
            raise ConfigError(
                f"rank {rank} of {ranks.size} has the place {each}, but {problem}: give each rank "
                "its own coordinates, and all of them the same sizes"
            )
    return total


def _to_words(digest: str) -> list[int]:
    words: list[int] = np.frombuffer(bytes.fromhex(digest), dtype="<i8").tolist()
    assert len(words) == 4, f"{digest} is not a sha256"
    return words


def _to_hex(words: Sequence[int]) -> str:
    return np.array(words, dtype="<i8").tobytes().hex()


def _describe(row: Sequence[int]) -> str:
    step, version, *words = row
    return (
        f"step {step} with mixture {_to_hex(words[:4])} "
        f"(version {version}, log {_to_hex(words[4:])[:8]})"
    )
