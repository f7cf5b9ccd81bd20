"""Mixtures that follow from what is known of domains before training."""

from __future__ import annotations

import pytest

from cuvee.core.domain import Domain, divided_shares, natural_K

DOMAINS = (Domain("a", 900), Domain("b", 100), Domain("empty", 0), Domain("maths", 500, "target"))


def test_natural_shares_follow_tokens() -> None:
    assert natural_K(DOMAINS) == pytest.approx([0.6, 1 / 15, 0.0, 1 / 3])


@pytest.mark.parametrize(("flatness", "of_a"), [(0.0, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_a_run_is_divided_by_role_and_in_each_more_or_less_evenly(
    flatness: float, of_a: float
) -> None:
    found = divided_shares(DOMAINS, 0.4, flatness)
    assert found == pytest.approx(
        {"a": 0.6 * of_a, "b": 0.6 * (1 - of_a), "empty": 0.0, "maths": 0.4}
    )


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_a_role_that_is_alone_has_all(target: float) -> None:
    assert sum(divided_shares(DOMAINS[:3], target).values()) == pytest.approx(1.0)
    assert divided_shares(DOMAINS[3:], target) == {"maths": 1.0}
