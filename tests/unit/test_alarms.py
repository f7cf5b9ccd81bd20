"""Each alarm against a planted fault, and against what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.policies.guard.alarms import (
    Alarm,
    Alarms,
    AlarmSettings,
    Collapse,
    RunDivergence,
    Timestep,
    ValueDivergence,
)

SETTINGS = AlarmSettings(patience=3)


def moment(
    proposed: list[float] | None = None,
    loss: list[float | None] | None = None,
    tokens: list[int] | None = None,
    target: bool = False,
    **rest: Any,
) -> Timestep:
    K = len(proposed or loss or [0, 0])
    domains = tuple(
        Domain(f"d{k}", 1000, "target" if target and k == 0 else "source") for k in range(K)
    )
    measured = Measured.from_json(loss) if loss else Measured.absent(K)
    signals = Signals(domains, 1, 0.5, np.array(tokens or [100] * K), measured)
    mixture = Mixture(signals.names, np.array(proposed)) if proposed else None
    return Timestep(signals, mixture, rest.pop("metrics", {}), **rest)


def heard(alarm: Alarm, *moments: Timestep) -> list[bool]:
    return [alarm.update(each) is not None for each in moments]


def test_collapse_onto_one_domain_is_heard_after_patience() -> None:
    good, bad = moment([0.5, 0.5]), moment([0.005, 0.995])
    assert heard(Collapse(SETTINGS), good, bad, bad, bad, bad, good, bad) == [False] * 3 + [
        True,
        True,
        False,
        False,
    ]
    assert (
        Collapse(AlarmSettings(patience=1)).update(bad)
        == "d1 gets 0.9950 of the tokens; 1 decisions in a row"
    )


def test_a_starved_target_is_heard() -> None:
    starved, fed = (
        moment([0.001, 0.999 / 2, 0.999 / 2], target=True),
        moment([0.02, 0.49, 0.49], target=True),
    )
    assert heard(Collapse(SETTINGS), starved, starved, starved) == [False, False, True]
    assert heard(Collapse(SETTINGS), *[fed] * 5) == [False] * 5
    assert heard(Collapse(SETTINGS), *[moment([0.001, 0.499, 0.5])] * 5) == [False] * 5, (
        "nobody said that it counts"
    )


def test_a_mixture_that_the_user_wrote_down_is_no_collapse() -> None:
    assert heard(Collapse(SETTINGS), *[moment([0.0, 1.0], learns=False)] * 5) == [False] * 5
    assert heard(Collapse(SETTINGS), *[moment([1.0])] * 5) == [False] * 5, (
        "with one domain there is no choice"
    )


@pytest.mark.parametrize(
    ("metrics", "refused", "said"),
    [
        ({"agent": {"critic_loss": 4e8}}, None, "critic_loss is 4e+08"),
        ({"agent": {"actor_loss": -2e4}}, None, "actor_loss is -2e+04"),
        ({"agent": {"critic_loss": float("nan")}}, None, "critic_loss is nan"),
        ({"agent": {"reward_scale": float("inf")}}, None, "reward_scale is inf"),
        (
            {"agent": {"critic_loss": 0.0, "critic_refused": 0.5}},
            None,
            "critic_refused: gradients were not finite",
        ),
        (
            {"rejected": "reward is 1e+30"},
            None,
            "the agent refused the transition (reward is 1e+30)",
        ),
        ({}, "ValueError: no", "learning was refused (ValueError: no)"),
    ],
)
def test_values_that_diverge_are_heard(
    metrics: dict[str, Any], refused: str | None, said: str
) -> None:
    bad = moment(metrics=metrics, refused=refused)
    alarm = ValueDivergence(SETTINGS)
    assert heard(alarm, bad, bad, bad) == [False, False, True]
    assert said in str(alarm.update(bad))


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"agent": {}},
        {
            "agent": {"critic_loss": 40.0, "actor_loss": -90.0, "temperature": 1e-6},
            "rejected": None,
        },
    ],
)
def test_values_that_are_well_are_not(metrics: dict[str, Any]) -> None:
    assert heard(ValueDivergence(SETTINGS), *[moment(metrics=metrics)] * 9) == [False] * 9


def test_a_run_that_diverges_is_heard_and_one_spike_is_not() -> None:
    alarm = RunDivergence(SETTINGS)
    falling = [moment(loss=[6.0 - 0.3 * t, 5.0 - 0.2 * t]) for t in range(10)]
    assert not any(heard(alarm, *falling, moment(loss=[9.0, 9.0]), *falling[-1:] * 5))
    assert heard(alarm, *[moment(loss=[9.0, 9.0])] * 6)[-1]
    assert "nats above its best" in str(alarm.update(moment(loss=[9.0, 9.0])))


def test_one_domain_that_rises_is_heard_and_named() -> None:
    alarm = RunDivergence(SETTINGS)
    heard(alarm, *[moment(loss=[3.0, 3.0], tokens=[990, 10])] * 3)
    rising = moment(loss=[3.0, 20.0], tokens=[990, 10])
    assert heard(alarm, *[rising] * 5)[-1]
    assert "the loss of d1 is" in str(alarm.update(rising))


def test_another_mixture_is_no_rise() -> None:
    """The mean over tokens goes from 2 to 6 here, and no domain's loss has moved."""
    alarm = RunDivergence(SETTINGS)
    easy, hard = moment(loss=[2.0, 6.0], tokens=[99, 1]), moment(loss=[None, 6.0], tokens=[0, 100])
    assert not any(heard(alarm, *[easy] * 5, *[hard] * 9))


def test_noise_is_no_rise() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.5, (400, 3))
    alarm = RunDivergence(AlarmSettings())
    assert not any(heard(alarm, *[moment(loss=(3.0 + noise_K).tolist()) for noise_K in noise]))


def test_an_alarm_can_be_turned_off() -> None:
    off = AlarmSettings(
        patience=1, collapse=None, starved=None, value=None, rise=None, domain_rise=None
    )
    bad = moment([0.0, 1.0], loss=[3.0, 3.0], target=True, metrics={"agent": {"critic_loss": 1e30}})
    worse = moment(
        [0.0, 1.0], loss=[900.0, 900.0], target=True, metrics={"agent": {"critic_loss": 1e30}}
    )
    alarms = Alarms(off)
    assert [alarms.update(each) for each in (bad, worse, worse)] == [{}, {}, {}]


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"collapse": -1.0}, {"rise": float("nan")}, {"patience": None}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"alarms.{next(iter(wrong))}"):
        AlarmSettings(**wrong)


def test_state_resumes_where_it_was() -> None:
    moments = [moment([0.01, 0.99], loss=[3.0 + 0.5 * t, 3.0]) for t in range(9)]
    whole = Alarms(SETTINGS)
    said = [whole.update(each) for each in moments]
    for stop in range(9):
        before, after = Alarms(SETTINGS), Alarms(SETTINGS)
        for each in moments[:stop]:
            before.update(each)
        after.load_state_dict(before.state_dict())
        assert [after.update(each) for each in moments[stop:]] == said[stop:]
        assert after.state_dict() == whole.state_dict()
