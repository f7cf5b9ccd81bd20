"""The evaluation environment against values computed by hand, and on what was not evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory, returns, rewards
from cuvee.policies.feedback import Feedback, question_files
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.history.scoring_sampler import ScoringSampler

DOMAINS = (Domain("prose", 300), Domain("maths", 100, "target"))


def history(evaluations: Sequence[Sequence[float | None] | None]) -> Trajectory:
    """One moment for each evaluation; None where the probe did not answer at all."""
    signals = [
        Signals(
            DOMAINS,
            t,
            t / len(evaluations),
            np.zeros(2, np.int64),
            Measured.absent(2),
            {} if scores is None else {"evaluation": Measured.from_json(scores)},
        )
        for t, scores in enumerate(evaluations)
    ]
    return Trajectory(signals, [Mixture.uniform(("prose", "maths"))] * (len(evaluations) - 1))


def test_feedback_is_the_share_of_the_base_models_nats_that_was_saved() -> None:
    run = history([[-2.0, -4.0], [-1.8, -4.0], [-2.2, -3.0]])
    assert Feedback(0.5)(run).values == pytest.approx([0.0, 0.5 * 0.1, -0.5 * 0.1 + 0.5 * 0.25])
    assert Feedback(1.0)(run).values == pytest.approx([0.0, 0.1, -0.1]), (
        "λ = 1 hears the general questions alone"
    )
    assert Feedback(0.0)(run).values == pytest.approx([0.0, 0.0, 0.25])


def test_the_unit_of_the_scores_does_not_matter() -> None:
    run, in_bits = (
        history([[-2.0, -4.0], [-1.5, -3.9]]),
        history([[-2.9, -5.8], [-1.5 * 1.45, -3.9 * 1.45]]),
    )
    assert Feedback()(run).values == pytest.approx(Feedback()(in_bits).values)


def test_rewards_add_up_to_the_last_feedback() -> None:
    run, feedback = history([[-2.0, -4.0], [-1.8, -4.1], [-1.7, -3.0]]), Feedback()
    found = feedback(run)
    increments = rewards(
        run, lambda so_far: feedback(so_far).values[-1] - feedback(so_far).values[-2]
    )
    assert returns(increments.values)[0] == pytest.approx(found.values[-1])


def test_what_was_not_evaluated_is_absent() -> None:
    assert Feedback()(
        history([[-2.0, -4.0], None, [-2.0, None], [-1.0, -4.0]])
    ).present.tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert not Feedback()(history([None, [-2.0, -4.0]])).present.any(), "nothing to compare with"
    assert not Feedback()(history([[-2.0, 0.0], [-2.0, -4.0]])).present.any()


def test_other_fields_and_weights_are_refused() -> None:
    with pytest.raises(PolicyError, match="general and target"):
        Feedback()(history([[-2.0], [-1.0]]))
    with pytest.raises(PolicyError, match=r"1\.5.*between 0 and 1"):
        Feedback(1.5)


def test_questions_are_files_of_both_fields_in_one_order_or_none() -> None:
    given: dict[str, Any] = {"target": [Path("t.jsonl")], "general": ["g.jsonl"]}
    found = question_files(given)
    assert found is not None
    assert list(found.items()) == [
        ("general", ["g.jsonl"]),
        ("target", ["t.jsonl"]),
    ]
    assert question_files(None) is None
    wrong: list[dict[str, Any]] = [{}, {"general": ["g.jsonl"]}, {**given, "other": ["o.jsonl"]}]
    for refused in wrong:
        for policy in (ScoringSampler, HistoryPolicy):
            with pytest.raises(PolicyError, match="it needs general and target"):
                policy(evaluation=refused)
