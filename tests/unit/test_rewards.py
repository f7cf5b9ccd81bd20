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
from cuvee.policies.gain_estimate import row_gains
from cuvee.policies.gain_rewards import GainReward, HolisticReward
from cuvee.policies.objective import objective_K
from cuvee.policies.rewards import (
    AlignmentReward,
    PublishedHolisticReward,
    valued_alignment,
)
from cuvee.probes.target_gain import NAME, ROWS, SQUARE

DOMAINS = (
    Domain("a", 100, scores={"mtld": 40.0}),
    Domain("b", 300, scores={"mtld": 80.0}),
    Domain("c", 600, "target"),
)
ALL = np.ones(3, dtype=bool)
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
        {"alignment": gram, "weight_norms": Measured.all([10.2, 20.3])},
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
    first = reward(history(), ALL)
    assert first is not None
    aligned = valued_alignment(Measured.all(GRADIENTS @ GRADIENTS.T), np.ones(3)).values
    assert first.scalar == pytest.approx(np.array([0.5, 0.25, 0.25]) @ aligned)
    assert first.vector_K == pytest.approx(aligned / np.array([0.5, 0.25, 0.25]) / 3)
    second = reward(history(weights=(0.25, 0.5, 0.25)), ALL)
    assert second is not None
    assert second.vector_K[0] == pytest.approx(
        0.5 * first.vector_K[0] + 0.5 * aligned[0] / 0.25 / 3
    )


def test_the_published_alignment_is_raw_and_counts_all_domains() -> None:
    gram_KK = GRADIENTS @ GRADIENTS.T
    raw_K = gram_KK.sum(1) - gram_KK.diagonal()
    reward = AlignmentReward(published=True, objective={"a": 1.0})(history(), ALL)
    assert reward is not None
    assert reward.scalar == pytest.approx(np.array([0.5, 0.25, 0.25]) @ raw_K)
    assert reward.vector_K == pytest.approx(raw_K / np.array([0.5, 0.25, 0.25]) / 3)


def test_what_is_validated_counts_unless_the_user_says_otherwise() -> None:
    so_far = history()
    assert objective_K(so_far, None).tolist() == [1.0, 1.0, 1.0], "nothing is validated"
    first = so_far.signals[0]
    measured = {"valid_loss": Measured.from_json([3.0, None, 2.0])}
    validated = Signals(DOMAINS, 0, 0.0, np.zeros(3, np.int64), Measured.absent(3), measured)
    assert objective_K(Trajectory.start(validated), {}).tolist() == [1.0, 0.0, 1.0]
    assert objective_K(Trajectory.start(first), {"b": 0.5}).tolist() == [0.0, 0.5, 0.0]
    for bad in (dict.fromkeys("abc", 0.0), {"a": -1.0, "b": 2.0}, {"a": np.inf}):
        with pytest.raises(PolicyError, match="not negative and not all 0"):
            objective_K(so_far, bad)


def test_a_reward_that_cannot_be_measured_is_none() -> None:
    assert GainReward()(history(), ALL) is None
    assert AlignmentReward()(history(present=(False, False, False)), ALL) is None
    with pytest.raises(PolicyError, match="latin"):
        AlignmentReward(objective={"latin": 1.0})(history(), ALL)


def test_the_holistic_reward_is_the_sum_of_its_logged_terms() -> None:
    quality = {"a": 1.0, "b": 2.0, "c": 4.0}
    reward = PublishedHolisticReward(weights=(1.0, 10.0, 10.0), quality=quality)(history(), ALL)
    assert reward is not None
    assert reward.terms["quality"] == pytest.approx(
        10 * 0.5 * (0.5 * 0.25 + 0.25 * 0.5 + 0.25 * 1.0)
    )
    assert reward.terms["stability"] == pytest.approx(10 * 1 / 0.5)
    assert reward.scalar == pytest.approx(sum(reward.terms.values()))
    for off in range(3):
        weights = (float(off != 0), float(off != 1), float(off != 2))
        without = PublishedHolisticReward(weights=weights, quality=quality)(history(), ALL)
        assert without is not None
        assert list(without.terms.values())[off] == 0.0


def test_the_holistic_reward_names_the_domain_without_a_score() -> None:
    with pytest.raises(PolicyError, match="for c"):
        PublishedHolisticReward()(history(), ALL)


def gains_of(mean_K: list[float], rows: float = 8.0, deviation: float = 0.1) -> Trajectory:
    """One interval, after which "target_gain" has these means."""
    mean = np.array(mean_K)
    probes = {
        NAME: Measured.all(mean),
        SQUARE: Measured.all(mean**2 + deviation**2),
        ROWS: Measured.all(np.full(3, rows)),
    }
    before = history().signals[0]
    after = Signals(DOMAINS, 10, 0.5, np.full(3, 100), Measured.absent(3), probes)
    return Trajectory.start(before).append(
        Mixture(("a", "b", "c"), np.array([0.5, 0.25, 0.25])), after
    )


def test_the_gain_reward_is_what_was_not_foreseen() -> None:
    reward = GainReward()
    assert reward(gains_of([0.0, 1.0, 2.0]), ALL) is None, "nothing was expected yet"
    same = reward(gains_of([0.0, 1.0, 2.0]), ALL)
    assert same is not None
    np.testing.assert_allclose(same.vector_K, 0.0, atol=0.02)
    better = reward(gains_of([0.0, 1.0, 3.0]), ALL)
    assert better is not None
    assert better.vector_K[2] == pytest.approx(1.0, rel=0.1), "in units of the deviation, 1"
    assert better.scalar == pytest.approx(better.vector_K @ np.array([0.5, 0.25, 0.25]))


def test_the_gain_reward_of_few_noisy_rows_is_small_and_that_of_scarce_domains_zero() -> None:
    surprise = {}
    for rows in (1.0, 100.0):
        reward = GainReward()
        for _ in range(30):
            reward(gains_of([0.0, 1.0, 2.0], rows=100.0, deviation=3.0), ALL)
        found = reward(gains_of([0.0, 1.0, 3.0], rows, deviation=3.0), ALL)
        assert found is not None
        surprise[rows] = found.vector_K[2]
    assert 0 < surprise[1.0] < 0.3 * surprise[100.0]
    domains = np.array([False, True, True])
    reward = GainReward()
    assert reward(gains_of([0.0, 1.0, 2.0]), domains) is None
    assert reward(gains_of([9.0, 1.0, 2.0]), domains) is None, "two domains have no deviation"


def test_the_gain_reward_resumes() -> None:
    reward, again = GainReward(), GainReward()
    reward(gains_of([0.0, 1.0, 2.0]), ALL)
    again.load_state_dict(reward.state_dict())
    ours, theirs = (one(gains_of([1.0, 1.0, 2.0]), ALL) for one in (reward, again))
    assert ours is not None
    assert theirs is not None
    assert ours.vector_K.tolist() == theirs.vector_K.tolist()


def test_the_terms_of_the_holistic_reward_differ_between_domains_and_have_mean_zero() -> None:
    quality = {"a": 1.0, "b": 2.0, "c": 4.0}
    terms = []
    for weights in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        reward = HolisticReward(weights=weights, quality=quality)
        reward(gains_of([0.0, 1.0, 2.0]), ALL)
        found = reward(gains_of([0.0, 1.0, 2.0]), ALL)
        assert found is not None
        terms.append(found.vector_K)
    centred = np.array([0.25, 0.5, 1.0]) - np.mean([0.25, 0.5, 1.0])
    np.testing.assert_allclose(terms[0], 0.5 * centred, atol=1e-6)
    np.testing.assert_allclose(terms[1].sum(), 0.0, atol=1e-9)


def test_noise_for_gains_is_the_same_on_a_repeat_and_ignores_what_was_measured() -> None:
    found = [
        row_gains(gains_of(means).last, noise=1) for means in ([0.0, 1.0, 2.0], [5.0, 1.0, 0.0])
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].mean.values.tolist() == found[1].mean.values.tolist()
    assert found[0].rows_K.tolist() == [8.0, 8.0, 8.0]


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
