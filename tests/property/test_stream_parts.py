"""The three pure functions under the stream: permutation, apportionment, dealing order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.data.stream.apportion import SHARE_BITS, WHOLE, Quota, integer_shares
from cuvee.data.stream.lanes import lane_order, rotations
from cuvee.data.stream.multinomial import Multinomial
from cuvee.data.stream.permutation import epoch_keys, permute, sides, stable_key


def shuffled(size: int, key: int, epoch: int) -> np.ndarray:
    a, b = sides(size)
    keys = epoch_keys(np.full(size, key, np.uint64), np.full(size, epoch))
    radix = np.full(size, a, np.uint32), np.full(size, b, np.uint32)
    return permute(np.arange(size), np.full(size, size), *radix, keys)


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=40).filter(
    any
)


def shares_of(raw: list[float]) -> np.ndarray:
    return integer_shares(np.array(raw) / np.sum(raw))


def zeros(raw: list[float]) -> np.ndarray:
    return np.zeros(len(raw), dtype=np.int64)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_permutation_is_one(size: int, key: int, epoch: int) -> None:
    assert sorted(shuffled(size, key, epoch).tolist()) == list(range(size))


def test_permutation_of_the_largest_size_stays_inside() -> None:
    size, (a, b) = 2**32, sides(2**32)
    index = np.array([0, 1, 12345, size - 2, size - 1])
    a_N, b_N = (np.full(5, value, np.uint32) for value in (a, b))
    image = permute(index, np.full(5, size), a_N, b_N, np.full(5, 99, np.uint64))
    assert len(set(image.tolist())) == 5
    assert ((image >= 0) & (image < size)).all()


def test_neighbours_and_passes_are_unrelated() -> None:
    """χ² of the steps between neighbours over 50 cells, averaged over 40 passes, and the rank
    correlation of passes."""
    size, passes = 10_007, [shuffled(10_007, stable_key("x"), epoch) for epoch in range(40)]
    statistic = []
    for order in passes:
        cells = np.bincount((np.diff(order) % size) * 50 // size, minlength=50)
        statistic.append(((cells - cells.mean()) ** 2 / cells.mean()).sum() / 49)
    assert abs(np.mean(statistic) - 1) < 5 * np.sqrt(2 / 49 / 40)
    correlation = np.corrcoef(passes) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(size)


@given(weights)
def test_shares_are_exact_and_keep_zeros(raw: list[float]) -> None:
    shares_K = shares_of(raw)
    assert int(shares_K.sum()) == WHOLE
    asked_K = np.array(raw) / np.sum(raw)
    assert np.abs(shares_K / WHOLE - asked_K).max() < len(raw) * 2.0**-50
    assert not shares_K[asked_K == 0].any()


@given(weights, st.integers(1, 300), st.integers(0, 2**36), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_counts_add_up_never_fall_and_follow_what_is_due(
    raw: list[float], batch: int, first: int, steps: int
) -> None:
    quota = Quota(batch, shares_of(raw), zeros(raw))
    counts_TK = quota.counts(first, steps)
    assert (counts_TK.sum(axis=1) == batch * np.arange(first, first + steps + 1)).all()
    assert (np.diff(counts_TK, axis=0) >= 0).all()
    whole_TK, fraction_TK = quota.due(np.arange(first, first + steps + 1))
    off_TK = counts_TK - whole_TK - fraction_TK / WHOLE
    assert (
        np.abs(off_TK).max() < 1.2
    )  # below 1 but for rare, extremely skewed weights; see the next test
    assert not counts_TK[:, quota.shares_K == 0].any()


@given(
    st.lists(st.floats(0.02, 1.0), min_size=1, max_size=20),
    st.integers(0, 2**30),
    st.integers(1, 64),
)
@settings(max_examples=100, deadline=None)
def test_within_one_row_where_each_domain_is_due_a_row_a_batch(
    raw: list[float], first: int, steps: int
) -> None:
    quota = Quota(1100, shares_of(raw), zeros(raw))
    whole_TK, fraction_TK = quota.due(np.arange(first, first + steps + 1))
    assert np.abs(quota.counts(first, steps) - whole_TK - fraction_TK / WHOLE).max() < 1


@given(weights, st.integers(1, 100), st.integers(0, 2**20), st.integers(1, 70), st.integers(0, 69))
@settings(max_examples=100, deadline=None)
def test_counts_do_not_depend_on_how_they_are_asked_for(
    raw: list[float], batch: int, first: int, steps: int, at: int
) -> None:
    quota = Quota(batch, shares_of(raw), zeros(raw))
    at = min(at, steps - 1)
    assert (quota.counts(first + at, 1) == quota.counts(first, steps)[at : at + 2]).all()


@given(weights, weights, st.integers(1, 64), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_credit_is_carried_exactly(
    raw: list[float], then: list[float], batch: int, change: int
) -> None:
    size = min(len(raw), len(then))
    if not any(raw[:size]) or not any(then[:size]):
        return
    before = Quota(batch, shares_of(raw[:size]), zeros(raw[:size]))
    given_K = before.counts(change, 1)[0]
    credit_K = before.credit_at(change, given_K)
    assert int(credit_K.sum()) == 0
    assert np.abs(credit_K / WHOLE).max() < 1.2
    after = Quota(batch, shares_of(then[:size]), credit_K)
    total_K = [
        int(s) * batch * change + int(t) * batch * 9
        for s, t in zip(before.shares_K, after.shares_K, strict=True)
    ]
    off_K = [
        (int(g) + int(c)) - due / 2**SHARE_BITS
        for g, c, due in zip(given_K, after.counts(9, 1)[0], total_K, strict=True)
    ]
    assert (
        max(map(abs, off_K)) < 3
    )  # adverse changes may cost about ln K rows; nothing is lost or gained


@given(st.integers(1, 400))
def test_dealing_is_a_permutation_and_deals_evenly(batch: int) -> None:
    order = lane_order(batch)
    assert sorted(order.tolist()) == list(range(batch))
    world = 1
    while (
        batch % (2 * world) == 0
    ):  # twos are dealt first, so every power of two that divides the batch gets equal shares
        world *= 2
        for rank in order.reshape(world, -1):
            assert len(set((rank % world).tolist())) == 1


def test_rotation_reaches_every_place() -> None:
    assert set(rotations(7, np.arange(200), 12).tolist()) == set(range(12))


def test_multinomial_counts_pass_chi_square() -> None:
    """10^6 slots, K = 6: 99.9 % of honest draws have χ² below 20.5 at 5 degrees of freedom."""
    asked_K = np.array([0.5, 0.25, 0.125, 0.0625, 0.0615, 0.001])
    counts = Multinomial(1000, integer_shares(asked_K), seed=5, first_slot=10**12).counts(0, 1000)
    expected = asked_K * 1e6
    assert ((counts[-1] - expected) ** 2 / expected).sum() < 20.5
    by_step = np.diff(counts, axis=0)
    spread = by_step.var(axis=0) / (1000 * asked_K * (1 - asked_K))
    assert np.abs(spread - 1).max() < 5 * np.sqrt(2 / 1000)


def test_multinomial_is_a_function_of_the_slot() -> None:
    shares_K = integer_shares(np.array([0.3, 0.7]))
    whole = Multinomial(8, shares_K, seed=1, first_slot=0).counts(0, 50)
    later = Multinomial(8, shares_K, seed=1, first_slot=8 * 20).counts(0, 30)
    assert (later == whole[20:] - whole[20]).all()
