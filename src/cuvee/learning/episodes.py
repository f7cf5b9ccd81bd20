"""Whole runs as arrays: episodes, their validation, batches, and shaped rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cuvee.agents.base import fault_of
from cuvee.core.arrays import FloatArray
from cuvee.core.trajectory import returns

_SIMPLEX_TOLERANCE = 1e-4
_BINS = 64


class Episode(NamedTuple):
    """One run of T intervals as arrays.

    `domains_TKF` (T+1, K, F) and `globals_TG` (T+1, G) are the features of all timesteps,
    `actions_TK` (T, K) the mixtures, and `rewards_T` (T,) the unscaled rewards. `terminated`: the
    run diverged before the end of its budget. `stopped`: it ended before it for another reason, so
    the record ends and the run does not.
    """

    domains_TKF: npt.NDArray[Any]
    globals_TG: npt.NDArray[Any]
    actions_TK: npt.NDArray[Any]
    rewards_T: npt.NDArray[Any]
    terminated: bool = False
    stopped: bool = False

    @property
    def domains(self) -> int:
        """K, the number of domains."""
        return int(self.actions_TK.shape[1])

    @property
    def gain(self) -> float:
        """The undiscounted return."""
        return float(np.sum(self.rewards_T, dtype=np.float64))

    @property
    def intervals(self) -> int:
        """T, the number of intervals."""
        return len(self.rewards_T)


class EpisodeBatch(NamedTuple):
    """B episodes with the same K as float32 tensors, padded to the same length.

    `valid_BT` is False in the padding. `reward_BT` is shaped and scaled (`ReturnScale`).
    `goes_on_BT` is 0 where the next timestep has no value, else 1. `best_B` is 1 for episodes to
    imitate.
    """

    domains_BTKF: Tensor
    globals_BTG: Tensor
    action_BTK: Tensor
    reward_BT: Tensor
    goes_on_BT: Tensor
    valid_BT: Tensor
    best_B: Tensor


def episode_fault(episode: Episode, features: int, globals_: int) -> str | None:
    """Return why `episode` cannot be learned from, or None.

    `features` and `globals_` are the input sizes of the networks.
    """
    T = len(episode.rewards_T)
    K = episode.actions_TK.shape[-1]
    shapes = {
        "domains": (episode.domains_TKF, (T + 1, K, features)),
        "globals": (episode.globals_TG, (T + 1, globals_)),
        "actions": (episode.actions_TK, (T, K)),
        "rewards": (episode.rewards_T, (T,)),
    }
    if T == 0:
        return "it has no interval"
    for name, (array, shape) in shapes.items():
        if np.shape(array) != shape:
            return f"{name} has shape {np.shape(array)}, {T} intervals of {K} domains need {shape}"
        if fault := fault_of(name, array):
            return fault
    sums_T = np.asarray(episode.actions_TK, dtype=np.float64).sum(-1)
    off = np.flatnonzero(
        (np.abs(sums_T - 1) > _SIMPLEX_TOLERANCE)
        | (episode.actions_TK.min(-1) < -_SIMPLEX_TOLERANCE)
    )
    return (
        f"actions[{off[0]}] sums to {sums_T[off[0]]:.6g}: it must be a mixture"
        if len(off)
        else None
    )


class ReturnScale(NamedTuple):
    """Shapes and scales rewards: r̃_t = (r_t + γ Φ(t+1) − Φ(t)) / scale.

    Φ is the data's mean return to come at that fraction of the budget, one function per K. Shaping
    by a potential does not change the best policy (Ng, Harada and Russell 1999), as long as Φ is 0
    after the end. It removes from the targets what every run gains, which is most of the return
    early in a run. The critic then learns the differences between mixtures. `scale` is the standard
    deviation of the remaining returns, one number for all K.
    """

    potential: dict[int, FloatArray]
    scale: float

    @classmethod
    def of(cls, episodes: Sequence[Episode], discount: float) -> ReturnScale:
        """Compute potential and scale from `episodes`."""
        longest = _longest(episodes)
        sums = {K: np.zeros((2, _BINS + 1)) for K in longest}
        for episode in episodes:
            bins = np.rint(_progress(episode, longest) * _BINS).astype(int)
            np.add.at(sums[episode.domains][0], bins, returns(episode.rewards_T, discount))
            np.add.at(sums[episode.domains][1], bins, 1.0)
        potential = {K: _interpolated(total, count) for K, (total, count) in sums.items()}
        raw = cls(potential, 1.0)
        left = [
            returns(raw.shaped(episode, longest[episode.domains], discount), discount)
            for episode in episodes
        ]
        return cls(potential, max(float(np.concatenate(left).std()), 1e-8))

    def shaped(self, episode: Episode, longest: int, discount: float) -> FloatArray:
        """Return the shaped rewards (T,).

        `longest` is the number of intervals of a whole budget (see `_progress`).
        """
        grid = np.linspace(0, 1, _BINS + 1)
        phi = self.potential[episode.domains]
        phi_T = np.interp(_progress(episode, {episode.domains: longest}), grid, phi)
        # Φ is 0 after every end. After a stop, the critic's own value covers what follows.
        last = np.interp(episode.intervals / longest, grid, phi) if episode.stopped else 0.0
        after_T = np.append(phi_T[1:], last)
        shaped_T: FloatArray = (episode.rewards_T + discount * after_T - phi_T) / self.scale
        return shaped_T


def _longest(episodes: Sequence[Episode]) -> dict[int, int]:
    lengths: dict[int, int] = {}
    for episode in episodes:
        lengths[episode.domains] = max(lengths.get(episode.domains, 1), episode.intervals)
    return lengths


def _progress(episode: Episode, longest: dict[int, int]) -> FloatArray:
    """Return the fraction of the budget used before each interval, (T,).

    A run that ended early is treated as if its budget were that of the longest run.
    """
    early = episode.terminated or episode.stopped
    whole = longest[episode.domains] if early else episode.intervals
    return np.arange(episode.intervals) / max(whole, 1)


def _interpolated(total: FloatArray, count: FloatArray) -> FloatArray:
    known = count > 0
    grid = np.arange(len(total))
    found: FloatArray = np.interp(
        grid, [*grid[known], len(total)], [*(total[known] / count[known]), 0.0]
    )
    return found


class EpisodeSet:
    """Episodes grouped by K, shaped and padded once.

    `sample` draws batches of one K. A K is drawn in proportion to its number of episodes.
    """

    def __init__(
        self, episodes: Sequence[Episode], scale: ReturnScale, discount: float, budget_ends: bool
    ) -> None:
        self._groups: dict[int, EpisodeBatch] = {}
        longest = _longest(episodes)
        for K, most in longest.items():
            members = [episode for episode in episodes if episode.domains == K]
            shaped = [scale.shaped(episode, most, discount) for episode in members]
            self._groups[K] = _stacked(members, shaped, most, budget_ends)
        sizes = np.array([len(group.best_B) for group in self._groups.values()])
        self._shares = sizes / sizes.sum()

    def imitate(self, best: Sequence[bool], episodes: Sequence[Episode]) -> None:
        """Mark the episodes to imitate. `episodes` are those this set was built from."""
        for K, group in self._groups.items():
            flags = [
                float(flag)
                for flag, episode in zip(best, episodes, strict=True)
                if episode.domains == K
            ]
            self._groups[K] = group._replace(best_B=torch.tensor(flags))

    def sample(self, size: int, rng: np.random.Generator, best: bool = False) -> EpisodeBatch:
        """Draw `size` episodes of one K; with `best`, only episodes to imitate.

        They are drawn without replacement unless there are fewer than `size`.
        """
        group = list(self._groups.values())[int(rng.choice(len(self._groups), p=self._shares))]
        among = np.flatnonzero(group.best_B.numpy()) if best else np.arange(len(group.best_B))
        chosen = torch.from_numpy(rng.choice(among, size=size, replace=len(among) < size))
        return EpisodeBatch(*(part[chosen] for part in group))


def _stacked(
    members: Sequence[Episode], shaped: Sequence[FloatArray], longest: int, budget_ends: bool
) -> EpisodeBatch:
    def padded(arrays: Sequence[npt.NDArray[Any]], length: int) -> Tensor:
        out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), np.float32)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(out)

    goes_on = [np.ones(episode.intervals) for episode in members]
    for row, episode in zip(goes_on, members, strict=True):
        row[-1] = float(episode.stopped or not (budget_ends or episode.terminated))
    return EpisodeBatch(
        domains_BTKF=padded([episode.domains_TKF for episode in members], longest + 1),
        globals_BTG=padded([episode.globals_TG for episode in members], longest + 1),
        action_BTK=padded([episode.actions_TK for episode in members], longest),
        reward_BT=padded(shaped, longest),
        goes_on_BT=padded(goes_on, longest),
        valid_BT=padded([np.ones(episode.intervals) for episode in members], longest) > 0,
        best_B=torch.ones(len(members)),
    )
