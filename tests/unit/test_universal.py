"""Learning in simulated worlds: the unrolled computation equals a real run, and gradients flow
through it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cuvee.agents.base import Observation
from cuvee.agents.history import HistoryActor, HistoryArchitecture
from cuvee.agents.learning import seeded
from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import prefixes
from cuvee.learning.universal import (
    MeasurementNoise,
    UniversalSettings,
    Worlds,
    constant_gain,
    draw_worlds,
    learn_universal,
    rollout,
)
from cuvee.loop import run
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.encoder import HistoryEncoder
from cuvee.policies.history.features import Timestep
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.simulation.continual import WorldParams, continual, feedback_gain
from cuvee.simulation.simulator import ScalingLaws, Simulator

TINY = UniversalSettings(
    updates=3, critic_updates=2, timesteps=60, sources=4, targets=2, shortest=3, longest=6
)


class Asked:
    name = "evaluation"


def wild(seed: int) -> HistoryPolicy:
    """An actor that does something else at each moment: its output layer is far from zero."""
    policy = HistoryPolicy(seed=seed)
    with torch.no_grad():
        policy.actor.head.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed))
    return policy


def test_step_by_step_the_network_gives_the_same_output_as_at_once() -> None:
    actor = seeded(
        1, lambda: HistoryActor(9, 10, HistoryArchitecture(hidden=16, layers=2, heads=2))
    )
    domains, globals_, past, said = torch.randn(3, 7, 5, 9), torch.randn(3, 7, 10), None, []
    for t in range(7):
        logits, past = actor.unroll(past, domains[:, t], globals_[:, t])
        said.append(logits)
    assert torch.allclose(torch.stack(said, 1), actor(domains, globals_), atol=1e-5)


@pytest.mark.parametrize(
    ("sources", "targets", "told"), [(1, 1, True), (4, 2, True), (9, 3, False)]
)
def test_a_rollout_is_the_run_that_the_policy_would_steer(
    sources: int, targets: int, told: bool
) -> None:
    seed, intervals = 5, 9
    laws, domains = continual(sources, targets, seed, intervals, WorldParams.draw(seed))
    policy, noise = wild(3), MeasurementNoise.perfect(1)
    noise.has_feedback_B1.fill_(float(told))
    with torch.no_grad():
        played = rollout(policy.actor, Worlds([(laws, domains)]), noise, torch.Generator())
    policy.probes = (Asked(),) if told else ()
    steered = run(Simulator(laws, seed=0, noise=0.0, domains=domains), policy)
    weights_TK = torch.from_numpy(steered.weights_TK())
    assert torch.allclose(played.weights_BTK[0].double(), weights_TK, atol=1e-4)
    assert float(played.feedback_BT[0, -1]) == pytest.approx(
        feedback_gain(laws, weights_TK), abs=1e-4
    )
    if told:
        assert played.feedback_BT[0].tolist() == pytest.approx(
            Feedback()(steered).values.tolist(), abs=1e-4
        )


def test_worlds_differ_in_kind_and_the_gain_of_a_constant_mixture_is_right() -> None:
    kinds = [WorldParams.draw(seed) for seed in range(20)]
    assert len(set(kinds)) == 20
    assert all(0 <= kind.forgetting[0] < kind.forgetting[1] < 1 for kind in kinds)
    worlds = [continual(3, 2, seed, 8, kind) for seed, kind in enumerate(kinds)]
    together = Worlds(worlds)
    gain_B = constant_gain(together, together.reference_BK)
    for (laws, _), reference_K, gain in zip(
        worlds, together.reference_BK.double(), gain_B.tolist(), strict=True
    ):
        assert gain == pytest.approx(feedback_gain(laws, reference_K.expand(8, -1)), abs=1e-4)


@pytest.mark.training
def test_learning_is_repeatable_and_ends_above_the_reference_mixture() -> None:
    first, second = (learn_universal(TINY, seed=4).state_dict() for _ in range(2))
    assert all(
        (first[net][name] == second[net][name]).all() for net in first for name in first[net]
    )
    said: list[float] = []
    settings = UniversalSettings(
        updates=60, critic_updates=0, timesteps=600, sources=6, targets=3, shortest=8, longest=12
    )
    learn_universal(settings, 0, lambda _, figures: said.append(figures["above_reference"]))
    assert sum(said[-20:]) > sum(said[:20])


@pytest.mark.training
def test_what_it_pays_for_straying_keeps_it_near_the_reference() -> None:
    def divergence(kl_coef: float) -> float:
        found: list[float] = []
        settings = replace(
            TINY,
            updates=40,
            critic_updates=0,
            timesteps=300,
            shortest=6,
            longest=8,
            kl_coef=kl_coef,
        )
        learn_universal(settings, 0, lambda _, figures: found.append(figures["divergence"]))
        return sum(found[-10:])

    assert divergence(3.0) < 0.5 * divergence(0.0)


def test_a_batch_is_of_one_size_and_no_larger_than_asked() -> None:
    for seed in range(10):
        worlds = draw_worlds(UniversalSettings(), np.random.default_rng(seed))
        assert 4 <= len(worlds.start_BK) <= 32
        assert 8 <= worlds.intervals <= 80
        assert worlds.target_BK.sum(-1).min() >= 1


def test_some_worlds_are_of_the_natures_that_are_given() -> None:
    settings = UniversalSettings(real=1.0, pairs=0.0)
    given = WorldParams(forgetting=(0.5, 0.5))
    worlds = draw_worlds(settings, np.random.default_rng(0), [given])
    forgotten = 1 - (1 - worlds.laws.forgetting_K.double()) ** worlds.intervals
    assert torch.allclose(forgotten, torch.full_like(forgotten, 0.5), atol=1e-4)


def test_forgetting_may_follow_the_rate_more_closely_than_learning() -> None:
    laws, _ = continual(2, 1, 0, 10, WorldParams(final_lr_ratio=0.1, learning=0.5, fading=3.0))
    assert sum(laws.fade_T) == pytest.approx(10)
    assert laws.fade_T[0] / laws.fade_T[-1] == pytest.approx(
        (laws.pace_T[0] / laws.pace_T[-1]) ** 6
    )
    never_K, late = torch.zeros(3).double(), laws.start_K
    for number in range(5, 10):
        late = laws.step(late, never_K, number)
    early = laws.start_K
    for number in range(5):
        early = laws.step(early, never_K, number)
    assert (early < late).all()


def test_a_rate_that_falls_moves_less_at_the_end() -> None:
    kind = WorldParams(final_lr_ratio=0.1)
    laws, _ = continual(2, 1, 0, 10, kind)
    assert sum(laws.pace_T) == pytest.approx(10)
    assert laws.pace_T[0] > 5 * laws.pace_T[-1]
    with pytest.raises(ConfigError, match="pace_T has 3 numbers, 10 intervals"):
        replace(laws, pace_T=(1.0, 1.0, 1.0))
    early = torch.eye(3).double()[[2] * 5 + [0] * 5]
    constant, _ = continual(2, 1, 0, 10)

    def worse_if_read_early(one: ScalingLaws) -> float:
        return float((one.losses(early)[-1] - one.losses(early.flip(0))[-1])[2])

    assert worse_if_read_early(laws) < worse_if_read_early(constant), (
        "what is read last counts for less"
    )


def test_the_features_of_a_batch_are_exactly_those_that_an_encoder_observes() -> None:
    """One run is encoded timestep by timestep; the same facts as a batch give the same bits."""
    laws, domains = continual(3, 2, 0, 6, WorldParams.draw(0))
    policy = wild(3)
    policy.probes = (Asked(),)
    steered = run(Simulator(laws, seed=0, domains=domains), policy)
    encoder, timesteps, observed = HistoryEncoder(Feedback()), list[Timestep](), list[Observation]()
    original = Timestep.domain_features

    def keep(timestep: Timestep) -> torch.Tensor:
        timesteps.append(timestep)
        return original(timestep)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Timestep, "domain_features", keep)
        observed += [encoder.observe(so_far) for so_far in prefixes(steered)]
    batch = Timestep(
        **{
            part.name: torch.stack([getattr(one, part.name) for one in timesteps])
            for part in fields(Timestep)
        }
    )
    domains_TKF, globals_TG = batch.domain_features().float(), batch.run_features().float()
    assert domains_TKF.shape == (7, 5, 9)
    assert (domains_TKF.numpy() == np.stack([one.domains_KF for one in observed])).all()
    assert (globals_TG.numpy() == np.stack([one.globals_G for one in observed])).all()
