"""Trains the actor through worlds drawn from a `CurveModel`, in closed loop.

    world    a member of the ensemble, with its laws moved domain by domain by a random factor
    rollout  the actor sees noisy losses and feedback and steers a whole run; e_T is a
             differentiable function of its weights
    actor    maximises (e_T − e_T of the reference) / (|e_T of the reference| + 0.02) − KL penalty

It is the training of the universal policy (`learning.universal`), in worlds like the logged runs.
The members disagree where the runs say little, so the actor learns to find out which world it is
in. Feedback of a field is the mean of the losses of its role.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cuvee.agents.learning import TrainState
from cuvee.core.domain import Domain, available_K, natural_K
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Trajectory
from cuvee.learning.universal import MeasurementNoise, divergence, rollout
from cuvee.policies.history.encoder import reference_mixture
from cuvee.policies.history.heuristics import role_shares
from cuvee.simulation.curves import FEWEST_RUNS, CurveModel, fit_curves, fresh

_INFLATION = 0.3  # deviation of the factors, in nats
_KL_COEF = 0.02
_JITTERED = ("decay_MK", "pace_MK", "fade_MK")
_BY_MEMBER = ("start_MK", "reducible_MK", "transfer_MKK", "repeats_M1", "powers_M2", "final_M1")


FittedSpace = tuple[CurveModel, tuple[Domain, ...]]
"""The laws that were fitted to the runs of a domain space, and its domains."""


def fitted_spaces(
    spaces: Sequence[Sequence[Trajectory]], weight: float, seed: int
) -> list[FittedSpace]:
    """Fit laws to the runs of each domain space that has enough of them.

    Raises `PolicyError` if none has.
    """
    found = [
        (fit_curves(members, weight, seed=seed), members[0].domains)
        for members in spaces
        if len(members) >= FEWEST_RUNS
    ]
    if not found:
        raise PolicyError(
            f"no domain space has {FEWEST_RUNS} complete runs to fit laws to: run more proxies "
            "(`cuvee search`), or set `learner: cql`"
        )
    return found


class DrawnWorlds:
    """B runs in worlds drawn from one family of the ensemble, with the interface of `Worlds`.

    The state of a run is (B, 2 K): what it knows of each domain, and its passes over it.
    """

    def __init__(
        self,
        model: CurveModel,
        domains: tuple[Domain, ...],
        count: int,
        rng: np.random.Generator,
        inflation: float = _INFLATION,
    ) -> None:
        family = int(rng.choice(len(model.laws), p=model.trust))
        fitted = model.laws[family]
        members = torch.from_numpy(rng.integers(len(fitted.start_MK), size=count))
        self._laws = copy.copy(fitted)
        for name in (*_BY_MEMBER, *_JITTERED):
            setattr(self._laws, name, getattr(fitted, name)[members])
        for name in _JITTERED:
            factor_BK = np.exp(inflation * rng.normal(size=(count, len(domains))))
            drawn_BK = getattr(self._laws, name) * torch.from_numpy(factor_BK).float()
            setattr(self._laws, name, drawn_BK)
        self._text = model.text
        self._unit_K = torch.from_numpy(model.text.available_K / model.text.unit).float()
        share_T = torch.from_numpy(model.text.share_T).float()
        self._share_T = share_T
        self._eta_BT, self._phi_BT = self._laws.rates(
            (share_T.cumsum(0) - share_T / 2) / share_T.sum()
        )
        self.interval = float(model.text.unit * model.text.share_T.mean())
        self.intervals = len(share_T)
        K = len(domains)
        self.start_K = torch.cat([torch.ones(count, K), torch.zeros(count, K)], -1)

        def rows(one: object) -> Tensor:
            return torch.from_numpy(np.array(one, dtype=np.float32)).expand(count, K)

        self.reference_BK = rows(reference_mixture(domains))
        self.start_BK = rows(role_shares(domains, "source"))
        self.natural_BK = rows(natural_K(domains))
        self.tokens_BK = rows(available_K(domains))
        self.target_BK = rows([float(domain.is_target) for domain in domains])

    @property
    def laws(self) -> DrawnWorlds:
        """The worlds themselves, which know their losses."""
        return self

    def loss(self, state: Tensor) -> Tensor:
        """Return the losses (B, K)."""
        return self._laws.loss(state.chunk(2, -1)[0])

    def step(self, state: Tensor, weights_BK: Tensor, number: int) -> Tensor:
        """Return the state after interval `number` (from 0)."""
        known, epochs = state.chunk(2, -1)
        share = self._share_T[number]
        after = epochs + weights_BK * share / self._unit_K
        repeats = self._laws.repeats_M1
        worth_BK = self._unit_K * (fresh(after, repeats) - fresh(epochs, repeats))
        taught_BK = (self._laws.transfer_MKK @ worth_BK[..., None])[..., 0]
        learned_BK = taught_BK * self._laws.pace_MK * self._eta_BT[:, number, None]
        left_BK = (-share * self._laws.fade_MK * self._phi_BT[:, number, None]).exp()
        next_B1K = self._laws.after(known[:, None], learned_BK[:, None], left_BK[:, None])
        return torch.cat([next_B1K[:, 0], after], -1)


class ModelLearner:
    """Updates an actor in `models`, one for each domain space, drawn in turn at random."""

    def __init__(
        self,
        models: Sequence[FittedSpace],
        actor: TrainState,
        weight: float,
        worlds: int = 16,
    ) -> None:
        self._models = models
        self._actor = actor
        self._weight = weight
        self._worlds = worlds

    def update(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, float]:
        """Do one update of the actor on a batch of drawn worlds, and return its metrics."""
        model, domains = self._models[int(rng.integers(len(self._models)))]
        worlds = DrawnWorlds(model, domains, self._worlds, rng)
        noise = model.noise(self._worlds, float(rng.random() < 2 / 3))
        played = rollout(
            self._actor.net, worlds, MeasurementNoise(*noise), generator, weight=self._weight
        )
        with torch.no_grad():
            reference_B = _held(worlds, self._weight)
        above_B = played.feedback_BT[:, -1] - reference_B
        better = (above_B / (reference_B.abs() + 0.02)).mean()
        apart = divergence(played.weights_BTK, worlds.reference_BK)
        metrics = self._actor.step("model", _KL_COEF * apart - better)
        return {**metrics, "above_reference": better.item(), "divergence": apart.item()}


def _held(worlds: DrawnWorlds, weight: float) -> Tensor:
    """Return e (B,) at the end of runs under the reference mixture."""
    state = worlds.start_K
    for number in range(worlds.intervals):
        state = worlds.step(state, worlds.reference_BK, number)
    change_BK = worlds.loss(worlds.start_K) - worlds.loss(state)
    parts = [
        (change_BK * role).sum(-1) / (worlds.loss(worlds.start_K) * role).sum(-1)
        for role in (1 - worlds.target_BK, worlds.target_BK)
    ]
    return weight * parts[0] + (1 - weight) * parts[1]
