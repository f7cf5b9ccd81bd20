"""The domain Transformer does not know the order of the domains, nor how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.agents.actor_critic import build_actor, build_critic
from cuvee.agents.learning import seeded
from cuvee.agents.networks import Architecture, Shape

ARCHITECTURE = Architecture("transformer", hidden=16, layers=2, heads=2)
SHAPE = Shape(5, 3, 2)
ACTOR = seeded(0, lambda: build_actor(SHAPE, ARCHITECTURE, 2))
SCALAR = seeded(1, lambda: build_critic(SHAPE, ARCHITECTURE))
VECTOR = seeded(2, lambda: build_critic(Shape(5, 3, 2, vector=True), ARCHITECTURE))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_permuting_domains_permutes_the_answers(K: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(K))
    domains = torch.from_numpy(rng.normal(size=(2, K, 3)).astype(np.float32))
    globals_ = torch.from_numpy(rng.normal(size=(2, 2)).astype(np.float32))
    action = torch.from_numpy(rng.dirichlet(np.ones(K), size=2).astype(np.float32))
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
    with torch.no_grad():
        torch.testing.assert_close(
            ACTOR(domains[:, order], globals_), ACTOR(domains, globals_)[:, order], **close
        )
        for critic in (SCALAR, VECTOR):
            value = critic.value(critic.encode(domains, globals_), action)
            permuted = critic.value(critic.encode(domains[:, order], globals_), action[:, order])
            if value.shape[-1] > 1:  # a vector critic's last value is that of the whole mixture
                value = torch.cat([value[:, order], value[:, -1:]], -1)
            torch.testing.assert_close(permuted, value, **close)


@pytest.mark.parametrize("K", [1, 2, 12, 52, 104, 1000])
def test_one_network_serves_any_number_of_domains(K: int) -> None:
    with torch.no_grad():
        assert ACTOR(torch.zeros(K, 3), torch.zeros(2)).shape == (K, 2)
        encoded = SCALAR.encode(torch.zeros(1, K, 3), torch.zeros(1, 2))
        assert SCALAR.value(encoded, torch.full((7, 1, K), 1 / K)).shape == (7, 1, 1)
