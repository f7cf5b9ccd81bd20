"""Logged runs, prepared for learning: by domain space, held out, as episodes, and imagined ones.

Runs are compared within a domain space: the same domains and equally many intervals. A run may have
ended early. What it measured is data:

- *Stopped* (out of memory, a lost machine): what would have followed is not known. It is absent from
  the fits, and Q-learning bootstraps from the last timestep.
- *Diverged* (a loss or gradient was not finite): this is evidence against its mixtures. In the fits,
  the run goes on with its last mixture, and its questions score as in the space's worst run, or as
  they did at last if that is worse. In Q-learning the end is terminal: the run forgoes what others
  went on to gain. It is not imitated.

Without such runs a fit would see the lucky half of a dangerous mixture only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.core.signals import Measured
from cuvee.core.trajectory import Run, Trajectory
from cuvee.learning.episodes import Episode
from cuvee.loop import run as run_loop
from cuvee.policies.feedback import FIELDS, Feedback
from cuvee.policies.history.encoder import encode_trajectory
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.dynamics_model import DynamicsModel, Regression, as_logged, domain_change

_FEWEST_IMAGINED = 4


@dataclass(frozen=True)
class Space:
    """The runs of one domain space and their trajectories, all with T intervals.

    The trajectory of a run that ended early is continued to T (`_continued`).
    """

    runs: Sequence[Run]
    trajectories: Sequence[Trajectory]


def finished(run: Run) -> bool:
    """Return whether the run reached the end of its budget."""
    return run.trajectory.last.progress >= 1.0


def ended(trajectory: Trajectory) -> bool:
    """Return whether the last timestep of a trajectory was evaluated, or is known to be bad."""
    return bool(trajectory.last.probes["evaluation"].present.all())


def spaces_of(runs: Sequence[Run], feedback: Feedback) -> list[Space]:
    """Divide the runs whose domains did not change into domain spaces that have a finished run.

    A run that ended early belongs to the space of its domains with the fewest intervals that are
    not fewer than its own. Without such a space it is left out.
    """
    kept = [run for run in runs if domain_change(run.trajectory) is None]
    lengths = list(dict.fromkeys(_key(run.trajectory) for run in kept if finished(run)))
    members: dict[tuple[tuple[str, ...], int], list[Run]] = {key: [] for key in lengths}
    for run in kept:
        names, intervals = _key(run.trajectory)
        fitting = [T for other, T in lengths if other == names and intervals <= T]
        if fitting:
            members[names, intervals if finished(run) else min(fitting)].append(run)
    return [_space(found, feedback) for found in members.values()]


def _space(runs: Sequence[Run], feedback: Feedback) -> Space:
    whole = [run.trajectory for run in runs if finished(run)]
    worst = min(whole, key=lambda one: float(feedback(one).values[-1]))
    return Space(
        runs,
        [run.trajectory if finished(run) else _continued(run, worst, feedback) for run in runs],
    )


def _continued(run: Run, worst: Trajectory, feedback: Feedback) -> Trajectory:
    """Return the run, continued with its last mixture to the length of `worst`.

    No loss is measured. The questions are not answered if it was stopped. If it diverged, they have
    changed as much as at the end of `worst`, or as in the run at last if that is worse.
    """
    so_far = run.trajectory
    mixture = so_far.last_mixture
    assert mixture is not None, "a logged run has an interval"
    lowest = min(so_far, worst, key=lambda one: float(feedback(one).values[-1]))
    asked = Measured.absent(len(FIELDS))
    if run.diverged:
        base, first, last = (
            one.probes["evaluation"].values
            for one in (so_far.signals[0], lowest.signals[0], lowest.last)
        )
        asked = Measured.all(base + np.abs(base) * (last - first) / np.abs(first))
    for then in worst.signals[len(so_far) + 1 :]:
        unknown = Measured.absent(len(then.names))
        after = replace(then, loss=unknown, probes={"evaluation": asked})
        so_far = so_far.append(mixture, after)
    return so_far


def held_out(runs: Sequence[Run], share: float, seed: int) -> set[str]:
    """Return the ids of the runs to hold out: a fraction of each space, drawn with `seed`.

    Only finished runs are held out. None are in a space that is too small for two held-out and two
    other runs.
    """
    rng = np.random.default_rng([seed, 7])
    held = set()
    for space in dict.fromkeys(_key(run.trajectory) for run in runs):
        members = [run for run in runs if _key(run.trajectory) == space and _whole(run)]
        count = round(share * len(members))
        if count >= 2 and len(members) - count >= 2:
            held |= {members[int(index)].id for index in rng.permutation(len(members))[:count]}
    return held


def as_episode(trajectory: Trajectory, feedback: Feedback, diverged: bool = False) -> Episode:
    """Return a run as an episode. The reward of an interval is the increase of the feedback."""
    seen = encode_trajectory(trajectory, feedback)
    e_T1 = feedback(trajectory).values
    kept = len(seen.globals_G)
    weights_TK = trajectory.weights_TK()[len(trajectory) + 1 - kept :]
    return Episode(
        domains_TKF=seen.domains_KF,
        globals_TG=seen.globals_G,
        actions_TK=weights_TK.astype(np.float32),
        rewards_T=np.diff(e_T1)[len(trajectory) + 1 - kept :].astype(np.float32),
        terminated=diverged,
        stopped=trajectory.last.progress < 1.0 and not diverged,
    )


def imagine(runs: Sequence[Run], count: int, weight: float, seed: int) -> list[Trajectory]:
    """Simulate `count` trajectories of the scoring sampler in models of the logged runs.

    The model is a `DynamicsModel`. Each trajectory uses its own regression, fitted to runs drawn
    with replacement, so trajectories differ where the data are uncertain. Domain spaces get
    trajectories in proportion to their runs. Spaces with fewer than 4 finished runs get none.
    """
    rng = np.random.default_rng([seed, 11])
    found = []
    for space in dict.fromkeys(_key(run.trajectory) for run in runs):
        members = [run.trajectory for run in runs if _key(run.trajectory) == space and _whole(run)]
        if len(members) < _FEWEST_IMAGINED:
            continue
        regression = Regression([as_logged(trajectory) for trajectory in members])
        for number in range(round(count * len(members) / len(runs))):
            trainer = DynamicsModel(
                regression.redrawn(rng), members[int(rng.integers(len(members)))]
            )
            found.append(
                run_loop(trainer, ScoringSampler(int(rng.integers(2**31)), number, weight=weight))
            )
    return found


def _key(trajectory: Trajectory) -> tuple[tuple[str, ...], int]:
    return trajectory.names, len(trajectory)


def _whole(run: Run) -> bool:
    return finished(run) and domain_change(run.trajectory) is None
