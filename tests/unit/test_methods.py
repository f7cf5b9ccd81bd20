"""Static methods and ODM: what they propose and what they commit to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.loop import run
from cuvee.methods import METHODS
from cuvee.methods.static import Given, TargetOnly, Temperature
from cuvee.testing.policy import ScriptedTrainer


@dataclass(frozen=True)
class Space:
    domains: tuple[Domain, ...]


SPACE = Space((Domain("web", 900), Domain("code", 100), Domain("math", 1000, role="target")))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("natural", {}, [0.45, 0.05, 0.5]),
        ("uniform", {}, [1 / 3] * 3),
        ("temperature", {"tau": 1.0}, [0.45, 0.05, 0.5]),
        ("temperature", {"tau": 1e9}, [1 / 3] * 3),
        ("target_only", {}, [0.0, 0.0, 1.0]),
        ("given", {"weights": {"code": 3, "math": 1}}, [0.0, 0.75, 0.25]),
        ("odm", {}, [1 / 3] * 3),
    ],
)
def test_the_first_mixture_of_each_method(name: str, options: dict[str, object], expected: list[float]) -> None:
    method = METHODS[name](**options)
    assert tuple(method.propose(SPACE, ())) == ()
    so_far = run(ScriptedTrainer(SPACE.domains, intervals=1), method.commit(SPACE, ()))
    assert so_far.mixtures[0].weights_K == pytest.approx(expected)


def test_temperature_flattens() -> None:
    tau = Temperature(2.0).mixture_for(SPACE.domains)
    assert tau["code"] / tau["web"] == pytest.approx((100 / 900) ** 0.5)


def test_methods_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ConfigError, match="--target"):
        TargetOnly().commit(Space((Domain("web", 1),)), ())
    with pytest.raises(ConfigError, match="latin"):
        Given({"latin": 1.0}).commit(SPACE, ())
    with pytest.raises(ConfigError, match="tau"):
        Temperature(0.0)
    with pytest.raises(PolicyError, match="smoothing"):
        METHODS["odm"](smoothing=2.0)
