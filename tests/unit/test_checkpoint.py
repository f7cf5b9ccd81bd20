"""Checkpoints survive damage, full disks and kills at every call."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import CheckpointError
from cuvee.testing.faults import FailAt, Fault, KillAt, failing
from cuvee.training.checkpoint import Checkpoints


def state_at(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "weights": {"a": np.full((64, 3), step, dtype=np.float32)},
        "words": ["é", None, 0.1],
    }


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state_at(step))
    return checkpoints


def assert_is(found: tuple[int, dict[str, Any]] | None, *steps: int) -> None:
    """`found` is whole, and of one of `steps`."""
    assert found is not None
    step, state = found
    assert step in steps
    expected = state_at(step)
    np.testing.assert_array_equal(state["weights"].pop("a"), expected["weights"].pop("a"))
    assert state == expected


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_latest_is_what_was_saved_last(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() is None
    saved(tmp_path, 0, 10, 20, 30)
    assert_is(Checkpoints(tmp_path).latest(), 30)
    assert names(tmp_path) == ["step-000000020", "step-000000030"]


def test_keep_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep at least 2"):
        Checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "hashes.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_does_not_count_as_kept(
    tmp_path: Path, file: str, how: str
) -> None:
    saved(tmp_path, 10, 20)
    path = tmp_path / "step-000000020" / file
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
    path.unlink() if how == "remove" else path.write_bytes(
        content[: len(content) // 2] if how == "cut" else content
    )
    with pytest.warns(UserWarning, match="damaged.*step-000000020"):
        assert_is(Checkpoints(tmp_path).latest(), 10)
    saved(tmp_path, 25)
    assert names(tmp_path) == ["step-000000010", "step-000000020", "step-000000025"]
    saved(tmp_path, 26)
    assert names(tmp_path) == ["step-000000025", "step-000000026"]


def test_none_readable_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / "step-000000010" / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match="restart the run from the beginning"),
    ):
        Checkpoints(tmp_path).latest()


def test_a_run_resumed_from_an_earlier_step_removes_later_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20, 30)
    saved(tmp_path, 25)
    assert_is(Checkpoints(tmp_path).latest(), 25)


def test_the_same_step_again_writes_over_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20, 20)
    assert names(tmp_path) == ["step-000000020", "step-000000020.1"]
    assert_is(Checkpoints(tmp_path).latest(), 20)


def test_a_disk_that_refuses_any_call_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    def save(fault: Fault, folder: Path) -> None:
        with failing(fault):
            Checkpoints(folder).save(30, state_at(30))

    saved(tmp_path / "clean", 10, 20)
    save(every := Fault(), tmp_path / "clean")
    assert {"fsync", "rename", "mkdir", "open", "write", "save_file", "unlink", "rmdir"} <= set(
        every.calls
    )
    for k in range(len(every.calls)):
        code = (errno.ENOSPC, errno.EIO, errno.EDQUOT)[k % 3]
        saved(folder := tmp_path / str(k), 10, 20)
        if every.calls[k : k + 2] == ["mkdir", "mkdir"]:
            save(FailAt(k, code), folder)  # the parent folder, which is there already
        else:
            with pytest.raises(
                CheckpointError, match=f"{re.escape(str(folder))}.*{os.strerror(code)}"
            ):
                save(FailAt(k, code), folder)
        assert_is(Checkpoints(folder).latest(), 20, 30)
        saved(folder, 40)
        assert_is(Checkpoints(folder).latest(), 40)
        assert not [name for name in names(folder) if name.startswith(".")]
        assert len(names(folder)) == 2


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process and returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_kill_at_any_call_leaves_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "clean", 10, 20)
    with failing(Fault()) as every:
        Checkpoints(tmp_path / "clean").save(30, state_at(30))
    complete = every.calls.index("rename")  # the first rename is the one that completes step 30
    for k in range(len(every.calls)):
        saved(folder := tmp_path / str(k), 10, 20)

        def save_and_die(folder: Path = folder, k: int = k) -> None:
            with failing(KillAt(k)):
                Checkpoints(folder).save(30, state_at(30))

        assert in_child(save_and_die) == signal.SIGKILL
        assert_is(Checkpoints(folder).latest(), 20 if k <= complete else 30)
        saved(folder, 40)
        assert not [name for name in names(folder) if name.startswith(".")]
        assert len(names(folder)) == 2
