"""Faults planted in a stream. The measurement with the same number must detect each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from cuvee.core.arrays import IntArray
from cuvee.core.mixture import Mixture
from cuvee.data.stream.plan import Planner
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream
from cuvee.testing.stream_measures import (
    Scenario,
    golden_order,
    measure_edges,
    measure_fidelity,
    measure_repeated_resume,
    measure_resume,
    measure_visits,
    measure_worlds,
)

State = dict[str, Any]


class Rewinds(MixtureStream):
    """Returns to the last change of mixture at every `iter`."""

    def __iter__(self) -> MixtureStream:
        state = self.state_dict()
        state["schedule"]["step"] = state["schedule"]["since"]
        self.load_state_dict(state)
        return self


class Late(MixtureStream):
    """Applies every update except the first one step late."""

    def set_mixture(
        self, mixture: Mixture | Mapping[str, float], at_step: int | None = None
    ) -> MixtureUpdate:
        step = self.position if at_step is None else at_step
        return super().set_mixture(mixture, step + (self.last_version >= 0))


def drop_a_counter(state: State) -> State:
    state["schedule"]["drawn"][int(np.argmax(state["schedule"]["drawn"]))] = 0
    return state


def count_by_rank(state: State) -> State:
    state["schedule"]["drawn"] = [
        drawn // state["_worlds"][0] for drawn in state["schedule"]["drawn"]
    ]
    return state


def _shuffle_once() -> Any:
    keys = "cuvee.data.stream.plan.epoch_keys"
    from cuvee.data.stream.permutation import epoch_keys

    return mock.patch(keys, lambda key_N, epoch_N: epoch_keys(key_N, np.zeros_like(epoch_N)))


def _step_over_a_boundary() -> Any:
    right = Planner._places

    def wrong(
        self: Planner, domain_N: IntArray, draw_N: IntArray, before_K: IntArray
    ) -> tuple[IntArray, IntArray]:
        return right(self, domain_N, draw_N + (draw_N >= self._size_K[domain_N]), before_K)

    return mock.patch.object(Planner, "_places", wrong)


class _EverythingFinite:
    """numpy, except that everything counts as finite."""

    def __getattr__(self, name: str) -> Any:
        return (lambda x: np.ones_like(x, dtype=bool)) if name == "isfinite" else getattr(np, name)


def _another_shuffle() -> Any:
    def affine(index_N: IntArray, size_N: IntArray, *radices_and_keys: Any) -> IntArray:
        offset_N = (radices_and_keys[-1] % size_N.astype(np.uint64)).astype(np.int64)
        shifted_N: IntArray = (index_N + offset_N) % size_N
        return shifted_N

    return mock.patch("cuvee.data.stream.plan.permute", affine)


def planted(
    scenario: Scenario, end: int, golden: str, golden_samples: int
) -> dict[str, Callable[[], bool]]:
    """Return faults by name. Each call plants the fault, measures, and returns if it was found."""
    stops = sorted({end // 2, *(step + 1 for step in scenario.changes if step + 1 < end)})

    def shuffle_once() -> bool:
        with _shuffle_once():
            return not measure_visits(scenario, end).holds

    def off_by_one() -> bool:
        with _step_over_a_boundary():
            return not measure_visits(scenario, end).holds

    def no_finite_check() -> bool:
        with mock.patch("cuvee.core.mixture.np", _EverythingFinite()):
            figures = measure_edges(40, seed=1)
        return figures["unnamed_errors"] + figures["silent_acceptances"] > 0

    def swapped_shuffle() -> bool:
        with _another_shuffle():
            return golden_order(golden_samples) != golden

    return {
        "1 a counter dropped from the state": lambda: (
            not measure_resume(scenario, stops, end, drop_a_counter).holds
        ),
        "2 counters by rank": lambda: (
            not measure_worlds(scenario, [(1, 1), (4, 2)], end // 2, end, count_by_rank)[0].holds
        ),
        "3 iterating rewinds": lambda: (
            measure_repeated_resume(replace(scenario, factory=Rewinds), 20, True)[0] > 0
        ),
        "4 every pass in one order": shuffle_once,
        "4 off by one at the end of a pass": off_by_one,
        "5 updates one step late": lambda: (
            measure_fidelity(replace(scenario, factory=Late), end).overall > 1
        ),
        "7 no check for finite weights": no_finite_check,
        "8 another shuffle": swapped_shuffle,
    }
