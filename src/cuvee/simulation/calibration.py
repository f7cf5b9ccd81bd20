"""Finds simulated worlds that resemble logged runs, by approximate Bayesian computation.

The method is rejection sampling (Beaumont et al. 2002):

1. Draw world parameters, and a world with as many domains as the runs (`simulation.continual`).
2. Play the mixtures of all runs in it. Domains are matched by role and by rank in size.
3. Compute the distance, over general feedback, target feedback and their mean: Σ (x̃ − ỹ)² / Σ ỹ²,
   where x̃ and ỹ are centred over the runs at each timestep. Add the difference of the means over
   runs, relative to the runs' variance at the end, with weight 0.1.
4. Keep the nearest parameters, the same number for each domain space.

No parameter of a single domain is fitted. The result describes what such runs have in common, so it
is useful for corpora with other domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Run
from cuvee.policies.feedback import Feedback
from cuvee.simulation.continual import WorldParams, continual
from cuvee.simulation.dynamics_model import domain_change

_FEWEST = 8


@dataclass(frozen=True)
class WorldMatch:
    """World parameters, and the distance of their world from the logged runs.

    A world in which mixtures have no effect has a distance of about 1.
    """

    params: WorldParams
    distance: float


@dataclass(frozen=True, eq=False)
class _Space:
    """Runs with the same domains: mixtures (N, T, K) and feedback by field (N, T, 2).

    Source domains come first, then target domains, each by size, the largest first.
    """

    sources: int
    targets: int
    weights_NTK: FloatArray
    fields_NT2: FloatArray

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Space:
        """Return the arrays of runs with the same domains."""
        domains = runs[0].trajectory.domains
        order = _by_size(domains)
        asked_NT2 = np.stack(
            [[one.probes["evaluation"].values for one in run.trajectory.signals] for run in runs]
        )
        fields_NT2 = (1 - asked_NT2 / asked_NT2[:, :1])[:, 1:]
        if not fields_NT2[:, -1].std(axis=0).all():
            raise PolicyError(
                f"feedback is the same at the end of all {len(runs)} runs like {runs[0].id}, so "
                "worlds cannot be compared with them: log runs under different mixtures "
                "(`cuvee search` with data_mixing_agent)"
            )
        sources = sum(not domain.is_target for domain in domains)
        weights_NTK = np.stack([run.trajectory.weights_TK()[:, order] for run in runs])
        return cls(sources, len(domains) - sources, weights_NTK, fields_NT2)

    def distance(self, params: WorldParams, seed: int) -> float:
        """Return the distance between these runs and the world drawn from `params` and `seed`."""
        played_NT2 = self._play(params, seed)
        x_NT3, y_NT3 = (
            np.concatenate([one, one.mean(-1, keepdims=True)], -1)
            for one in (played_NT2, self.fields_NT2)
        )
        x_T3 = x_NT3.mean(0)
        y_T3 = y_NT3.mean(0)
        apart_3 = np.square(x_NT3 - x_T3 - y_NT3 + y_T3).sum((0, 1)) / np.square(y_NT3 - y_T3).sum(
            (0, 1)
        )
        level_3 = np.square(x_T3 - y_T3).mean(0) / y_NT3[:, -1].var(0)
        return float(apart_3.mean() + 0.1 * level_3.mean())

    def _play(self, params: WorldParams, seed: int) -> FloatArray:
        """Return the feedback by field (N, T, 2) of the runs' mixtures in that world."""
        intervals = self.weights_NTK.shape[1]
        laws, domains = continual(self.sources, self.targets, seed, intervals, params)
        weights_NTK = torch.from_numpy(self.weights_NTK[..., np.argsort(_by_size(domains))])
        is_target_K = np.array([domain.is_target for domain in domains])
        roles_K2 = torch.from_numpy(np.stack([~is_target_K, is_target_K], 1)).double()
        effective_NK = laws.start_K
        base_2 = laws.loss(laws.start_K) @ roles_K2
        found = []
        for number in range(intervals):
            effective_NK = laws.step(effective_NK, weights_NTK[:, number], number)
            found.append(1 - laws.loss(effective_NK) @ roles_K2 / base_2)
        return np.asarray(torch.stack(found, 1).numpy())


def calibrate(runs: Sequence[Run], draws: int, keep: int, seed: int = 0) -> list[WorldMatch]:
    """Draw `draws` world parameters and return the `keep` nearest to the runs of each domain space.

    They are sorted by space, then by distance. Runs are used if they are complete, have feedback
    for every interval, and did not change their domains. Raises `PolicyError` if no space has 8
    such runs, or if the runs of a space all end with the same feedback.
    """
    spaces: dict[object, list[Run]] = {}
    for run in runs:
        whole = run.trajectory.last.progress >= 1.0 and domain_change(run.trajectory) is None
        if whole and Feedback()(run.trajectory).present.all():
            spaces.setdefault((run.trajectory.names, len(run.trajectory)), []).append(run)
    logged = [_Space.of(members) for members in spaces.values() if len(members) >= _FEWEST]
    if not logged:
        raise PolicyError(
            f"none of {len(spaces)} domain spaces has {_FEWEST} complete runs with feedback for "
            "every interval: run more proxies (`cuvee search`), with question files"
        )
    drawn: list[int] = np.random.default_rng([seed, 5]).integers(2**31, size=draws).tolist()
    world_params = [(WorldParams.draw(one), one) for one in drawn]
    found: list[WorldMatch] = []
    for space in logged:
        distances = [
            WorldMatch(params, space.distance(params, world)) for params, world in world_params
        ]
        found += sorted(distances, key=lambda one: one.distance)[:keep]
    return found


def _by_size(domains: Sequence[Domain]) -> npt.NDArray[np.int64]:
    """Return the indices of the source domains, then of the target domains, the largest first."""
    return np.array(
        sorted(range(len(domains)), key=lambda k: (domains[k].is_target, -domains[k].tokens))
    )
