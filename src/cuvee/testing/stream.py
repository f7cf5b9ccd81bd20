"""`StreamSuite`: tests of the mixture stream. Subclass it with your own factory and run pytest:

class TestMyStream(StreamSuite):
    factory = MyStream                 # called like `MixtureStream`
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import (
    CheckpointError,
    CorpusError,
    CorpusExhausted,
    FingerprintMismatch,
    MixtureError,
)
from cuvee.core.mixture import Mixture
from cuvee.data.stream.stream import MixtureStream
from cuvee.testing.stream_measures import (
    Factory,
    Scenario,
    digest,
    make_corpus,
    measure_edges,
    measure_fidelity,
    measure_repeated_resume,
    measure_resume,
    measure_visits,
    measure_worlds,
    special_stops,
)

SIZES = {"web": 40_000, "code": 9_000, "books": 700, "letters": 33, "note": 9}
STEPS = 80


class StreamSuite:
    factory: Factory = MixtureStream

    @pytest.fixture(params=["quota", "multinomial"])
    def scenario(self, request: pytest.FixtureRequest) -> Scenario:
        return self.make(sampling=request.param)

    def make(self, changes: int = 12, floor: float = 0.0, **settings: Any) -> Scenario:
        scenario = Scenario.random(
            make_corpus(SIZES), STEPS, changes, log_seed=3, floor=floor, **settings
        )
        return Scenario(
            scenario.corpus, scenario.start, scenario.changes, scenario.settings, type(self).factory
        )

    def test_resumes_at_any_step(self, scenario: Scenario) -> None:
        stops = sorted({*special_stops(scenario, STEPS)[::5], 0, 1, 50})
        assert measure_resume(scenario, stops, STEPS).holds

    def test_resumes_at_any_step_with_caps(self) -> None:
        caps = {"books": 1.5, "letters": 1.0, "note": 2.0, "code": 3.0}
        scenario = self.make(floor=0.2, epoch_caps=caps)
        assert measure_resume(scenario, special_stops(scenario, STEPS)[::5], STEPS).holds

    def test_resumes_at_another_world_size(self, scenario: Scenario) -> None:
        pairs = [(1, 3), (8, 3), (3, 8), (16, 1), (2, 6), (6, 4), (4, 5), (7, 1), (5, 7)]
        valid, invalid = measure_worlds(scenario, pairs, 40, 70)
        assert str(valid) == "6/6"
        assert str(invalid) == "3/3"

    @pytest.mark.parametrize("step_between", [False, True])
    def test_resuming_again_and_again_changes_nothing(
        self, scenario: Scenario, step_between: bool
    ) -> None:
        assert measure_repeated_resume(scenario, 30, step_between) == (0, 0)

    def test_every_window_once_in_each_pass(self, scenario: Scenario) -> None:
        assert measure_visits(scenario, STEPS).holds

    def test_counts_stay_within_one_row_of_what_was_asked(self) -> None:
        assert measure_fidelity(self.make(), STEPS).overall < 1

    @pytest.mark.parametrize("world_size", [2, 4, 8, 16])
    def test_every_rank_gets_its_share_of_every_batch_to_within_one_row(
        self, world_size: int
    ) -> None:
        scenario = self.make()
        for batches in scenario.steps(scenario.ranks(world_size), 40):
            rows_RK = np.array(
                [np.bincount(batch.domain_B, minlength=len(SIZES)) for batch in batches]
            )
            assert (rows_RK.max(axis=0) - rows_RK.min(axis=0) <= 1).all()

    def test_odd_weights_are_drawn_or_refused_by_name(self) -> None:
        figures = measure_edges(60, seed=2, factory=type(self).factory)
        assert figures["unnamed_errors"] == figures["silent_acceptances"] == 0
        assert figures["refused"] > 0
        assert figures["drawn"] > 0

    def test_a_zero_weight_comes_back_where_it_stopped(self) -> None:
        with_, without = (
            Mixture.of({"web": 0.5, "code": 0.5}),
            Mixture.of({"web": 1.0, "code": 0.0}),
        )
        corpus = make_corpus({"web": 4000, "code": 4000})
        scenario = Scenario(corpus, with_, {5: without, 30: with_}, factory=type(self).factory)
        code = [
            [w for b in batches for w in b.origin.window_B[b.domain_B == 1].tolist()]
            for batches in scenario.steps(scenario.ranks(), 33)
        ]
        assert not any(code[5:30])
        drawn = [window for step in code for window in step]
        assert len(set(drawn)) == len(drawn) == 8 * 24

    def test_other_corpus_and_other_settings_are_refused(self) -> None:
        scenario = self.make()
        state = scenario.ranks()[0].state_dict()
        other = Scenario(
            make_corpus(SIZES, seed=1),
            scenario.start,
            settings=scenario.settings,
            factory=type(self).factory,
        )
        with pytest.raises(FingerprintMismatch) as refused:
            other.ranks(1, state)
        assert scenario.corpus.fingerprint in str(refused.value)
        assert other.corpus.fingerprint in str(refused.value)
        others: dict[str, Any] = {
            "seed": 8,
            "batch_size": 24,
            "sequence_length": 8,
            "sampling": "multinomial",
        }
        for name, value in others.items():
            changed = self.make(**{name: value})
            with pytest.raises(
                CheckpointError, match=f"{name}.*{scenario.settings.get(name, 'quota')}.*{value}"
            ):
                changed.ranks(1, state)

    def test_a_step_already_drawn_cannot_be_changed(self) -> None:
        scenario = self.make(changes=0)
        stream = scenario.ranks()[0]
        next(stream)
        with pytest.raises(MixtureError, match="step 0 was already drawn"):
            stream.set_mixture(Mixture.uniform(stream.names), at_step=0)

    def test_a_future_update_is_the_same_as_one_at_its_step(self) -> None:
        scenario = self.make()
        announced = scenario.ranks()[0]
        for step, mixture in scenario.changes.items():
            announced.set_mixture(mixture, at_step=step)
        found = [digest([next(announced)]) for _ in range(STEPS)]
        assert found == scenario.digests(scenario.ranks(), STEPS)

    def test_seek_goes_through_all_that_is_logged(self) -> None:
        scenario = self.make(floor=0.2, epoch_caps={"books": 1.5, "letters": 1.0})
        expected = scenario.digests(scenario.ranks(), STEPS)
        for step in (0, 1, 37, 60, STEPS - 1):
            stream = scenario.ranks()[0]
            for at, mixture in scenario.changes.items():
                stream.set_mixture(mixture, at_step=at)
            stream.seek(step)
            assert digest([next(stream)]) == expected[step]

    def test_caps_are_used_up_and_not_passed(self) -> None:
        corpus = make_corpus({"web": 1600, "code": 800, "note": 9})
        mixture = Mixture.of({"web": 0.5, "code": 0.25, "note": 0.25})
        settings = {
            "batch_size": 12,
            "sequence_length": 16,
            "seed": 7,
            "epoch_caps": {"web": 1.0, "code": 1.5, "note": 1.0},
        }
        scenario = Scenario(corpus, mixture, settings=settings, factory=type(self).factory)
        stream = scenario.ranks()[0]
        drawn = np.zeros(3, dtype=int)
        for _ in range((100 + 75 + 1) // 12):
            drawn += np.bincount(next(stream).domain_B, minlength=3)
        assert (drawn <= [100, 75, 1]).all()
        with pytest.raises(CorpusExhausted, match="raise the caps"):
            next(stream)
        assert (
            json.loads(json.dumps(scenario.ranks(1, stream.state_dict())[0].state_dict()))
            == stream.state_dict()
        )

    def test_weight_on_a_domain_without_tokens_is_refused(self) -> None:
        corpus = make_corpus({"web": 100, "void": 0})
        with pytest.raises(CorpusError, match="void has no tokens"):
            Scenario(corpus, Mixture.uniform(("web", "void")), factory=type(self).factory).ranks()
