"""The scoring sampler: conformance, determinism, and paths that are plausible but diverse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.task import build_task, task_of
from cuvee.loop import run
from cuvee.methods.baselines.random_walk import RandomWalkPolicy
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.history import heuristics
from cuvee.policies.history.scoring_sampler import CRITERIA, Character, ScoringSampler
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains

QUESTIONS = {"target": ["maths.jsonl"], "general": ["facts.jsonl", "more.jsonl"]}
FIELD = (
    Domain("web", 600),
    Domain("code", 200),
    Domain("papers", 200),
    Domain("maths", 100, "target"),
)


class TestScoringSampler(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return ScoringSampler(7, 3, evaluation=QUESTIONS)


class TestRandomWalk(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return RandomWalkPolicy(seed=5)


class Single(ScoringSampler):
    """Cares for one heuristic alone and always takes the best."""

    def __init__(self, criterion: str, number: int = 0) -> None:
        super().__init__(0, number)
        weights = tuple(float(name == criterion) for name in CRITERIA)
        self._character = Character(weights, temperature=1e-6, end=0.8, bend=1.0, taste=0.0)


def paths(count: int, intervals: int = 20, **options: Any) -> FloatArray:
    """(count, T, K)"""
    made = (
        run(ScriptedTrainer(FIELD, intervals), ScoringSampler(0, n, **options))
        for n in range(count)
    )
    return np.array([so_far.weights_TK() for so_far in made])


def target_share(so_far: Trajectory) -> FloatArray:
    return so_far.weights_TK()[:, -1]


def test_it_survives_files_and_tasks_whatever_the_order_of_keys(tmp_path: Path) -> None:
    sampler = ScoringSampler(
        1, 2, evaluation=QUESTIONS, share=0.05, weight=0.3, start={"web": 2}, candidates=40
    )
    expected = run(ScriptedTrainer(FIELD), sampler)
    save_policy(tmp_path / "policy", sampler)
    task = json.loads(json.dumps(task_of({}, sampler), sort_keys=False))
    task["policy"]["settings"]["evaluation"] = dict(
        reversed(task["policy"]["settings"]["evaluation"].items())
    )
    _, sent = build_task(task, 0, lambda proxy, seed: ScriptedTrainer(FIELD))
    for same in (load_policy(tmp_path / "policy"), sent):
        (probe,) = same.probes
        assert isinstance(probe, EvaluationSet)
        assert (probe.fields, probe.share) == (("general", "target"), 0.05), (
            "a database may order keys as it likes"
        )
        assert run(ScriptedTrainer(FIELD), same) == expected


def test_without_questions_nothing_is_evaluated() -> None:
    assert ScoringSampler().probes == ()


def test_it_starts_near_the_source_field_or_at_the_given_start() -> None:
    first = run(ScriptedTrainer(FIELD), Single("smoothness")).mixtures[0]
    assert first == Mixture.normalise(first.names, [0.6, 0.2, 0.2, 0.0]), (
        "no smoother step than going back to the source"
    )
    walks = [number for number in range(60) if not ScoringSampler(0, number).character.straight]
    assert 15 <= len(walks) <= 45
    given = paths(60, 1, start={"code": 1.0, "maths": 3.0})[walks, 0]
    assert np.median(np.abs(given - [0.0, 0.25, 0.0, 0.75]), axis=0).max() < 0.25
    assert np.median(paths(60, 1)[walks, 0, -1]) < 0.1


def test_each_heuristic_is_heeded_when_it_alone_counts() -> None:
    trainer = ScriptedTrainer(FIELD, intervals=20)
    smooth = run(ScriptedTrainer(FIELD, 20), Single("smoothness")).weights_TK()
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.02
    rising = target_share(run(trainer, Single("target progress")))
    assert rising == pytest.approx(0.8 * np.arange(20) / 20, abs=0.03)
    covering = run(ScriptedTrainer(FIELD, 20), Single("source coverage")).weights_TK()
    assert -heuristics.source_coverage(covering, np.array([0.6, 0.2, 0.2, 0.0])).mean() < 0.01
    balanced = run(ScriptedTrainer(FIELD, 20), Single("balance")).weights_TK()
    assert heuristics.balance(balanced[5:]).mean() > 0.98 * np.log(4)


def test_some_trajectories_hold_one_mixture_of_their_own() -> None:
    held, shares = [], []
    for number in range(60):
        sampler = ScoringSampler(0, number)
        character = sampler.character
        if not character.straight or character.begin != character.end:
            continue
        held.append(number)
        so_far = run(ScriptedTrainer(FIELD, 5), sampler)
        assert np.ptp(so_far.weights_TK(), axis=0).max() == pytest.approx(0)
        shares.append(target_share(so_far)[0])
        assert shares[-1] == pytest.approx(character.end)
    assert 6 <= len(held) <= 24
    assert min(shares) < 0.35 < 0.7 < max(shares)


def test_some_trajectories_go_straight_from_one_target_share_to_another() -> None:
    moves = []
    for number in range(60):
        sampler = ScoringSampler(0, number)
        character = sampler.character
        if not character.straight or character.begin == character.end:
            continue
        weights_TK = run(ScriptedTrainer(FIELD, 5), sampler).weights_TK()
        assert weights_TK[0, -1] == pytest.approx(character.begin)
        assert np.diff(weights_TK[:, -1]) == pytest.approx(
            np.full(4, (character.end - character.begin) / 5)
        )
        source_TK = weights_TK[:, :-1] / weights_TK[:, :-1].sum(axis=1, keepdims=True)
        assert np.ptp(source_TK, axis=0).max() == pytest.approx(0), (
            "only the share of the field moves"
        )
        moves.append(character.end - character.begin)
    assert 6 <= len(moves) <= 24
    assert min(moves) < -0.3 < 0.3 < max(moves), "down as well as up"


def test_the_direction_follows_the_feedback() -> None:
    def after(change: float) -> float:
        """Cosine between the next move and the last, which was towards the target, after this
        change of the feedback."""
        trainer = ScriptedTrainer(FIELD)
        so_far = Trajectory.start(trainer.start(()))
        mixture = Mixture.of({"web": 0.45, "code": 0.15, "papers": 0.15, "maths": 0.25})
        after = dataclasses.replace(
            trainer.advance(mixture),
            probes={
                "evaluation": Measured.all(so_far.last.probes["evaluation"].values * (1 - change))
            },
        )
        so_far = so_far.append(mixture, after)
        step = Single("feedback direction").mixture(so_far).weights_K - mixture.weights_K
        move = mixture.weights_K - [0.6, 0.2, 0.2, 0.0]
        return float(step @ move / np.linalg.norm(step) / np.linalg.norm(move))

    assert after(+0.1) > 0.99
    assert after(-0.1) < -0.99


def test_it_says_how_it_came_by_a_mixture() -> None:
    sampler, trainer = ScoringSampler(0, 3), ScriptedTrainer(FIELD)
    so_far = Trajectory.start(trainer.start(()))
    mixture = sampler.mixture(so_far)
    said = sampler.learn(so_far.append(mixture, trainer.advance(mixture)))
    assert tuple(said["weights"]) == tuple(said["heuristics"]) == CRITERIA
    assert sum(said["weights"].values()) == pytest.approx(1.0)
    assert said["temperature"] == sampler.character.temperature > 0
    assert said["proposal"] in heuristics.PROPOSALS
    assert said["score"] <= said["best_score"]
    start = np.array([0.6, 0.2, 0.2, 0.0])
    assert said["heuristics"]["smoothness"] == pytest.approx(
        -0.5 * np.abs(mixture.weights_K - start).sum()
    )


def test_trajectories_differ_and_numbers_and_seeds_do_not_collide() -> None:
    drawn = {ScoringSampler(seed, number).character for seed in range(8) for number in range(8)}
    assert len(drawn) == 64
    characters = [Character.draw(np.random.default_rng(n)) for n in range(300)]
    assert {CRITERIA[int(np.argmax(character.weights))] for character in characters} == set(
        CRITERIA
    )
    assert min(c.end for c in characters) < 0.15 < 0.9 < max(c.end for c in characters)


def test_a_trajectory_prefers_the_same_domains_all_along() -> None:
    domains = (*(Domain(f"s{k}", 100) for k in range(8)), Domain("maths", 100, "target"))
    means = []
    for number in range(40):
        weights_TK = run(ScriptedTrainer(domains, 20), ScoringSampler(0, number)).weights_TK()[
            :, :-1
        ]
        means.append((weights_TK / weights_TK.sum(axis=1, keepdims=True)).mean(axis=0))
    distances = [
        0.5 * np.abs(one - other).sum() for one in means for other in means if one is not other
    ]
    assert np.mean(distances) > 0.2, "means over whole runs differ, and not the steps alone"


def test_a_collection_covers_fields_by_tokens_and_flat_ones() -> None:
    domains = (Domain("large", 9_000), Domain("small", 1_000), Domain("maths", 100, "target"))
    shares = []
    for number in range(60):
        weights_TK = run(ScriptedTrainer(domains, 20), ScoringSampler(0, number)).weights_TK()[
            :, :2
        ]
        shares.append(float((weights_TK[:, 1] / weights_TK.sum(axis=1)).mean()))
    assert np.quantile(shares, 0.1) < 0.2 < 0.4 < np.quantile(shares, 0.9)


def test_a_collection_covers_paths_from_little_target_to_much() -> None:
    shares = paths(50)[:, :, -1]
    straight = np.array([ScoringSampler(0, number).character.straight for number in range(50)])
    assert np.quantile(shares[~straight, 0], 0.5) < 0.1, (
        "walks start where the base model was trained"
    )
    assert np.quantile(shares[:, 0], 0.1) < 0.1 < 0.6 < np.quantile(shares[:, 0], 0.9), (
        "a collection begins anywhere"
    )
    assert np.quantile(shares[:, -1], 0.9) - np.quantile(shares[:, -1], 0.1) > 0.4
    steps = np.abs(np.diff(shares, axis=1))
    assert np.quantile(steps, 0.5) < 0.1 < np.quantile(steps, 0.95), (
        "most steps are small, some are not"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScoringSampler(candidates=3), "4 or more"),
        (lambda: ScoringSampler(evaluation={"general": ["a.jsonl"]}), "general and target"),
        (lambda: ScoringSampler(weight=2.0), "between 0 and 1"),
        (lambda: run(ScriptedTrainer(FIELD[:3]), ScoringSampler()), "--target"),
        (
            lambda: run(ScriptedTrainer(FIELD[3:]), ScoringSampler()),
            "at least one source domain and one target domain",
        ),
        (lambda: run(ScriptedTrainer(FIELD), ScoringSampler(start={"latin": 1.0})), "latin"),
        (lambda: RandomWalkPolicy(step=0.0), "above 0"),
    ],
)
def test_mistakes_are_named(make: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        make()


def walks(count: int, domains: Sequence[Domain], step: float) -> FloatArray:
    made = (
        run(ScriptedTrainer(tuple(domains), 10), RandomWalkPolicy(seed, step))
        for seed in range(count)
    )
    return np.array([so_far.weights_TK() for so_far in made])


def test_a_random_walk_starts_natural_and_goes_as_far_as_its_steps_are_long() -> None:
    found = walks(60, FIELD, 0.3)
    assert found[:, 0] == pytest.approx(np.tile([6, 2, 2, 1], (60, 1)) / 11)
    ratios = np.log(found[:, :, 0] / found[:, :, 1])
    assert np.diff(ratios, axis=1).std() == pytest.approx(0.3 * np.sqrt(2), rel=0.1)
    assert ratios[:, -1].std() == pytest.approx(0.3 * np.sqrt(2) * np.sqrt(9), rel=0.3), (
        "steps are independent"
    )


def test_a_random_walk_can_raise_a_domain_from_weight_zero() -> None:
    domains, trainer = some_domains(3), ScriptedTrainer(some_domains(3))
    so_far = Trajectory.start(trainer.start(()))
    mixture = Mixture.of({domain.name: float(k == 0) for k, domain in enumerate(domains)})
    assert RandomWalkPolicy().mixture(so_far.append(mixture, trainer.advance(mixture)))["d1"] > 0
