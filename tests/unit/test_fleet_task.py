"""A task is JSON and restores the same policy with exact arrays; other content is refused."""

import json
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import CuveeError, PolicyError
from cuvee.core.protocols import State
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.task import _pack, _unpack, build_task, task_of
from cuvee.loop import run
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard
from cuvee.testing.policy import ScriptedTrainer, some_domains
from cuvee.testing.toy import ToyTrainer, make_toy

SHARES = {"web": 0.1, "code": 0.2, "maths": 0.7}


def test_a_policy_comes_back_with_what_it_has_learned() -> None:
    policy = Exp3(0.5)
    so_far = run(ToyTrainer(5), policy)
    task = json.loads(json.dumps(task_of({"intervals": 5}, Guard(policy))))
    trainer, again = build_task(task, 3, make_toy)
    assert again.state_dict() == policy.state_dict()
    assert again.mixture(so_far) == policy.mixture(so_far)
    assert run(trainer, again) == run(ToyTrainer(5, seed=3), policy)


def test_an_agent_is_restored_exactly_and_continues_equally() -> None:
    network = {"hidden": 8, "layers": 1, "heads": 2}
    settings = {"architecture": network, "learning_starts": 2, "batch_size": 4, "capacity": 50}
    policy = AgentPolicy("ddpg", "alignment", warmup_intervals=3, agent_settings=settings)
    domains = some_domains(3)
    so_far = run(ScriptedTrainer(domains, 8), policy)
    task = json.loads(json.dumps(task_of({}, policy)))
    _, again = build_task(task, 0, make_toy)
    assert _pack(again.state_dict()) == _pack(policy.state_dict())
    assert again.mixture(so_far) == policy.mixture(so_far)


def test_the_order_of_domains_survives() -> None:
    task = json.loads(json.dumps(task_of({}, Fixed(SHARES))))
    assert list(task["policy"]["settings"]["weights"]) == list(SHARES)


def test_arrays_in_a_state_survive_to_the_bit() -> None:
    state: dict[str, Any] = {
        "a": {
            "b": np.array([[1 / 3, -0.0], [5e-324, np.inf]]),
            "c": np.float32(0.1),
            "d": [np.arange(3), 1],
        },
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5),
        "big": np.array([1, 2], ">i4"),
        "flags": np.array([True, False]),
    }
    back = _unpack(json.loads(json.dumps(_pack(state))))
    for ours, theirs in (
        (state["a"]["b"], back["a"]["b"]),
        (state["a"]["d"][0], back["a"]["d"][0]),
        (state["empty"], back["empty"]),
        (state["scalar"], back["scalar"]),
        (state["flags"], back["flags"]),
    ):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (
            theirs.dtype,
            theirs.shape,
            theirs.tobytes(),
        )
    assert back["big"].tolist() == [1, 2]
    assert back["a"]["c"] == float(np.float32(0.1))


def good(**changes: Any) -> dict[str, Any]:
    task = json.loads(json.dumps(task_of({"intervals": 2}, Fixed(SHARES))))
    task["policy"].update(changes)
    return task


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"policy": None, "proxy": {}},
        {"policy": {}, "proxy": {}},
        good(kind="os.system"),
        good(settings={"weights": {"web": 2.0}}),
        good(settings={"command": "rm"}),
        good(settings=[]),
        good(state={"x": {"$array": "AAAA", "dtype": "|O8", "shape": [1]}}),
        good(state={"x": {"$array": "AAAA", "dtype": "<f8", "shape": [10**9]}}),
        good(state={"x": {"$array": "AAAA", "dtype": "<f8", "shape": [-1]}}),
        good(state={"x": {"$array": "?!", "dtype": "<f8", "shape": [0]}}),
        good(state={"x": {"$array": "AAAA"}}),
    ],
)
def test_what_is_no_task_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(CuveeError):
        build_task(task, 0, make_toy)


def test_a_policy_that_no_file_could_hold_is_refused() -> None:
    class Own(Fixed):
        def learn(self, so_far: Trajectory) -> State:
            return {}

    with pytest.raises(PolicyError, match="Own cannot be saved"):
        task_of({}, Own(SHARES))
