"""Runs of domains, and the stated error of sketched gradient sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import ConfigError
from cuvee.probes.domain_runs import DomainRuns
from cuvee.probes.sketch import GradientSums, odd_coprime

CPU = torch.device("cpu")


@given(
    st.integers(1, 4),
    st.integers(1, 300),
    st.integers(1, 6),
    st.integers(1, 200),
    st.integers(0, 2**16),
)
def test_runs_cover_every_position_once_with_its_domain(
    rows: int, length: int, count: int, stretch: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    domain_T = np.repeat(generator.integers(0, count, rows * length), stretch)[: rows * length]
    domain_BL = torch.from_numpy(domain_T).view(rows, length)
    runs = DomainRuns.of(domain_BL)
    flat_T = runs.flat(
        torch.stack([domain_BL, torch.arange(rows * length).view(rows, length)], dim=-1)
    )
    assert sorted(flat_T[:, 1].tolist()) == list(range(rows * length))
    assert runs.positions == rows * length
    covered = 0
    for domain, start, stop in runs.runs:
        assert start == covered < stop
        assert (flat_T[start:stop, 0] == domain).all()
        covered = stop
    assert covered == rows * length


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**16))
def test_exact_sums_are_weight_gradients(out: int, inputs: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta, x = (
        torch.randn(tokens, out, generator=generator),
        torch.randn(tokens, inputs, generator=generator),
    )
    sums = GradientSums(2, (out, inputs), None, CPU)
    sums.add(1, delta, x, scale=3.0)
    sums.add(1, delta, x, scale=-1.0)
    torch.testing.assert_close(
        sums.sums_KM[1].view(out, inputs), 2.0 * delta.T @ x, rtol=1e-4, atol=1e-4
    )
    assert not sums.sums_KM[0].any()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4000))
def test_entries_that_share_a_bucket_share_neither_row_nor_column(
    out: int, inputs: int, size: int
) -> None:
    try:
        buckets = odd_coprime(size, (out, inputs))
    except ConfigError:
        assert size < 2 * (max(out, inputs) + 1) + 2 * inputs
        return
    bucket = np.arange(out * inputs).reshape(out, inputs) % buckets
    assert all(len(set(row)) == inputs for row in bucket.tolist())
    assert all(len(set(column)) == out for column in bucket.T.tolist())
    if out * inputs <= 400:  # (r, c) with (r', c') rules out (r, c') with (r', c)
        same = bucket[:, :, None, None] == bucket[None, None, :, :]
        crossed = same & same.transpose(0, 3, 2, 1)
        assert all(r == p or c == d for r, c, p, d in np.argwhere(crossed))


def test_sketched_inner_products_are_unbiased_with_the_stated_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Low-rank gradients with uneven rows and columns, over many draws of the signs."""
    out, inputs, size, draws = 96, 160, 1201, 300
    generator = torch.Generator().manual_seed(1)
    heavy_O = torch.logspace(0, -1, out)[torch.randperm(out, generator=generator)]
    heavy_I = torch.logspace(0, -1, inputs)[torch.randperm(inputs, generator=generator)]
    common = torch.randn(3, inputs, generator=generator)
    parts = [
        (
            torch.randn(3, out, generator=generator) * heavy_O,
            (torch.randn(3, inputs, generator=generator) + common) * heavy_I,
        )
        for _ in range(2)
    ]
    g, h = (delta.T @ x for delta, x in parts)
    exact, norms = float((g * h).sum()), float(g.norm() * h.norm())
    estimates = []
    for draw in range(draws):
        monkeypatch.setattr("cuvee.probes.sketch._SEED", draw)
        sums = GradientSums(2, (out, inputs), size, CPU)
        for k, (delta, x) in enumerate(parts):
            sums.add(k, delta, x, scale=1.0)
        estimates.append(float(sums.sums_KM[0] @ sums.sums_KM[1]))
    buckets = sums.size
    stated = np.sqrt((norms**2 + exact**2) / buckets)
    assert abs(np.mean(estimates) - exact) < 4 * stated / np.sqrt(draws)
    assert 0.7 * stated < np.std(estimates) < 1.3 * stated


def test_signs_are_the_same_on_every_rank_and_sketches_add() -> None:
    generator = torch.Generator().manual_seed(0)
    delta, x = torch.randn(10, 32, generator=generator), torch.randn(10, 48, generator=generator)
    ranks = [GradientSums(1, (32, 48), 301, CPU) for _ in range(3)]
    for rank, part in zip(ranks, (slice(0, 10), slice(0, 4), slice(4, 10)), strict=True):
        rank.add(0, delta[part], x[part], scale=1.0)
    torch.testing.assert_close(ranks[0].sums_KM, ranks[1].sums_KM + ranks[2].sums_KM)
