"""Static methods and ODM: what they propose and what they commit to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.trajectory import Run
from cuvee.loop import run
from cuvee.methods import METHODS
from cuvee.methods.baselines.static import Given, SourceOnly, TargetOnly, Temperature
from cuvee.policies.files import save_policy
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
        ("source_only", {}, [0.9, 0.1, 0.0]),
        ("target_only", {}, [0.0, 0.0, 1.0]),
        ("given", {"weights": {"code": 3, "math": 1}}, [0.0, 0.75, 0.25]),
        ("odm", {}, [1 / 3] * 3),
    ],
)
def test_the_first_mixture_of_each_method(
    name: str, options: dict[str, object], expected: list[float]
) -> None:
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
    with pytest.raises(ConfigError, match="source domain"):
        SourceOnly().commit(Space((Domain("maths", 1, role="target"),)), ())
    with pytest.raises(ConfigError, match="latin"):
        Given({"latin": 1.0}).commit(SPACE, ())
    with pytest.raises(ConfigError, match="tau"):
        Temperature(0.0)
    with pytest.raises(PolicyError, match="smoothing"):
        METHODS["odm"](smoothing=2.0)


@pytest.mark.parametrize("name", ["ac_odm", "hds", "doge"])
def test_learned_methods_learn_on_the_run_or_ask_for_a_proxy_first(name: str) -> None:
    assert tuple(METHODS[name]().propose(SPACE, ())) == ()
    proxy = METHODS[name](mode="proxy")
    assert len(proxy.propose(SPACE, ())) == 1
    with pytest.raises(PolicyError, match="proxies first"):
        proxy.commit(SPACE, ())
    with pytest.raises(ConfigError, match="offline"):
        METHODS[name](mode="offline")


def test_doge_commits_to_the_mean_of_its_proxys_path() -> None:
    method = METHODS["doge"](mode="proxy", mu=1.0)
    (policy,) = method.propose(SPACE, ())
    logged = [Run("proxy", 0, {}, run(ScriptedTrainer(SPACE.domains), policy))]
    assert method.propose(SPACE, logged) == ()
    mean_K = logged[0].trajectory.weights_TK().mean(axis=0)
    committed = run(ScriptedTrainer(SPACE.domains, intervals=2), method.commit(SPACE, logged))
    assert committed.mixtures[1].weights_K == pytest.approx(mean_K)


def test_ac_odm_commits_to_the_frozen_actor_of_its_proxy(tmp_path: Path) -> None:
    small = {
        "architecture": {"hidden": 8, "layers": 1, "heads": 2},
        "learning_starts": 2,
        "batch_size": 4,
    }
    method = METHODS["ac_odm"](mode="proxy", warmup_intervals=3, agent=small)
    (policy,) = method.propose(SPACE, ())
    trajectory = run(ScriptedTrainer(SPACE.domains), policy)
    save_policy(tmp_path / "policy", policy)
    committed = method.commit(
        SPACE, [Run("proxy", 0, {}, trajectory, policy=str(tmp_path / "policy"))]
    )
    assert [probe.name for probe in committed.probes] == ["weight_norms"], (
        "no reward is measured on the target"
    )
    other = tuple(Domain(f"x{k}", 100) for k in range(7))
    assert run(ScriptedTrainer(other), committed).weights_TK().shape == (12, 7)
