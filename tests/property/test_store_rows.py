"""A stored row keeps every measurement exactly, and any row content is read or refused."""

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuvee.core.domain import Domain
from cuvee.core.errors import StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.fleet.store.database import to_json
from cuvee.fleet.store.rows import Interval, Space, figures_json, run_key

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def measured(draw: st.DrawFn, shape: tuple[int, ...]) -> Measured:
    return Measured(
        draw(hnp.arrays(np.float64, shape, elements=finite)), draw(hnp.arrays(np.bool_, shape))
    )


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    names = draw(
        st.lists(
            st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
            min_size=1,
            max_size=5,
            unique=True,
        )
    )
    K = len(names)
    domains = tuple(
        Domain(name, draw(st.integers(0, 2**62)), scores={"mtld": draw(finite)}) for name in names
    )
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4)
    probes = {
        name: draw(measured(draw(shapes)))
        for name in draw(st.lists(st.text(), max_size=3, unique=True))
    }
    tokens_K = draw(hnp.arrays(np.int64, K, elements=st.integers(0, 2**62)))
    progress = draw(st.floats(0.0, 1.0))
    signals = Signals(
        domains, draw(st.integers(0, 2**62)), progress, tokens_K, draw(measured((K,))), probes
    )
    number = draw(st.integers(0, 10**6))
    weights_K = draw(hnp.arrays(np.float64, K, elements=st.floats(1e-12, 1.0)))
    return Interval(number, Mixture.normalise(names, weights_K) if number else None, signals, {})


def through_a_database(row: Any) -> Any:
    return json.loads(to_json(row))


@given(intervals())
def test_an_interval_comes_back_to_the_bit(interval: Interval) -> None:
    row = through_a_database(interval.row())
    space = Space.read(row["space"], through_a_database(interval.space_json()), "run")
    assert Interval.read(row, space, "run") == interval
    assert Interval.read(row, space, "run").row() == interval.row()


@given(intervals(), st.sampled_from(["mixture", "signals", "space", "digest"]), json_values)
def test_a_row_with_anything_in_it_is_refused_or_unchanged(
    interval: Interval, column: str, value: Any
) -> None:
    space = Space.read(interval.row()["space"], interval.space_json(), "run")
    row = interval.row() | {column: value}
    try:
        found = Interval.read(row, space, "run")
    except StoreError:
        return
    assert found == interval


@given(json_values)
def test_a_policy_may_say_anything(value: Any) -> None:
    to_json(figures_json({"said": value, "array": np.array([1.0, np.nan])}))


@given(
    st.dictionaries(st.text(), st.integers() | finite | st.text(), min_size=1), st.integers(0, 99)
)
def test_a_runs_key_depends_on_its_content_alone(config: dict[str, Any], seed: int) -> None:
    assert run_key(config, seed) == run_key(dict(reversed(config.items())), seed)
    assert run_key(config, seed) != run_key(config, seed + 1)
