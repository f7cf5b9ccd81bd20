"""Exports runs as a Minari dataset (minari.farama.org), one episode per run.

Other libraries can then use them for offline reinforcement learning. Observations are an encoding
of the trajectory so far, actions are mixtures, and rewards are any function of the trajectory. All
three are computed from the stored runs, so each reward gives another dataset.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import StoreError, pip_install
from cuvee.core.trajectory import Reward, Run, Trajectory, prefixes, rewards

Encoding = Callable[[Trajectory], npt.NDArray[Any]]
"""Return the vector (S,) that an agent observes at the end of a trajectory."""


def export_minari(
    runs: Sequence[Run],
    dataset_id: str,
    encode: Encoding,
    reward: Reward,
    folder: Path | None = None,
    **about: Any,
) -> Any:
    """Write the dataset `dataset_id`, such as "cuvee/regmix-v0", and return it.

    `folder` replaces Minari's default place. `about` is passed to Minari: `description`, `author`,
    `algorithm_name`, `code_permalink`. Raises `StoreError` if the runs do not mix the same domains,
    an interval has no reward, or Minari is not installed.
    """
    missing = [
        name
        for name in ("minari", "gymnasium", "h5py", "PIL")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise StoreError(
            f"Minari datasets need `{pip_install('rl')}`: {', '.join(missing)} cannot be imported"
        )
    import gymnasium
    import minari

    episodes = episodes_of(runs, encode, reward)
    (size,), (K,) = episodes[0].observations.shape[1:], episodes[0].actions.shape[1:]
    with _datasets_in(folder), warnings.catch_warnings():
        # Minari warns about every missing fact about the dataset.
        warnings.simplefilter("ignore", UserWarning)
        return minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64),
            action_space=gymnasium.spaces.Box(0.0, 1.0, (K,), np.float64),
            **about,
        )


def episodes_of(runs: Sequence[Run], encode: Encoding, reward: Reward) -> list[Any]:
    """Return `minari` episode buffers. The last interval of a run terminates its episode.

    Observations are (T + 1, S), actions (T, K), rewards (T,).
    """
    from minari.data_collector.episode_buffer import EpisodeBuffer

    if not runs:
        raise StoreError("there are no runs to export")
    names = runs[0].trajectory.names
    episodes = []
    for number, run in enumerate(runs):
        if run.trajectory.names != names:
            raise StoreError(
                f"run {run.id} mixes other domains than {runs[0].id}: export them as two datasets"
            )
        rewarded = rewards(run.trajectory, reward)
        if not len(run.trajectory) or not rewarded.present.all():
            missing = int(np.argmin(rewarded.present)) + 1 if len(run.trajectory) else 1
            raise StoreError(
                f"interval {missing} of run {run.id} has no reward: leave the run out, or use "
                "another reward"
            )
        ends = np.arange(len(run.trajectory)) == len(run.trajectory) - 1
        episodes.append(
            EpisodeBuffer(
                id=number,
                seed=run.seed,
                observations=np.stack(
                    [encode(so_far) for so_far in prefixes(run.trajectory)]
                ).astype(np.float64),
                actions=run.trajectory.weights_TK(),
                rewards=rewarded.values,
                terminations=ends,
                truncations=np.zeros_like(ends),
            )
        )
    return episodes


@contextmanager
def _datasets_in(folder: Path | None) -> Iterator[None]:
    """Set Minari's environment variable for its datasets folder inside the block."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    if folder is not None:
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before
        elif folder is not None:
            del os.environ["MINARI_DATASETS_PATH"]
