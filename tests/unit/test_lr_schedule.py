"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import ConfigError
from cuvee.training.settings import TrainerSettings


@given(
    steps=st.integers(1, 300),
    warmup_ratio=st.floats(0, 1),
    decay_ratio=st.floats(0, 1),
    min_lr_ratio=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "wsd"]),
)
def test_rates_rise_in_the_warmup_then_never_again(
    steps: int, warmup_ratio: float, decay_ratio: float, min_lr_ratio: float, schedule: str
) -> None:
    settings = TrainerSettings(
        steps=steps,
        warmup_ratio=warmup_ratio,
        decay_ratio=decay_ratio,
        min_lr_ratio=min_lr_ratio,
        schedule=schedule,  # type: ignore[arg-type]
        learning_rate=2.0,
    )
    rates = [settings.learning_rate_at(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    if warmup_ratio < 0.5 and steps > 10 and (schedule == "cosine" or decay_ratio > 0.1):
        assert rates[-1] == pytest.approx(2.0 * min_lr_ratio)


def test_cosine_is_halfway_down_at_half_time_and_wsd_still_at_the_top() -> None:
    middles: dict[Literal["cosine", "wsd"], float] = {"cosine": 0.55, "wsd": 1.0}
    for schedule, expected in middles.items():
        settings = TrainerSettings(
            steps=111, warmup_ratio=10 / 111, schedule=schedule, learning_rate=1.0
        )
        assert settings.learning_rate_at(0) == pytest.approx(0.1)
        assert settings.learning_rate_at(9) == 1.0
        assert settings.learning_rate_at(60) == pytest.approx(expected)
        assert settings.learning_rate_at(110) == pytest.approx(0.1)


def test_wsd_falls_in_a_straight_line_over_its_last_share() -> None:
    settings = TrainerSettings(
        steps=101,
        warmup_ratio=0.0,
        schedule="wsd",
        decay_ratio=0.2,
        min_lr_ratio=0.0,
        learning_rate=1.0,
    )
    assert settings.learning_rate_at(80) == 1.0
    assert settings.learning_rate_at(90) == pytest.approx(0.5)
    assert settings.learning_rate_at(100) == 0.0


def test_a_budget_in_tokens_is_met_by_whole_batches() -> None:
    assert TrainerSettings(tokens=1000, batch_size=3, sequence_length=10).total_steps == 34
    assert TrainerSettings(steps=5).total_steps == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("tokens", -1), ("learning_rate", float("nan")), ("warmup_ratio", 1.5),
     ("sequence_length", 1), ("betas", (0.9, 1.0)), ("weight_decay", -0.1),
     ("micro_batch_size", 0), ("interval", 0)],
)  # fmt: skip
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainerSettings(**{field: value})  # type: ignore[arg-type]
