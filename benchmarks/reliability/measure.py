"""`Result`: what a test found; `measured`: the list of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One row of the table.

    `caught` tells for each planted fault whether the same measure noticed it.
    """

    n: str
    figure: str
    bar: str
    met: bool
    caught: Mapping[str, bool]

    @property
    def holds(self) -> bool:
        """Whether the bar is met by a measure that notices every planted fault."""
        return self.met and bool(self.caught) and all(self.caught.values())


Test = Callable[[bool], Result]
TESTS: dict[int, tuple[str, Test]] = {}


def measured(number: int, name: str) -> Callable[[Test], Test]:
    """Add a test to the list. It is called with whether to run at full size."""

    def add(test: Test) -> Test:
        assert number not in TESTS, f"two tests have the number {number}"
        TESTS[number] = (name, test)
        return test

    return add
