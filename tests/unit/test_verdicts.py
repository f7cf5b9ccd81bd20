"""Verdicts follow their intervals, are corrected for their number, and name what would decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from cuvee.core.errors import ConfigError
from cuvee.evaluation.claims import Answered, answer_claims, parse_claim
from cuvee.evaluation.verdicts import compare_paired, corrected
from cuvee.recipes.config.schema import CompareConfig, parse
from cuvee.recipes.reports.claims import register_claims
from cuvee.report.words import claim_sentence


def losses(mean: float, spread: float, seeds: int = 8, seed: int = 0) -> dict[int, float]:
    rng = np.random.default_rng(seed)
    return dict(enumerate((mean + rng.normal(0, spread, seeds)).tolist()))


NOTHING = losses(4.0, 0.0)


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [
        (losses(3.9, 0.01), "better"),
        (losses(4.1, 0.01), "worse"),
        (losses(4.0, 0.001), "tied"),
        (losses(4.0, 0.5), "open"),
        (losses(4.0, 0.0), "tied"),
        (losses(3.9, 0.0), "better"),
        (losses(3.9, 0.01, seeds=1), "open"),
    ],
)
def test_a_verdict_follows_its_interval(ours: dict[int, float], outcome: str) -> None:
    verdict = compare_paired(ours, NOTHING, margin=0.01)
    assert verdict is not None
    assert verdict.outcome == outcome


def test_without_a_shared_seed_there_is_no_verdict() -> None:
    assert compare_paired({0: 1.0}, {1: 1.0}, 0.01) is None


def test_the_p_value_is_that_of_a_paired_t_test() -> None:
    ours, theirs = losses(3.98, 0.02, seed=1), losses(4.0, 0.02, seed=2)
    verdict = compare_paired(ours, theirs, 0.0)
    assert verdict is not None
    expected = ttest_rel(list(ours.values()), list(theirs.values())).pvalue
    assert verdict.p_value == pytest.approx(expected)


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=8))
def test_correction_never_lowers_a_p_value_and_keeps_their_order(spreads: list[float]) -> None:
    found = [compare_paired(losses(3.99, s, seed=i), NOTHING, 0.0) for i, s in enumerate(spreads)]
    plain = [one for one in found if one is not None]
    adjusted = corrected(plain)
    before = np.array([one.p_value for one in plain], dtype=float)
    after = np.array([one.p_value for one in adjusted], dtype=float)
    assert (after >= before - 1e-15).all()
    assert (after <= np.minimum(1.0, before * len(before)) + 1e-12).all()
    assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()


def test_of_many_equal_methods_few_are_called_different() -> None:
    """Twenty methods like the baseline in 100 comparisons: without correction most name one."""
    named = 0
    for trial in range(100):
        found = [
            compare_paired(losses(4.0, 0.1, seed=1000 * trial + i), NOTHING, 0.0) for i in range(20)
        ]
        named += any(
            one.outcome in ("better", "worse") for one in corrected([o for o in found if o])
        )
    assert named <= 12


def test_the_seeds_needed_decide_about_as_often_as_they_say() -> None:
    first = compare_paired(losses(3.95, 0.1, seeds=40, seed=3), losses(4.0, 0.0, seeds=40), 0.0)
    assert first is not None
    assert first.seeds_needed is not None
    n = first.seeds_needed
    decided = [
        (verdict := compare_paired(losses(3.95, 0.1, n, seed=i), losses(4.0, 0.0, n), 0.0))
        and verdict.outcome == "better"
        for i in range(200)
    ]
    assert 0.6 < np.mean([bool(one) for one in decided]) < 0.98


# Claims


def test_claims_are_parsed_and_printed_alike() -> None:
    for text in ("a < b", "a < b by 0.01"):
        assert str(parse_claim(text, ["a", "b"])) == text
    assert parse_claim("a<b by .5", ["a", "b"]).by == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a > b", "cannot be read"),
        ("a < c", "names 'c'"),
        ("a < a", "with itself"),
        ("", "cannot"),
        ("a < b by -1", "cannot be read"),
    ],
)
def test_other_claims_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_claim(text, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a < b", "confirmed"),
        ("b < a", "refuted"),
        ("a < b by 0.05", "confirmed"),
        ("a < b by 0.2", "refuted"),
        ("a < c", "open"),
        ("a < d", "open"),
    ],
)
def test_claims_are_answered(text: str, answer: str) -> None:
    found = {"a": losses(3.9, 0.01), "b": NOTHING, "c": losses(3.9, 0.9, seed=7), "d": {}}
    claim = Answered(parse_claim(text, list(found)), None, 0, 12, "2026-01-01")
    (answered,) = answer_claims([claim], lambda label: found[label])
    assert answered.answer == answer
    assert claim_sentence(answered).startswith(f"{text}: {answer}.")


def config(tmp_path: Path, **more: Any) -> CompareConfig:
    content = {"corpus": "c", "methods": ["natural", "uniform"], "out": str(tmp_path), **more}
    return parse(CompareConfig, content, "here")


def test_a_claim_keeps_the_time_of_its_first_registration(tmp_path: Path) -> None:
    one = config(tmp_path, claims=["uniform < natural"])
    register_claims(one, "group", done=0, total=4)
    register_claims(one.with_claims(["natural < uniform by 0.1"]), "group", done=3, total=4)
    records = json.loads((tmp_path / "group-claims.json").read_text())
    assert [(r["claim"], r["done"]) for r in records] == [
        ("uniform < natural", 0), ("natural < uniform by 0.1", 3)
    ]  # fmt: skip


def test_claims_about_methods_that_are_not_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'even', which is not compared"):
        config(tmp_path, claims=["even < natural"])


def test_several_models_are_comparisons_of_their_own(tmp_path: Path) -> None:
    one = config(tmp_path, models=["llama-0.1m", "llama-1m"], seeds=[0, 1])
    assert {name: sub.model for name, sub in one.by_model().items()} == {
        "llama-0.1m": "llama-0.1m", "llama-1m": "llama-1m"
    }  # fmt: skip
    assert len(one.runs()) == 8
    with pytest.raises(ConfigError, match="both model and models"):
        config(tmp_path, model="llama-1m", models=["llama-0.1m"])
