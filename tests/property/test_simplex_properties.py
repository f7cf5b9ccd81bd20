"""Properties of mixtures and of the guard's projection, for any domains and any weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cuvee.core.errors import MixtureError
from cuvee.core.mixture import Mixture
from cuvee.policies.guard.limits import project_to_box

SIZES = st.integers(1, 1000)
POSITIVE = SIZES.flatmap(lambda K: arrays(np.float64, K, elements=st.floats(0, 1e300)))
ANYTHING = st.integers(1, 40).flatmap(
    lambda K: arrays(np.float64, K, elements=st.floats(allow_nan=True))
)


def names(K: int) -> list[str]:
    return [f"d{k}" for k in range(K)]


@given(POSITIVE)
def test_normalise_gives_a_mixture_or_says_why_not(weights_K: np.ndarray) -> None:
    if weights_K.max() == 0:
        with pytest.raises(MixtureError):
            Mixture.normalise(names(len(weights_K)), weights_K)
    else:
        mixture = Mixture.normalise(names(len(weights_K)), weights_K)
        assert abs(mixture.weights_K.sum() - 1) < 1e-9
        assert (mixture.weights_K >= 0).all()


@given(ANYTHING)
def test_nothing_invalid_is_silently_accepted(weights_K: np.ndarray) -> None:
    valid = bool(
        np.isfinite(weights_K).all() and (weights_K >= 0).all() and abs(weights_K.sum() - 1) <= 1e-9
    )
    try:
        Mixture(tuple(names(len(weights_K))), weights_K)
        assert valid
    except MixtureError:
        assert not valid


@given(POSITIVE.filter(lambda weights_K: weights_K.max() > 0))
def test_json_keeps_every_bit(weights_K: np.ndarray) -> None:
    mixture = Mixture.normalise(names(len(weights_K)), weights_K)
    assert Mixture.from_json(json.loads(json.dumps(mixture.to_json()))) == mixture


@given(st.integers(2, 60), st.randoms(use_true_random=False), st.floats(0, 1), st.floats(0, 1))
def test_projection_is_within_the_box_and_nearest(
    K: int, random: object, tight_low: float, tight_high: float
) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    floor_K = rng.dirichlet(np.ones(K)) * tight_low
    ceiling_K = np.minimum(1.0, floor_K + (1 - floor_K) * rng.uniform(tight_high, 1, K))
    if ceiling_K.sum() < 1:
        return
    weights_K = rng.dirichlet(np.full(K, 0.1))
    projected_K = project_to_box(weights_K, floor_K, ceiling_K)
    assert abs(projected_K.sum() - 1) < 1e-9
    assert (projected_K >= floor_K - 1e-12).all()
    assert (projected_K <= ceiling_K + 1e-12).all()
    for _ in range(5):  # no feasible point is nearer (variational inequality)
        other_K = project_to_box(rng.dirichlet(np.ones(K)), floor_K, ceiling_K)
        assert (weights_K - projected_K) @ (other_K - projected_K) < 1e-9
