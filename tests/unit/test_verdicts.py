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
from cuvee.evaluation.verdicts import MOST_SEEDS, compare_paired, corrected
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


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (1.0, 10), (2.0, 5), (3.0, 4)])
def test_the_seeds_needed_are_those_of_the_exact_power(effect: float, seeds: int) -> None:
    """The expected numbers are those of R's power.t.test(type = "one.sample", power = 0.8)."""
    pattern = np.array([1.0, -1.0, 1.0, -1.0])
    differences = effect + pattern / pattern.std(ddof=1)
    verdict = compare_paired(dict(enumerate(differences.tolist())), dict.fromkeys(range(4), 0.0), 0)
    assert verdict is not None
    assert verdict.seeds_needed == seeds


def test_more_comparisons_need_more_seeds() -> None:
    one = compare_paired(losses(3.95, 0.1), NOTHING, 0.0)
    assert one is not None
    seven = corrected([one] * 7)[0]
    assert (seven.seeds_needed or 0) > (one.seeds_needed or 0)


def test_a_hopeless_comparison_needs_more_seeds_than_are_counted() -> None:
    tiny = {seed: 4.0 + (-1) ** seed + 1e-6 for seed in range(8)}
    verdict = compare_paired(tiny, NOTHING, 0.0)
    assert verdict is not None
    assert verdict.seeds_needed == MOST_SEEDS + 1


def test_equal_methods_are_seldom_told_apart_by_crossed_seeds() -> None:
    """Four initial weights with four orders: 16 runs, whose differences depend on the weights."""
    rng = np.random.default_rng(0)
    levels = {4 * a + b: (a, b) for a in range(4) for b in range(4)}
    named = {"as independent": 0, "as crossed": 0}
    for _ in range(100):
        of_weights = rng.normal(0, 1, 4)
        ours = {seed: of_weights[a] + rng.normal(0, 0.2) for seed, (a, _) in levels.items()}
        theirs = dict.fromkeys(levels, 0.0)
        for name, known in (("as independent", None), ("as crossed", levels)):
            verdict = compare_paired(ours, theirs, 0.0, known)
            assert verdict is not None
            assert verdict.seeds == (4 if known else 16)
            named[name] += verdict.outcome != "open"
    assert named["as independent"] > 20
    assert named["as crossed"] <= 9


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


def test_an_open_claim_names_the_seeds_that_would_decide_beyond_those_there_are() -> None:
    found = {"a": losses(3.9, 0.1, seeds=3, seed=7), "b": losses(4.0, 0.0, seeds=3)}
    made = [Answered(parse_claim("a < b", found), None, 0, 6, "2026-01-01", credited=c)
            for c in (True, False)]  # fmt: skip
    (one,) = answer_claims(made[:1], found.__getitem__)
    said = claim_sentence(one)
    if one.answer == "open":
        needed = int(said.split("about ")[1].split(" seeds")[0])
        assert needed > 3
    alone = {"a": {0: 3.9}, "b": {0: 4.0}}
    (single,) = answer_claims(made[:1], alone.__getitem__)
    assert "on one seed, which decides nothing" in claim_sentence(single)


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


@pytest.mark.parametrize("margin", ["0.00001", "0.0123456789", "1", "10000000"])
def test_a_claim_is_read_again_as_it_was_printed(margin: str) -> None:
    claim = parse_claim(f"a < b by {margin}", ["a", "b"])
    assert str(claim) == f"a < b by {margin}"
    assert parse_claim(str(claim), ["a", "b"]) == claim
