"""Full disks and kills in checkpointing, at every call and at random, with planted faults.

    python benchmarks/checkpoint_faults.py [--kills 500] [--seed 0]

Reliability test 20: ENOSPC, EDQUOT and EIO at each call that touches the disk, and a real disk that
fills up (a file-size limit, which the kernel enforces on every writer, and a small tmpfs where
mounting is allowed). Test 21: SIGKILL before each call, five times, and at random. The order of
fsyncs is traced: every file and its folder before the rename, the parent after it. Every check must
report its planted fault.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from cuvee.core.errors import CheckpointError
from cuvee.testing.faults import FailAt, Fault, KillAt, failing
from cuvee.training import checkpoint as module
from cuvee.training.checkpoint import Checkpoints

OLD, NEW = (10, 20), 30


def state_at(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "weights": {str(i): np.full((64, 64), step, dtype=np.float32) for i in range(4)},
    }


def is_whole(folder: Path) -> int | None:
    """The step of the newest checkpoint that loads, if every byte of it is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = Checkpoints(folder).latest()
        except CheckpointError:
            return None
    if found is None:
        return None
    step, state = found
    right = all(
        (array == step).all() and array.shape == (64, 64) for array in state["weights"].values()
    )
    return step if right and len(state["weights"]) == 4 and state["step"] == step else None


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


class Bench:
    def __init__(self, kind: type[Checkpoints], root: Path) -> None:
        self.kind, self.root, self.counts = (
            kind,
            root,
            {"trials": 0, "lost": 0, "unnamed": 0, "leftovers": 0},
        )

    def fresh(self) -> Path:
        folder = self.root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        for step in OLD:
            self.kind(folder).save(step, state_at(step))
        return folder

    def judge(self, folder: Path, allowed: tuple[int, ...]) -> None:
        self.counts["trials"] += 1
        self.counts["lost"] += is_whole(folder) not in allowed
        self.kind(folder).save(40, state_at(40))
        self.counts["leftovers"] += sum(path.name.startswith(".") for path in folder.iterdir())

    def save(self, folder: Path) -> None:
        """A save that may fail, but only with the error that a user can read."""
        try:
            self.kind(folder).save(NEW, state_at(NEW))
        except CheckpointError as error:
            self.counts["unnamed"] += str(folder) not in str(error)
        except Exception:
            self.counts["unnamed"] += 1

    def calls(self) -> list[str]:
        folder = self.fresh()
        with failing(Fault()) as every:
            self.kind(folder).save(NEW, state_at(NEW))
        return every.calls

    def refuse_each_call(self) -> None:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            for k in range(len(self.calls())):
                folder = self.fresh()
                with failing(FailAt(k, code)):
                    self.save(folder)
                self.judge(folder, (20, NEW))

    def refuse_sizes(self) -> None:
        """The kernel refuses to let any file grow past a limit."""
        for limit in (0, 1, 100, 1000, 5000, 20_000, 50_000, 65_000):
            folder = self.fresh()

            def limited(folder: Path = folder, limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                before = dict(self.counts)
                self.save(folder)
                if self.counts != before:
                    os.kill(os.getpid(), signal.SIGUSR1)

            self.counts["unnamed"] += in_child(limited) == signal.SIGUSR1
            self.judge(folder, (20, NEW))

    def kill_each_call(self, times: int) -> None:
        for k, _ in enumerate(self.calls() * times):
            folder = self.fresh()

            def die(folder: Path = folder, k: int = k % len(self.calls())) -> None:
                with failing(KillAt(k)):
                    self.save(folder)

            in_child(die)
            self.judge(folder, (20, NEW))

    def kill_at_random(self, times: int, generator: random.Random) -> None:
        for _ in range(times):
            folder = self.fresh()
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                for step in range(NEW, 10**6, 10):
                    self.kind(folder).save(step, state_at(step))
                    os.write(writer, f"{step}\n".encode())
            time.sleep(generator.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(writer)
            with os.fdopen(reader) as acknowledgements:
                last = max(map(int, acknowledgements.read().split()), default=20)
            found = is_whole(folder)
            self.counts["trials"] += 1
            self.counts["lost"] += found not in (last, last + 10)

    def order_of_fsyncs(self) -> None:
        """Everything that must be durable before the rename is, and the rename is before `save`
        returns."""
        folder, events = self.fresh(), []
        fsync, rename = os.fsync, os.rename

        def traced_fsync(descriptor: int) -> None:
            events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        def traced_rename(old: Any, new: Any) -> None:
            events.append(("rename", str(old)))
            rename(old, new)

        with (
            mock.patch.object(os, "fsync", traced_fsync),
            mock.patch.object(os, "rename", traced_rename),
        ):
            path = self.kind(folder).save(NEW, state_at(NEW))
        renames = [
            i
            for i, (what, name) in enumerate(events)
            if what == "rename" and f".{path.name}" in name
        ]
        durable = False
        if renames:
            before = {Path(name).name for what, name in events[: renames[0]] if what == "fsync"}
            after = [name for what, name in events[renames[0] :] if what == "fsync"]
            durable = {file.name for file in path.iterdir()} <= before and str(folder) in after
            durable = durable and any(f".{path.name}" in name for name in before)
        self.counts["trials"] += 1
        self.counts["lost"] += not durable

    def run(self, times: int, random_kills: int, seed: int) -> dict[str, int]:
        self.order_of_fsyncs()
        self.refuse_each_call()
        self.refuse_sizes()
        self.kill_each_call(times)
        self.kill_at_random(random_kills, random.Random(seed))
        return self.counts


class OldFirst(Checkpoints):
    """Planted: makes room before the new one is durable."""

    def save(self, step: int, state: Any) -> Path:
        for path in self._all():
            shutil.rmtree(path)
        return super().save(step, state)


class InPlace(Checkpoints):
    """Planted: writes under the final name."""

    def save(self, step: int, state: Any) -> Path:
        def bare(path: Path, state: Any) -> None:
            path.mkdir(parents=True)
            (path / "state.json").write_text("{}")
            save_file(state["weights"], path / "state.safetensors")

        with (
            mock.patch.object(module, "save_state", bare),
            mock.patch.object(module, "verify_folder", return_value=None),
        ):
            return super().save(step, state)


class NoFsync(Checkpoints):
    """Planted: trusts the page cache."""

    def save(self, step: int, state: Any) -> Path:
        with mock.patch("cuvee.core.files.fsync_tree", return_value=None):
            return super().save(step, state)


class BareErrors(Checkpoints):
    """Planted: lets the operating system's error through."""

    def save(self, step: int, state: Any) -> Path:
        try:
            return super().save(step, state)
        except CheckpointError as error:
            raise error.__cause__ or error from None


def real_full_disk() -> dict[str, int] | None:
    """The same on tmpfs of a few sizes, in a mount namespace; None where that is not allowed."""
    script = "mount -t tmpfs -o size=$2 none $1 && exec $3 $4 --inside $1"
    total = {"trials": 0, "lost": 0, "unnamed": 0}
    with tempfile.TemporaryDirectory() as folder:
        for size in ("160k", "180k", "200k", "204k", "208k", "212k", "220k", "260k"):
            command = [
                "unshare",
                "-rm",
                "sh",
                "-c",
                script,
                "sh",
                folder,
                size,
                sys.executable,
                __file__,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return None
            total = {key: total[key] + count for key, count in json.loads(done.stdout).items()}
    return total


def inside(folder: Path) -> None:
    """On the small disk: saves until it is full; each save that fails must leave what was there."""
    checkpoints, counts, newest = (
        Checkpoints(folder / "run"),
        {"trials": 0, "lost": 0, "unnamed": 0},
        None,
    )
    for step in range(10, 80, 10):
        try:
            checkpoints.save(step, state_at(step))
            newest = step
        except CheckpointError as error:
            counts["unnamed"] += "No space left" not in str(error)
        except Exception:
            counts["unnamed"] += 1
        counts["trials"] += 1
        counts["lost"] += is_whole(folder / "run") not in (newest, step)
    print(json.dumps(counts))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options.inside)
    caught = {}
    with tempfile.TemporaryDirectory() as root:
        counts = Bench(Checkpoints, Path(root)).run(5, options.kills, options.seed)
        print("as it is:", counts)
        for planted in (OldFirst, InPlace, NoFsync, BareErrors):
            found = Bench(planted, Path(root)).run(1, 20, options.seed)
            caught[planted.__name__] = found["lost"] + found["unnamed"] + found["leftovers"] > 0
            print(f"planted {planted.__name__}: {found}")
    document = {**counts, "random_kills": options.kills, "full_disk": real_full_disk()}
    document |= {"planted": len(caught), "caught": sum(caught.values()), "seed": options.seed}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
