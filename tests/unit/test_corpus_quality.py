"""MTLD against values computed by hand, and what must hold of any text."""

from __future__ import annotations

import random

import pytest

from cuvee.data.ingest.quality import domain_mtld, mtld


def test_by_hand() -> None:
    # "a a": after the second word 1/2 ≤ 0.72, one factor of two words, either way.
    assert mtld(["a", "a"]) == 2.0
    # "a b a b": 1, 1, 2/3 ≤ 0.72 ends a factor after three words. The remaining "b" has ratio 1 and
    # adds nothing: 4/1.
    assert mtld(["a", "b", "a", "b"]) == 4.0
    # "a a b" forwards: one factor, then "b" adds nothing: 3/1. Backwards "b a a": 1, 1, 2/3, one
    # factor: 3/1.
    assert mtld(["a", "a", "b"]) == 3.0
    # "a b c a" never comes down to 0.72: 3/4 leaves (1 - 0.75)/0.28 of a factor, either way.
    assert mtld(["a", "b", "c", "a"]) == pytest.approx(4 / (0.25 / 0.28))
    # "a b c a d": 1, 1, 1, 3/4, 4/5 leaves 0.2/0.28. Backwards "d a c b a": ends at 4/5 as well.
    assert mtld(["a", "b", "c", "a", "d"]) == pytest.approx(5 / (0.2 / 0.28))
    # "a a b c" forwards: a factor at the second word, "b c" adds nothing: 4. Backwards "c b a a":
    # 3/4: 4/(0.25/0.28).
    assert mtld(["a", "a", "b", "c"]) == pytest.approx((4 + 4 / (0.25 / 0.28)) / 2)


def test_the_threshold_itself_ends_a_factor() -> None:
    # Forwards, 18 different words and then repetitions reach 18/25 = 0.72 at the last of 25 words:
    # one factor. Backwards "w0 w0" ends a factor three times; 19 words are left, 18 of them
    # different.
    words = [f"w{i}" for i in range(18)] + ["w0"] * 7
    assert mtld(words) == (25 + 25 / (3 + (1 - 18 / 19) / (1 - 0.72))) / 2


def test_no_words_and_no_repetition() -> None:
    assert mtld([]) is None
    assert domain_mtld([]) is None
    assert domain_mtld(["… --- !"]) is None
    assert mtld(["one", "two", "three"]) == 3.0


def test_reading_backwards_makes_no_difference() -> None:
    draw = random.Random(0)
    words = [f"w{draw.randrange(60)}" for _ in range(3000)]
    assert mtld(words) == mtld(words[::-1])


def test_it_grows_with_the_vocabulary_and_not_with_the_length() -> None:
    draw = random.Random(1)

    def text(vocabulary: int, length: int) -> list[str]:
        return [f"w{draw.randrange(vocabulary)}" for _ in range(length)]

    def score(vocabulary: int, length: int, threshold: float = 0.72) -> float:
        found = mtld(text(vocabulary, length), threshold)
        assert found is not None
        return found

    scores = [score(vocabulary, 20_000) for vocabulary in (10, 50, 200, 1000)]
    assert scores == sorted(scores)
    short, long = score(200, 5_000), score(200, 40_000)
    assert short == pytest.approx(long, rel=0.05)
    assert score(200, 5_000, threshold=0.8) < short


def test_words_are_compared_in_lower_case_and_without_punctuation() -> None:
    assert domain_mtld(["A, a!", "(a) A."]) == mtld(["a", "a", "a", "a"])
    assert domain_mtld(["don't don't"]) == mtld(["don't", "don't"])
    assert domain_mtld(["Été été"]) == mtld(["été", "été"])
