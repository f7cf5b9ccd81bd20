"""`AgentSuite`: tests of the agent interface. Subclass it, implement `make`, and run pytest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.agents.base import Observation, Transition
from cuvee.core.errors import PolicyError
from cuvee.core.state import digest, load_state, save_state

POISON = (float("nan"), float("inf"), -float("inf"), 1e30)


class AgentSuite:
    """Override `make`, and the sizes if needed. `vector`: rewards have one value per domain."""

    domains, features, globals = 4, 3, 2
    vector = False

    def make(self) -> Any:
        """Return a new `Agent` that learns from 16 transitions or fewer; equal at every call."""
        raise AssertionError("a subclass makes the agent under test")

    def observation(self, rng: np.random.Generator) -> Observation:
        return Observation(
            rng.normal(size=(self.domains, self.features)).astype(np.float32),
            rng.normal(size=self.globals).astype(np.float32),
        )

    def transition(self, rng: np.random.Generator) -> Transition:
        action_K = rng.dirichlet(np.ones(self.domains))
        reward = rng.normal(size=self.domains) if self.vector else float(rng.normal())
        ending = int(rng.integers(10))
        return Transition(
            self.observation(rng),
            action_K,
            reward,
            self.observation(rng),
            terminated=ending == 0,
            truncated=ending == 1,
        )

    def filled(self, transitions: int = 24) -> Any:
        agent = self.make()
        rng = np.random.default_rng(3)
        for _ in range(transitions):
            assert agent.observe(self.transition(rng)) is None
        return agent

    def play(self, agent: Any, rng: np.random.Generator, rounds: int) -> list[bytes]:
        """Act, observe and learn for some rounds; return the exact actions."""
        actions = []
        for _ in range(rounds):
            transition = self.transition(rng)
            action_K = agent.act(transition.observation, explore=True)
            actions.append(action_K.tobytes())
            agent.observe(transition._replace(action_K=action_K))
            agent.update()
        return actions

    @pytest.mark.parametrize("explore", [False, True])
    def test_acts_are_mixtures(self, explore: bool) -> None:
        agent = self.filled()
        rng = np.random.default_rng(0)
        for _ in range(20):
            action_K = agent.act(self.observation(rng), explore)
            assert action_K.shape == (self.domains,)
            assert action_K.dtype == np.float64
            assert (action_K >= 0).all()
            assert abs(action_K.sum() - 1) < 1e-12

    def test_acting_without_exploring_is_a_function_of_the_observation(self) -> None:
        agent = self.filled()
        observation = self.observation(np.random.default_rng(0))
        before = digest(agent.state_dict())
        assert agent.act(observation).tobytes() == agent.act(observation).tobytes()
        assert digest(agent.state_dict()) == before

    def test_exploring_varies(self) -> None:
        agent = self.filled()
        observation = self.observation(np.random.default_rng(0))
        assert (
            agent.act(observation, explore=True).tobytes()
            != agent.act(observation, explore=True).tobytes()
        )

    def test_learning_changes_what_it_does(self) -> None:
        agent = self.filled()
        observation = self.observation(np.random.default_rng(0))
        before = agent.act(observation)
        metrics = [agent.update() for _ in range(3)][-1]
        assert metrics
        assert all(np.isfinite(value) for value in metrics.values())
        assert np.abs(agent.act(observation) - before).max() > 0

    def test_equal_agents_do_equal_things(self) -> None:
        first, second = self.filled(), self.filled()
        assert self.play(first, np.random.default_rng(5), 6) == self.play(
            second, np.random.default_rng(5), 6
        )
        assert digest(first.state_dict()) == digest(second.state_dict())

    def test_global_random_state_is_neither_read_nor_changed(self) -> None:
        digests = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            following = float(torch.rand(())), np.random.random()
            torch.manual_seed(seed)
            np.random.seed(seed)
            agent = self.filled()
            self.play(agent, np.random.default_rng(5), 2)
            digests.append(digest(agent.state_dict()))
            assert (float(torch.rand(())), np.random.random()) == following
        assert digests[0] == digests[1]

    def test_goes_on_to_the_bit_after_saving_and_loading(self, tmp_path: Path) -> None:
        agent = self.filled()
        self.play(agent, np.random.default_rng(5), 4)
        save_state(tmp_path / "agent", agent.state_dict())
        restored = self.make()
        restored.load_state_dict(load_state(tmp_path / "agent"))
        assert digest(restored.state_dict()) == digest(agent.state_dict())
        expected = self.play(agent, np.random.default_rng(6), 6)
        assert self.play(restored, np.random.default_rng(6), 6) == expected
        assert digest(restored.state_dict()) == digest(agent.state_dict())

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize(
        "where", ["domains", "globals", "action", "reward", "next domains", "next globals"]
    )
    def test_a_poisoned_transition_is_refused_with_a_reason_and_changes_nothing(
        self, where: str, poison: float
    ) -> None:
        agent = self.filled()
        agent.update()
        before = digest(agent.state_dict())
        reason = agent.observe(self.poisoned(where, poison))
        assert reason
        assert where.split()[-1] in reason
        assert digest(agent.state_dict()) == before

    def poisoned(self, where: str, poison: float) -> Transition:
        t = self.transition(np.random.default_rng(9))
        following = where.startswith("next")
        observation = t.next_observation if following else t.observation
        if where.endswith("domains"):
            observation.domains_KF[-1, -1] = poison
        elif where.endswith("globals"):
            observation.globals_G[-1] = poison
        elif where == "action":
            t.action_K[0] = poison
        else:
            reward = np.array(t.reward, dtype=np.float64)
            reward[...] = poison
            t = t._replace(reward=reward)
        return t

    def test_an_action_off_the_simplex_is_refused(self) -> None:
        agent = self.filled()
        before = digest(agent.state_dict())
        good = self.transition(np.random.default_rng(9))
        for bad_K in (good.action_K * 1.1, good.action_K - good.action_K.max()):
            assert agent.observe(good._replace(action_K=bad_K))
        assert digest(agent.state_dict()) == before

    @pytest.mark.parametrize("poison", POISON)
    def test_a_poisoned_observation_raises_and_changes_nothing(self, poison: float) -> None:
        agent = self.filled()
        before = digest(agent.state_dict())
        observation = self.observation(np.random.default_rng(0))
        observation.domains_KF[0, 0] = poison
        with pytest.raises(PolicyError, match="finite"):
            agent.act(observation, explore=True)
        assert digest(agent.state_dict()) == before
