"""Views of a trajectory give back what it holds, under any reward."""

from cuvee.core.trajectory import Trajectory, prefixes, returns, rewards
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.testing.toy import ToyTrainer

SO_FAR = run(ToyTrainer(6), Exp3())


def gain(so_far: Trajectory) -> float | None:
    """The fall of the mean validation loss; unknown for the third interval."""
    before, after = (signals.probes["valid_loss"].values.mean() for signals in so_far.signals[-2:])
    return None if len(so_far) == 3 else float(before - after)


def test_prefixes_are_the_trajectory_at_each_timestep() -> None:
    found = list(prefixes(SO_FAR))
    assert [len(prefix) for prefix in found] == list(range(7))
    assert found[-1] == SO_FAR
    assert found[2] == Trajectory(SO_FAR.signals[:3], SO_FAR.mixtures[:2])


def test_rewards_are_absent_where_they_are_unknown() -> None:
    found = rewards(SO_FAR, gain)
    assert found.present.tolist() == [True, True, False, True, True, True]
    assert found.values[0] == gain(Trajectory(SO_FAR.signals[:2], SO_FAR.mixtures[:1]))
    assert rewards(Trajectory.start(SO_FAR.signals[0]), gain).shape == (0,)


def test_returns_satisfy_their_recursion() -> None:
    assert returns([1.0, 2.0, 4.0], 0.5).tolist() == [3.0, 4.0, 4.0]
    assert returns([1.0, 2.0, 4.0], 0.5, final=8.0).tolist() == [4.0, 6.0, 8.0]
    assert returns([]).tolist() == []
