"""Rewards and encoders against values computed by hand, and on what is absent."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.encoders import DOMAIN_FEATURES, GLOBAL_FEATURES, observe
from cuvee.policies.rewards import (
    AlignmentReward,
    GainReward,
    HolisticReward,
    RandomReward,
    valued_alignment,
    values_of,
)

DOMAINS = (
    Domain("a", 100, scores={"mtld": 40.0}),
    Domain("b", 300, scores={"mtld": 80.0}),
    Domain("c", 600, "target"),
)
GRADIENTS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]])


def history(
    *,
    present: tuple[bool, bool, bool] = (True, True, True),
    weights: tuple[float, ...] = (0.5, 0.25, 0.25),
) -> Trajectory:
    gram = Measured(GRADIENTS @ GRADIENTS.T, np.outer(present, present))
    before = Signals(
        DOMAINS,
        0,
        0.0,
        np.zeros(3, np.int64),
        Measured.absent(3),
        {"weight_norms": Measured.all([10.0, 20.0])},
    )
    after = Signals(
        DOMAINS,
        10,
        0.5,
        np.array([500, 250, 250]),
        Measured.from_json([3.0, 2.0, None]),
        {"alignment": gram, "alignment_unbiased": gram, "weight_norms": Measured.all([10.2, 20.3])},
    )
    return Trajectory.start(before).append(Mixture(("a", "b", "c"), np.array(weights)), after)


def test_alignment_is_the_cosine_with_the_valued_sum_of_the_others() -> None:
    gram = Measured.all(GRADIENTS @ GRADIENTS.T)
    expected = []
    for values in (np.ones(3), np.array([1.0, 0.5, 0.0])):
        expected = [
            GRADIENTS[i] @ others / (np.linalg.norm(GRADIENTS[i]) * np.linalg.norm(others))
            for i in range(3)
            for others in [sum(values[j] * GRADIENTS[j] for j in range(3) if j != i)]
        ]
        assert valued_alignment(gram, values).values == pytest.approx(expected)
    assert expected[0] == pytest.approx(1 / np.sqrt(2)), (
        "against b alone, whose gradient is at 45 degrees"
    )


def test_alignment_of_what_was_not_measured_is_absent() -> None:
    present = np.array([True, True, False])
    gram = Measured(GRADIENTS @ GRADIENTS.T, np.outer(present, present))
    aligned = valued_alignment(gram, np.ones(3))
    assert aligned.present.tolist() == [True, True, False]
    assert aligned.values[0] == pytest.approx(1 / np.sqrt(2))
    assert not valued_alignment(gram, np.array([0.0, 0.0, 1.0])).present.any(), (
        "nothing that is valued has a gradient"
    )
    assert not valued_alignment(Measured.absent((3, 3)), np.ones(3)).present.any()


def test_the_alignment_reward_is_smoothed_and_importance_corrected() -> None:
    reward = AlignmentReward(smoothing=0.5)
    first = reward(history())
    assert first is not None
    aligned = valued_alignment(Measured.all(GRADIENTS @ GRADIENTS.T), np.ones(3)).values
    assert first.scalar == pytest.approx(np.array([0.5, 0.25, 0.25]) @ aligned)
    assert first.vector_K == pytest.approx(aligned / np.array([0.5, 0.25, 0.25]) / 3)
    second = reward(history(weights=(0.25, 0.5, 0.25)))
    assert second is not None
    assert second.vector_K[0] == pytest.approx(
        0.5 * first.vector_K[0] + 0.5 * aligned[0] / 0.25 / 3
    )


def test_gain_averages_one_over_valued_domains_and_counts_a_domain_for_itself() -> None:
    gram_KK = GRADIENTS @ GRADIENTS.T
    reward = GainReward(smoothing=0.0)(history())
    assert reward is not None
    assert reward.vector_K == pytest.approx(gram_KK.sum(1) / gram_KK.sum(1).mean())
    valued = GainReward(smoothing=0.0, values={"a": 0.0, "b": 0.0})(history())
    assert valued is not None
    assert valued.vector_K == pytest.approx([0.0, -0.5, 1.0]), "⟨g_i, g_c⟩ in units of ‖g_c‖²"
    assert valued.scalar == pytest.approx(valued.vector_K @ np.array([0.5, 0.25, 0.25]))


def test_gain_smooths_both_sides_of_the_ratio_and_resumes() -> None:
    reward = GainReward(smoothing=0.5)
    reward(history())
    again = GainReward(smoothing=0.5)
    again.load_state_dict(reward.state_dict())
    ours, theirs = (
        reward(history(present=(True, True, False))),
        again(history(present=(True, True, False))),
    )
    assert ours is not None and theirs is not None  # noqa: PT018
    assert ours.vector_K.tolist() == theirs.vector_K.tolist()
    gram_KK = GRADIENTS @ GRADIENTS.T
    now_K = np.append(
        gram_KK[:2, :2].sum(1), gram_KK[2].sum()
    )  # c was not measured: what was known of it stays
    smoothed_K = 0.5 * gram_KK.sum(1) + 0.5 * now_K
    assert ours.vector_K == pytest.approx(smoothed_K / smoothed_K.mean())


def test_what_is_validated_counts_unless_the_user_says_otherwise() -> None:
    so_far = history()
    assert values_of(so_far, None).tolist() == [1.0, 1.0, 1.0], "nothing is validated"
    first = so_far.signals[0]
    measured = {"valid_loss": Measured.from_json([3.0, None, 2.0])}
    validated = Signals(DOMAINS, 0, 0.0, np.zeros(3, np.int64), Measured.absent(3), measured)
    assert values_of(Trajectory.start(validated), {}).tolist() == [1.0, 0.0, 1.0]
    assert values_of(Trajectory.start(first), {"b": 0.5}).tolist() == [1.0, 0.5, 1.0]
    with pytest.raises(PolicyError, match="at least one"):
        values_of(so_far, dict.fromkeys("abc", 0.0))


def test_a_reward_that_cannot_be_measured_is_none() -> None:
    assert GainReward()(history(present=(False, False, False))) is None
    assert AlignmentReward()(history(present=(False, False, False))) is None
    with pytest.raises(PolicyError, match="latin"):
        AlignmentReward(values={"latin": 1.0})(history())


def test_the_holistic_reward_is_the_sum_of_its_logged_terms() -> None:
    quality = {"a": 1.0, "b": 2.0, "c": 4.0}
    reward = HolisticReward(weights=(1.0, 10.0, 10.0), quality=quality)(history())
    assert reward is not None
    assert reward.terms["quality"] == pytest.approx(
        10 * 0.5 * (0.5 * 0.25 + 0.25 * 0.5 + 0.25 * 1.0)
    )
    assert reward.terms["stability"] == pytest.approx(10 * 1 / 0.5)
    assert reward.scalar == pytest.approx(sum(reward.terms.values()))
    for off in range(3):
        weights = (float(off != 0), float(off != 1), float(off != 2))
        without = HolisticReward(weights=weights, quality=quality)(history())
        assert without is not None
        assert list(without.terms.values())[off] == 0.0


def test_the_holistic_reward_names_the_domain_without_a_score() -> None:
    with pytest.raises(PolicyError, match="for c"):
        HolisticReward()(history())


def test_random_rewards_are_the_same_on_a_repeat() -> None:
    first, again = (RandomReward(seed=1)(history()) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.vector_K.tolist() == again.vector_K.tolist()


def test_observations_have_the_named_features_and_stay_within_bounds() -> None:
    for so_far in (history(), Trajectory.start(history().signals[0])):
        observation = observe(so_far, np.ones(3))
        assert observation.domains_KF.shape == (3, len(DOMAIN_FEATURES))
        assert observation.globals_G.shape == (len(GLOBAL_FEATURES),)
        assert np.abs(observation.domains_KF).max() <= 3.0
    domains_KF = observe(history(), np.array([1.0, 0.0, 2.0])).domains_KF
    assert domains_KF[:, DOMAIN_FEATURES.index("target")].tolist() == [0.0, 0.0, 1.0]
    assert domains_KF[:, DOMAIN_FEATURES.index("value")] == pytest.approx(np.log([0.5, 0.05, 1.0]))
    assert domains_KF[:, DOMAIN_FEATURES.index("loss_known")].tolist() == [1.0, 1.0, 0.0]
    assert domains_KF[:, DOMAIN_FEATURES.index("weight")] == pytest.approx([0.5, -0.25, -0.25])
    assert domains_KF[:, DOMAIN_FEATURES.index("loss")] == pytest.approx([1.0, -1.0, 0.0])
    globals_G = observe(history(), np.ones(3)).globals_G
    assert globals_G[GLOBAL_FEATURES.index("norm_change")] == pytest.approx(
        100 * (0.02 + 0.015) / 2
    )


def test_observations_follow_the_domains_when_they_are_reordered() -> None:
    """Names travel and indices do not: the features of a domain do not depend on its place."""
    so_far, order = history(), [2, 0, 1]

    def reorder(signals: Signals) -> Signals:
        pick = lambda m: Measured(m.values[order], m.present[order])  # noqa: E731
        return Signals(
            tuple(DOMAINS[k] for k in order),
            signals.step,
            signals.progress,
            signals.tokens_K[order],
            pick(signals.loss),
            {"weight_norms": signals.probes["weight_norms"]},
        )

    mixture = so_far.mixtures[0]
    moved = Trajectory(
        [reorder(signals) for signals in so_far.signals],
        [Mixture(tuple(mixture.names[k] for k in order), mixture.weights_K[order])],
    )
    values_K = np.array([0.0, 1.0, 2.0])
    found = observe(moved, values_K[order]).domains_KF
    assert found == pytest.approx(observe(so_far, values_K).domains_KF[order])
