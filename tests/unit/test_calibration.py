"""Which worlds logged runs look like, whatever their domains are called and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.loop import run
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.calibration import calibrate
from cuvee.simulation.continual import WorldParams, continual
from cuvee.simulation.simulator import Simulator


class Asked:
    name = "evaluation"


def runs_of(params: WorldParams, count: int = 10, told: bool = True) -> list[Run]:
    laws, domains = continual(4, 1, 3, 8, params)
    found = []
    for number in range(count):
        sampler = ScoringSampler(0, number)
        sampler.probes = (Asked(),) if told else ()
        trajectory = run(Simulator(laws, seed=number, noise=0.005, domains=domains), sampler)
        found.append(Run(f"run-{number}", number, {}, trajectory, Cost()))
    return found


def turned(found: Run) -> Run:
    """The same run with its domains in another order."""

    def signals(one: Signals) -> Signals:
        loss = replace(one.loss, values=one.loss.values[::-1], present=one.loss.present[::-1])
        return replace(one, domains=one.domains[::-1], tokens_K=one.tokens_K[::-1], loss=loss)

    trajectory = Trajectory.start(signals(found.trajectory.signals[0]))
    for _, mixture, after in found.trajectory:
        trajectory = trajectory.append(
            Mixture(mixture.names[::-1], mixture.weights_K[::-1]), signals(after)
        )
    return replace(found, trajectory=trajectory)


def test_kept_are_the_natures_whose_target_is_as_new_as_that_of_the_runs() -> None:
    newness = []
    for begun in (0.003, 0.3):
        kept = calibrate(runs_of(WorldParams(begun=begun * WorldParams.known)), draws=300, keep=15)
        assert [one.distance for one in kept] == sorted(one.distance for one in kept)
        newness.append(np.mean([np.log(one.params.begun / one.params.known) for one in kept]))
    assert newness[0] < newness[1] - np.log(3)


def test_it_is_repeatable_and_the_order_of_domains_means_nothing() -> None:
    runs = runs_of(WorldParams())
    kept = calibrate(runs, draws=30, keep=5)
    assert kept == calibrate(runs, draws=30, keep=5)
    again = calibrate([turned(one) for one in runs], draws=30, keep=5)
    assert [one.params for one in again] == [one.params for one in kept]
    assert [one.distance for one in again] == pytest.approx([one.distance for one in kept])


def test_natures_are_kept_for_each_domain_space() -> None:
    new, known = (runs_of(WorldParams(begun=begun * WorldParams.known)) for begun in (0.003, 0.3))
    renamed = [turned(one) for one in known]  # another order of domains is another space
    alone = [calibrate(one, draws=60, keep=5) for one in (new, renamed)]
    assert calibrate([*new, *renamed], draws=60, keep=5) == [*alone[0], *alone[1]]
    assert alone[0] != alone[1]


def test_runs_that_all_did_the_same_are_refused() -> None:
    with pytest.raises(
        PolicyError,
        match=r"the same at the end of all 8 runs like run-0, so .* under different mixtures",
    ):
        calibrate(
            [
                replace(runs_of(WorldParams(), count=1)[0], id=f"run-{number}")
                for number in range(8)
            ],
            draws=2,
            keep=1,
        )


def test_runs_that_were_asked_nothing_are_refused() -> None:
    for runs in (runs_of(WorldParams(), told=False), runs_of(WorldParams(), count=7)):
        with pytest.raises(
            PolicyError, match="8 complete runs with feedback for every interval: run more proxies"
        ):
            calibrate(runs, draws=2, keep=1)
