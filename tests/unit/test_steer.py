"""`cuvee steer`: requests reach a run through the store, within limits, also after a resume."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cuvee.cli import app
from cuvee.cli.display.fleet import request_line
from cuvee.core.errors import ConfigError, CuveeError, PolicyError, StoreError
from cuvee.core.protocols import Metrics, Policy, State, Trainer
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.files import load_requested, save_policy
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.operator import Operator
from cuvee.probes.token_losses import ValidTokenLosses
from cuvee.recipes.progress.fleet_watch import FleetWatch
from cuvee.testing.toy import ToyTrainer

N = 8
Hook = Callable[[int], None]


class Killed(BaseException):
    """Nothing runs after it, as after kill -9."""


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: dict[int, State] = {}

    def save(self, step: int, state: State) -> None:
        self.saved[step] = copy.deepcopy(state)

    def latest(self) -> tuple[int, State] | None:
        return (max(self.saved), copy.deepcopy(self.saved[max(self.saved)])) if self.saved else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
        store.create("run", 0, {}, run_id="run")
        yield store


def train(
    store: Store,
    hook: Hook = lambda number: None,
    policy: Policy | None = None,
    checkpoints: Folder | None = None,
    limits: Limits | None = None,
    every: int = 3,
) -> Trajectory:
    def record(so_far: Trajectory, trainer: Trainer, metrics: Metrics) -> None:
        hook(len(so_far))

    claim = store.claim_run("run", "worker")
    guard = Guard(policy or Exp3(), limits)
    guard.operator = Operator(claim, load_requested)
    journal = RunJournal(store, claim, checkpoints, every, record)
    trainer = ToyTrainer(N)
    try:
        return run(trainer, guard, journal)
    except Killed:
        claim.release()
        raise


def cuvee(store: Store, *arguments: str) -> Result:
    place = store.address.shown.removeprefix("sqlite:///")
    command = [*arguments, "--store", place]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def steering(store: Store, at: dict[int, tuple[str, ...]]) -> Hook:
    """Runs `cuvee steer` after the given intervals, once each."""
    left = dict(at)

    def hook(number: int) -> None:
        if number in left:
            cuvee(store, "steer", "run", *left.pop(number))

    return hook


def records(store: Store) -> list[Metrics]:
    return [metrics["guard"] for metrics in store.metrics("run")]


def test_shares_hold_from_the_next_interval_until_unfreeze(store: Store) -> None:
    plan = {2: ("--set", "code=0.2"), 4: ("--freeze",), 6: ("--unfreeze",)}
    trajectory = train(store, steering(store, plan))
    # The hook of interval n runs after the requests for n + 1 were read.
    verdicts = [record["verdict"] for record in records(store)]
    assert verdicts == ["accepted"] * 3 + ["operator"] * 4 + ["accepted"]
    for t in (3, 4):
        own = records(store)[t]["own"]["executed"]
        mixture = trajectory.mixtures[t]
        assert mixture["code"] == pytest.approx(0.2)
        assert mixture["web"] / mixture["maths"] == pytest.approx(own["web"] / own["maths"])
    assert trajectory.mixtures[5] == trajectory.mixtures[4]
    assert trajectory.mixtures[6] == trajectory.mixtures[4]
    assert records(store)[3]["operator"]["requests"][0]["set"] == {"code": 0.2}
    assert [request.interval for request in store.requests("run")] == [4, 6, 8]
    assert all(record["lesson"] == "learned" for record in records(store))


def test_the_limits_apply_to_an_operator(store: Store) -> None:
    hook = steering(store, {1: ("--set", "maths=0.9")})
    trajectory = train(store, hook, limits=Limits(max_change=0.1, ceiling=0.5))
    changes = [b.total_variation(a) for a, b in itertools.pairwise(trajectory.mixtures)]
    assert max(changes) <= 0.1 + 1e-12
    assert trajectory.mixtures[-1]["maths"] == pytest.approx(0.5)


@pytest.mark.parametrize("stop", range(3, N))
def test_a_resumed_run_repeats_requests_at_the_same_interval(
    tmp_path: Path, store: Store, stop: int
) -> None:
    save_policy(tmp_path / "fixed", Fixed({"web": 0.1, "code": 0.3, "maths": 0.6}))
    plan = {1: ("--set", "code=0.4"), 3: ("--policy", str(tmp_path / "fixed")), 5: ("--freeze",)}
    with Store.open(tmp_path / "whole.sqlite") as other:
        other.create("run", 0, {}, run_id="run")
        whole = train(other, steering(other, plan))
    asked = steering(store, plan)

    def killed(number: int) -> None:
        asked(number)
        if number == stop:
            raise Killed

    folder = Folder(tmp_path / "checkpoints")
    with pytest.raises(Killed):
        train(store, killed, checkpoints=folder)
    assert max(folder.saved) <= stop
    train(store, asked, checkpoints=folder)
    assert store.trajectory("run") == whole
    assert whole.mixtures[4].as_dict() == {"web": 0.1, "code": 0.3, "maths": 0.6}


def test_a_request_that_comes_while_the_run_is_down_does_not_change_recorded_intervals(
    tmp_path: Path, store: Store
) -> None:
    folder = Folder(tmp_path / "checkpoints")

    def killed(number: int) -> None:
        if number == 5:
            raise Killed

    with pytest.raises(Killed):
        train(store, killed, checkpoints=folder)
    cuvee(store, "steer", "run", "--set", "code=0.2")
    assert max(folder.saved) == 3
    train(store, checkpoints=folder)  # repeats intervals 4 and 5 as they were recorded
    assert [request.interval for request in store.requests("run")] == [6]
    assert store.trajectory("run").mixtures[5]["code"] == pytest.approx(0.2)


def test_a_policy_that_cannot_steer_is_refused_and_the_old_one_stays(
    tmp_path: Path, store: Store
) -> None:
    changed, probing = tmp_path / "changed", tmp_path / "probing"
    save_policy(changed, Fixed({"web": 1.0}))
    save_policy(probing, Fixed({"web": 1.0}, probes=[ValidTokenLosses()]))
    asked = steering(store, {1: ("--policy", str(changed)), 2: ("--policy", str(probing))})

    def hook(number: int) -> None:
        asked(number)
        if number == 1:
            save_policy(changed, Fixed({"code": 1.0}))

    trajectory = train(store, hook)
    refusals = [record["operator"]["requests"][0]["refused"] for record in records(store)[2:4]]
    assert "changed since" in refusals[0]
    assert "probes valid_token_losses" in refusals[1]
    assert {record["verdict"] for record in records(store)} == {"accepted"}
    np.testing.assert_array_equal(trajectory.weights_TK(), run(ToyTrainer(N), Exp3()).weights_TK())


@pytest.mark.parametrize(
    ("arguments", "said", "kind"),
    [
        (("--set", "poems=0.2"), "no domain poems: it has web", StoreError),
        (("--set", "code=1.2"), "share of code is 1.2", StoreError),
        (("--set", "code=0.6", "--set", "web=0.5"), "sum to 1.1", StoreError),
        (("--set", "code"), "no NAME=SHARE", ConfigError),
        (("--freeze", "--unfreeze"), "exactly one of", ConfigError),
        ((), "exactly one of", ConfigError),
        (("--policy", "nowhere"), "nowhere", CuveeError),
        (("--add-domain", "law"), "no NAME=SHARE", ConfigError),
        (("--add-domain", "law=0.1"), "needs --from CORPUS", ConfigError),
        (("--add-domain", "law=0.1", "--from", "nowhere"), "no corpus folder nowhere", CuveeError),
        (("--freeze", "--from", "nowhere"), "needs --add-domain", ConfigError),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(
    store: Store, arguments: tuple[str, ...], said: str, kind: type[CuveeError]
) -> None:
    def hook(number: int) -> None:
        if number == 3:
            with pytest.raises(kind, match=said):
                cuvee(store, "steer", "run", *arguments)

    train(store, hook)
    assert store.requests("run") == []
    assert {record["operator"] for record in records(store)} == {None}


def test_a_run_that_has_not_begun_or_is_over_takes_no_requests(store: Store) -> None:
    with pytest.raises(StoreError, match="no interval yet"):
        cuvee(store, "steer", "run", "--freeze")
    claim = store.claim_run("run", "worker")
    trainer = ToyTrainer(N)
    journal = RunJournal(store, claim)
    run(trainer, Exp3(), journal)
    with pytest.raises(StoreError, match="without a guard"):
        cuvee(store, "steer", "run", "--freeze")
    journal.finish(trainer)
    with pytest.raises(StoreError, match="is done"):
        cuvee(store, "steer", "run", "--freeze")


def test_watch_and_audit_show_requests(store: Store) -> None:
    seen: list[str] = []

    def hook(number: int) -> None:
        if number == 2:
            cuvee(store, "steer", "run", "--set", "code=0.2")
        seen.extend(request_line(one) for one in FleetWatch(store, None).look().requests)

    train(store, hook)
    assert seen[0].startswith("operator of run: set code 0.2, waits (")
    assert seen[-1].startswith("operator of run: set code 0.2, from interval 4 on (")
    shown = cuvee(store, "runs", "audit", "run", "--only", "operator").stdout
    assert "asked: set code 0.200" in " ".join(shown.split())
    assert "5 operator" in shown


def test_a_run_with_another_policy_is_not_resumed_without_its_store(
    tmp_path: Path, store: Store
) -> None:
    save_policy(tmp_path / "fixed", Fixed({"web": 1.0}))
    folder = Folder(tmp_path / "checkpoints")
    train(store, steering(store, {2: ("--policy", str(tmp_path / "fixed"))}), checkpoints=folder)
    with pytest.raises(PolicyError, match="resume it with its store"):
        Guard(Exp3()).load_state_dict(folder.saved[N]["policy"])
