"""Mixing as environments of Gymnasium, for reinforcement learning with other libraries.

    import gymnasium
    import cuvee.integrations.gymnasium                            # registers the environments

    world = gymnasium.make("cuvee/Mixing-v0", domains=5)           # a simulated run
    proxy = gymnasium.make("cuvee/MixingProxy-v0", corpus="corpus", settings={"steps": 200})

An episode is one training run, and a step is one interval. The observation is that of cuvee's own
agents (`cuvee.policies.encoders`), as one vector: K·F domain features, then G global features. The
action (K,) in [−1, 1] gives the mixture softmax(3·action). The reward is the decrease in nats of
the mean validation loss of the valued domains, so the undiscounted return is the total decrease.
The end of the run terminates the episode, because the observation contains the progress.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from cuvee.core.arrays import FloatArray
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Trainer
from cuvee.core.registry import TRAINERS
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.policies.encoders import DOMAIN_FEATURES, GLOBAL_FEATURES, observe
from cuvee.policies.objective import objective_K
from cuvee.probes.norms import WeightNorms
from cuvee.simulation.simulator import ScalingLaws, Simulator
from cuvee.training.distributed import Ranks
from cuvee.training.settings import TrainerSettings

SHARPNESS = 3.0
"""Weights differ by at most a factor of e⁶ ≈ 400."""
_LARGEST_FEATURE = 3.0
_SEEDS = 2**31

Features = npt.NDArray[np.float32]


class MixingEnv(gymnasium.Env[Features, Features]):
    """An environment over the runs of one kind of trainer. Subclasses start the runs.

    `objective` holds weights of the domains, as in `cuvee.policies.objective`. The info of
    each step has `mixture`, by domain, and `loss`, the valued validation loss in nats.
    """

    def __init__(self, domains: int, objective: Mapping[str, float] | None = None) -> None:
        size = domains * len(DOMAIN_FEATURES) + len(GLOBAL_FEATURES)
        limit = _LARGEST_FEATURE
        self.observation_space = spaces.Box(-limit, limit, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (domains,), np.float32)
        self._objective = objective
        self._trainer: Trainer | None = None
        self._so_far: Trajectory | None = None
        self._loss = 0.0

    @abstractmethod
    def start(self, seed: int) -> Trainer:
        """Return a new run. Equal seeds give equal runs."""

    @property
    def trajectory(self) -> Trajectory:
        """The episode so far."""
        assert self._so_far is not None, "call reset first"
        return self._so_far

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Features, dict[str, Any]]:
        super().reset(seed=seed)
        self._trainer = self.start(int(self.np_random.integers(_SEEDS)))
        self._so_far = Trajectory.start(self._trainer.start((WeightNorms(),)))
        self._loss = self._valued_loss(0.0)
        return self._observation(), {"loss": self._loss}

    def step(self, action: Features) -> tuple[Features, float, bool, bool, dict[str, Any]]:
        assert self._trainer is not None, "call reset first"
        mixture = Mixture(self.trajectory.names, _weights(action))
        self._so_far = self.trajectory.append(mixture, self._trainer.advance(mixture))
        before = self._loss
        self._loss = self._valued_loss(before)
        info = {"loss": self._loss, "mixture": mixture.as_dict()}
        return self._observation(), before - self._loss, self._trainer.done, False, info

    def _valued_loss(self, before: float) -> float:
        """Return Σ v L / Σ v, or `before` if this interval had no validation."""
        valid = self.trajectory.last.probes.get("valid_loss")
        if valid is None or not valid.present.any():
            return before
        values_K = np.where(valid.present, self._values_K(), 0.0)
        return float(values_K @ np.where(valid.present, valid.values, 0.0) / values_K.sum())

    def _values_K(self) -> FloatArray:
        return objective_K(self.trajectory, self._objective)

    def _observation(self) -> Features:
        seen = observe(self.trajectory, self._values_K())
        return np.concatenate([seen.domains_KF.ravel(), seen.globals_G]).astype(np.float32)


class SimulatedMixingEnv(MixingEnv):
    """`cuvee/Mixing-v0`: simulated runs of `intervals` intervals, in CPU milliseconds each.

    Each episode has new scaling laws, or always those of the seed `world` if it is given.
    """

    def __init__(
        self, domains: int = 5, intervals: int = 25, noise: float = 0.02, world: int | None = None
    ) -> None:
        super().__init__(domains)
        self._domains = domains
        self._intervals = intervals
        self._noise = noise
        self._world = world

    def start(self, seed: int) -> Trainer:
        world = seed if self._world is None else self._world
        laws = ScalingLaws.draw(self._domains, world, intervals=self._intervals)
        return Simulator(laws, seed, self._noise)


class ProxyMixingEnv(MixingEnv):
    """`cuvee/MixingProxy-v0`: training runs of a small model on a corpus.

    `settings` are those of `TrainerSettings`; validation follows every interval unless they say
    otherwise. An interval without validation has reward 0. Raises `ConfigError` and `CorpusError`.
    """

    def __init__(
        self,
        corpus: str | Path,
        model: str | Mapping[str, Any] = "llama-0.1m",
        settings: Mapping[str, Any] | None = None,
        objective: Mapping[str, float] | None = None,
    ) -> None:
        self._corpus = Corpus.open(corpus)
        self._model = model
        self._settings = {"validate_every": 1, **(settings or {})}
        TrainerSettings(**self._settings)  # raises before the first episode
        super().__init__(len(self._corpus.domains), objective)

    def start(self, seed: int) -> Trainer:
        settings = TrainerSettings(**{**self._settings, "seed": seed})
        domains: Domains = self._corpus
        trainer: Trainer = TRAINERS.get("lm").build(self._model, domains, settings, Ranks())
        return trainer


def _weights(action_K: Features) -> FloatArray:
    logits_K = SHARPNESS * np.asarray(action_K, dtype=np.float64)
    weights_K: FloatArray = np.exp(logits_K - logits_K.max())
    weights_K /= weights_K.sum()
    return weights_K


gymnasium.register("cuvee/Mixing-v0", f"{__name__}:SimulatedMixingEnv")
gymnasium.register("cuvee/MixingProxy-v0", f"{__name__}:ProxyMixingEnv")
