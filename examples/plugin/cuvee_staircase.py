"""A policy, a method and a reward from outside cuvee; pyproject.toml says where cuvee finds them."""

from dataclasses import dataclass

import numpy as np

from cuvee.core.mixture import Mixture
from cuvee.policies.rewards import Reward


class Stateless:
    probes = ()

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


@dataclass
class Staircase(Stateless):
    step: float = 0.1  # how much the shares fall from one domain to the next, more each interval

    def mixture(self, so_far):
        height_K = self.step * len(so_far) * np.arange(len(so_far.names))
        return Mixture.normalise(so_far.names, np.exp(-height_K))

    def learn(self, so_far):
        return {"stairs": len(so_far)}

    def settings(self):
        return {"step": self.step}


@dataclass(frozen=True)
class StaircaseMethod:
    step: float = 0.1
    proxies: int = 0

    def propose(self, corpus, logged):
        return [Staircase(self.step * (i + 1)) for i in range(len(logged), self.proxies)]

    def commit(self, corpus, logged):
        return Staircase(self.step)


class Progress(Stateless):
    def __call__(self, so_far, free_K):
        below_K = 10.0 - so_far.last.loss.filled(10.0)
        return Reward(below_K, float(so_far.last_mixture.weights_K @ below_K))
