"""Removal never loses a checkpoint: kills at every call, unreadable attempts, lost claims."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import cuvee.core.files as files
import cuvee.core.state as state_module
import cuvee.fleet.attempts as attempts_module
import cuvee.fleet.worker as worker_module
import cuvee.training.checkpoint as checkpoint_module
from cuvee import loop
from cuvee.core.errors import CheckpointError, StoreError
from cuvee.core.files import remove_folder, write_folder
from cuvee.core.state import load_state, save_state
from cuvee.core.trajectory import Cost
from cuvee.fleet.attempts import AttemptCheckpoints
from cuvee.fleet.store.store import Store
from cuvee.policies.fixed import Fixed
from cuvee.recipes.housekeeping import checkpoints, holdings, remove_folders, rename
from cuvee.testing.faults import Fault, KillAt, failing
from cuvee.testing.toy import ToyTrainer
from cuvee.training.checkpoint import Checkpoints


def state_at(step: int) -> dict[str, Any]:
    return {"step": step}


def killed(work: Callable[[], object], at: int) -> bool:
    """Runs `work` in a forked process that is killed before its call number `at`.

    Returns False if it makes fewer calls.
    """
    child = os.fork()
    if child == 0:
        try:
            with failing(KillAt(at)):
                work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def kill_everywhere(prepare: Callable[[Path], Callable[[], object]], folder: Path) -> list[Path]:
    """One folder for each call of the work that `prepare` returns; the work was killed there."""
    with failing(Fault()) as counted:
        prepare(folder / "clean")()
    places = [folder / str(at) for at in range(len(counted.calls))]
    for at, place in enumerate(places):
        with failing(Fault()):
            work = prepare(place)
        killed(work, at)
    assert len(places) > 3
    return places


def test_a_kill_while_an_old_attempt_is_removed_leaves_the_run_resumable(tmp_path: Path) -> None:
    def prepare(folder: Path) -> Callable[[], object]:
        AttemptCheckpoints(folder, 1).save(1, state_at(1))
        return lambda: AttemptCheckpoints(folder, 2).save(2, state_at(2))

    for place in kill_everywhere(prepare, tmp_path):
        found = AttemptCheckpoints(place, 3).latest()
        assert found is not None
        assert found[1] == state_at(found[0])
        AttemptCheckpoints(place, 3).save(3, state_at(3))
        assert [path.name for path in place.iterdir()] == ["attempt-3"]


def test_an_unreadable_attempt_hides_no_other(tmp_path: Path) -> None:
    AttemptCheckpoints(tmp_path, 1).save(1, state_at(1))
    shutil.copytree(tmp_path / "attempt-1", tmp_path / "attempt-10")
    AttemptCheckpoints(tmp_path, 11).save(2, state_at(2))
    shutil.copytree(tmp_path / "attempt-11", tmp_path / "attempt-3")
    for file in (tmp_path / "attempt-3").rglob("*.safetensors"):
        file.unlink()
    with pytest.warns(UserWarning, match="unreadable attempt"):
        assert AttemptCheckpoints(tmp_path, 12).latest() == (2, state_at(2))
    for file in (tmp_path / "attempt-11").rglob("*.safetensors"):
        file.unlink()
    with (
        pytest.warns(UserWarning, match="unreadable"),
        pytest.raises(CheckpointError, match="restart the run from the beginning"),
    ):
        AttemptCheckpoints(tmp_path, 12).latest()


def test_an_attempt_that_lost_its_claim_removes_no_later_attempt(tmp_path: Path) -> None:
    first, second = AttemptCheckpoints(tmp_path, 1), AttemptCheckpoints(tmp_path, 2)
    first.save(1, state_at(1))
    second.save(5, state_at(5))
    first.save(2, state_at(2))
    assert AttemptCheckpoints(tmp_path, 3).latest() == (5, state_at(5))


def test_a_process_that_slept_through_its_lease_removes_nothing_of_its_successor(
    tmp_path: Path,
) -> None:
    sleeper, successor = Checkpoints(tmp_path), Checkpoints(tmp_path)
    sleeper.save(10, state_at(10))
    successor = Checkpoints(tmp_path)

    def meanwhile(path: Path, state: Any) -> None:
        with mock.patch.object(checkpoint_module, "save_state", save_state):
            for step in (21, 31, 41):
                successor.save(step, state_at(step))
        save_state(path, state)

    with mock.patch.object(checkpoint_module, "save_state", meanwhile):
        sleeper.save(20, state_at(20))
    assert Checkpoints(tmp_path).latest() == (41, state_at(41))

    def during(path: Path) -> None:
        sleeper.save(22, state_at(22))
        fsync_tree(path)

    fsync_tree = files.fsync_tree
    with mock.patch.object(files, "fsync_tree", during):
        fsync_once = mock.patch.object(files, "fsync_tree", fsync_tree)
        real = sleeper.save

        def once(*arguments: Any) -> Any:
            with fsync_once:
                return real(*arguments)

        sleeper.save = once  # type: ignore[method-assign, assignment]
        successor.save(51, state_at(51))
    assert Checkpoints(tmp_path).latest() == (51, state_at(51))


def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    def prepare(place: Path) -> Callable[[], object]:
        save_state(place / "s", state_at(1))
        return lambda: save_state(place / "s", state_at(2))

    for place in kill_everywhere(prepare, tmp_path):
        assert load_state(place / "s")["step"] in (1, 2)


def test_a_folder_is_replaced_where_the_file_system_cannot_exchange_names(tmp_path: Path) -> None:
    with mock.patch.object(files, "_RENAME_EXCHANGE", 1 << 20):
        for step in (1, 2, 3):
            save_state(tmp_path / "s", state_at(step))
    assert load_state(tmp_path / "s") == state_at(3)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_kill_while_a_folder_is_removed_leaves_all_of_it_or_nothing_of_that_name(
    tmp_path: Path,
) -> None:
    def three_folders(folder: Path) -> None:
        for name in "abc":
            (folder / name).mkdir()

    def prepare(place: Path) -> Callable[[], object]:
        write_folder(place / "x", three_folders)
        return lambda: remove_folder(place / "x")

    for place in kill_everywhere(prepare, tmp_path):
        left = place / "x"
        assert not left.exists() or sorted(path.name for path in left.iterdir()) == list("abc")
    remove_folder(tmp_path / "not there")


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_newest_checkpoint_that_the_disk_cannot_read_is_passed_over(
    tmp_path: Path, code: int
) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, state_at(step))
    real = files.sha256_of

    def bad_sector(path: Path) -> str:
        if "step-000000002" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    with (
        mock.patch.object(state_module, "sha256_of", bad_sector),
        pytest.warns(UserWarning, match=os.strerror(code)),
    ):
        assert Checkpoints(tmp_path).latest() == (1, state_at(1))


def test_an_old_attempt_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttemptCheckpoints(tmp_path, 1).save(1, state_at(1))

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(attempts_module, "remove_folder", refuse)
    with pytest.warns(UserWarning, match="attempt-1 is not needed any more and cannot be removed"):
        AttemptCheckpoints(tmp_path, 2).save(2, state_at(2))
    assert AttemptCheckpoints(tmp_path, 3).latest() == (2, state_at(2))


def test_two_processes_may_remove_the_same_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttemptCheckpoints(tmp_path, 1).save(1, state_at(1))
    unlink = os.unlink

    def after_another(path: Any, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)  # the file is gone, as if another process had been faster

    monkeypatch.setattr(os, "unlink", after_another)
    remove_folder(tmp_path / "attempt-1")
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_removal_left_is_removed_with_the_run(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    for name in ("checkpoints", ".checkpoints.0a1b2c3d4e5f.old", ".attempt-2.0a1b2c3d4e5f.old",
                 ".model.0a1b2c3d4e5f.tmp", ".hidden"):  # fmt: skip
        (place / name).mkdir(parents=True)
    with Store.open(tmp_path / "s.db") as store:
        claim = store.claim_run(store.create("a", 0, {}, run_id="mine"), "elsewhere")
        claim.finish(Cost(), checkpoint=str(place / "checkpoints"))
        remove_folders(checkpoints([store.summary("mine")]))
        assert {path.name for path in place.iterdir()} == {".model.0a1b2c3d4e5f.tmp", ".hidden"}
        claim = store.claim_run(store.create("a", 1, {}, run_id="other"), "elsewhere")
        (tmp_path / "other" / ".model.0a1b2c3d4e5f.tmp").mkdir(parents=True)
        (tmp_path / "other" / "policy").mkdir()
        claim.finish(Cost(), policy=str(tmp_path / "other" / "policy"))
        remove_folders(holdings([store.summary("other")]))
    assert not (tmp_path / "other").exists()


def test_a_worker_that_slept_before_it_saved_its_policy_does_not_save_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.create("toy", 0, {}, run_id="mine")
        claim = store.claim("sleeper")
        assert claim

        def slept(*parts: Any) -> None:
            loop.run(*parts)
            lose(tmp_path / "s.db", store)

        monkeypatch.setattr(worker_module, "run", slept)
        orders = worker_module.Orders(store.address, "", ToyTrainer, tmp_path, 1, 60.0, 1)  # type: ignore[arg-type]
        policy = Fixed({"web": 0.8, "code": 0.2, "maths": 0.0})
        assert worker_module._train(
            store, claim, ToyTrainer(seed=0), policy, orders, lambda _: False
        )
        assert store.summary("mine").worker == "heir"
    assert not (tmp_path / "mine" / "policy").exists()


def lose(database: Path, store: Store) -> None:
    """Lets the lease of every run expire, and lets another worker claim one."""
    with closing(sqlite3.connect(database)) as other:
        other.execute("UPDATE runs SET lease_expires = 0")
        other.commit()
    assert store.claim("heir")


def test_a_rename_that_the_disk_refuses_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: object) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with Store.open(tmp_path / "s.db") as store:
        claim = store.claim_run(store.create("a", 0, {}, run_id="old"), "elsewhere")
        (tmp_path / "old" / "model").mkdir(parents=True)
        claim.finish(Cost(), model=str(tmp_path / "old" / "model"))
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", refuse)
            with pytest.raises(StoreError, match=r"cannot be moved to .*new: Permission denied"):
                rename(store, store.summary("old"), "new")
        store.create("b", 0, {}, run_id="taken")
        with pytest.raises(StoreError, match="a run taken already"):
            rename(store, store.summary("old"), "taken")
        assert (tmp_path / "old" / "model").is_dir()
        rename(store, store.summary("old"), "new")
        assert store.summary("new").model == str(tmp_path / "new" / "model")
