"""Static methods and ODM: what they propose and what they commit to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.registry import METHODS
from cuvee.core.trajectory import Run
from cuvee.loop import run
from cuvee.methods.baselines.static import Given, SourceOnly, TargetOnly, Temperature
from cuvee.policies.files import check_can_be_saved, load_policy, save_policy
from cuvee.testing.policy import PolicySuite, ScriptedTrainer
from registered import SPACE, Space, methods_that_steer_alone

ROOT = Path(__file__).parents[2]


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
    method = METHODS.get(name)(**options)
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
        METHODS.get("odm")(smoothing=2.0)


@pytest.mark.parametrize("name", ["ac_odm", "hds", "doge"])
def test_learned_methods_learn_on_the_run_or_ask_for_a_proxy_first(name: str) -> None:
    assert tuple(METHODS.get(name)().propose(SPACE, ())) == ()
    proxy = METHODS.get(name)(mode="proxy")
    assert len(proxy.propose(SPACE, ())) == 1
    with pytest.raises(PolicyError, match="proxies first"):
        proxy.commit(SPACE, ())
    with pytest.raises(ConfigError, match="offline"):
        METHODS.get(name)(mode="offline")
    if name != "doge":
        with pytest.raises(ConfigError, match="proxies is 0"):
            METHODS.get(name)(mode="proxy", proxies=0)


def test_doge_commits_to_the_mean_of_its_proxys_path() -> None:
    method = METHODS.get("doge")(mode="proxy", mu=1.0)
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
    method = METHODS.get("ac_odm")(mode="proxy", agent=small)
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


@pytest.mark.parametrize("name", methods_that_steer_alone())
class TestEveryMethodThatSteersAlone:
    def test_its_policy_keeps_what_every_policy_promises(self, name: str, tmp_path: Path) -> None:
        class Suite(PolicySuite):
            def make(self, domains: tuple[Domain, ...]) -> Policy:
                return METHODS.get(name)().commit(Space(domains), ())

        Suite().test_mixtures_are_over_the_domains_of_the_run()
        Suite().test_the_same_history_gives_the_same_mixtures()
        Suite().test_mixture_does_not_change_state()
        Suite().test_metrics_are_json()
        Suite().test_resumes_exactly_at_every_interval(tmp_path)

    def test_its_policy_is_saved_and_loaded_with_what_it_has_learned(
        self, name: str, tmp_path: Path
    ) -> None:
        policy = METHODS.get(name)().commit(SPACE, ())
        check_can_be_saved(policy)
        so_far = run(ScriptedTrainer(SPACE.domains), policy)
        save_policy(tmp_path / "policy", policy)
        assert load_policy(tmp_path / "policy").mixture(so_far) == policy.mixture(so_far)


def test_readme_lists_every_method_with_its_page() -> None:
    listed: list[str] = []
    section = (ROOT / "README.md").read_text().partition("\n## Methods\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        names, *_, page = row.split(" | ")
        listed += re.findall(r"`(\w+)`", names)
        assert (ROOT / re.findall(r"\((docs/methods/\w+\.md)", page)[0]).is_file()
    assert sorted(listed) == METHODS.names()
