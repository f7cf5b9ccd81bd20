"""The shipped universal policy: present, unaltered, with provenance, for any number of domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.files import sha256_of
from cuvee.core.trajectory import Cost
from cuvee.loop import run
from cuvee.policies.files import UNIVERSAL, load_policy, read_provenance, save_policy
from cuvee.policies.guard.guard import Guard
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.recipes.build import build_policy
from cuvee.recipes.config.schema import CompareConfig, TrainConfig, parse
from cuvee.simulation.continual import continual
from cuvee.simulation.simulator import Simulator

CONFIG = {"corpus": "c", "name": "mine", "policy": "universal"}


class Space:
    def __init__(self, domains: tuple[Domain, ...]) -> None:
        self.domains, self.names = domains, tuple(domain.name for domain in domains)


def test_it_is_the_policy_that_was_evaluated() -> None:
    assert (
        sha256_of(UNIVERSAL / "hashes.json")
        == "1ab6bf62a47c62ac624dba104d5762a57d9e0e7aaad3119eb776ad4c52d62f71"
    ), "see benchmarks/universal.py"
    assert sum(file.stat().st_size for file in UNIVERSAL.iterdir()) < 1e7
    policy, provenance = load_policy(UNIVERSAL), read_provenance(UNIVERSAL)
    assert isinstance(policy, HistoryPolicy)
    assert policy.supported
    assert not policy.probes
    assert len(provenance["like"]["runs"]) == 3 * 64
    assert provenance["like"]["cost"]["tokens"] > 9e7
    assert max(one["distance"] for one in provenance["like"]["natures"]) < 0.5
    assert provenance["processor_seconds"] > 0


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (40, 12), (84, 20)])
def test_it_steers_any_number_of_domains_under_the_guard(sources: int, targets: int) -> None:
    laws, domains = continual(sources, targets, seed=3, intervals=4)
    corpus: Any = Space(domains)
    steering = build_policy(
        parse(TrainConfig, {**CONFIG, "guard": {"ceiling": 0.9}}, "mine"), corpus
    )
    assert isinstance(steering, Guard)
    steered = run(Simulator(laws, seed=0, domains=domains), steering)
    weights_TK = steered.weights_TK()
    assert weights_TK.max() <= 0.9 + 1e-9
    target_T = weights_TK[:, sources:].sum(1)
    assert (target_T > 0.02).all()
    assert (target_T < 0.98).all()
    assert np.abs(np.diff(weights_TK, axis=0)).max() > 1e-4, "it does something over time"


def test_a_run_and_a_comparison_call_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(TrainConfig, CONFIG, "mine")
    assert config.label == "universal"
    assert config.policy
    assert config.policy.proxies == Cost(0, 0.0, 0.0)
    assert config.run_id("f").startswith("mine-universal-s0-")
    named = parse(
        CompareConfig,
        {"corpus": "c", "methods": ["odm", {"policy": "universal", "label": "shipped"}]},
        "c",
    )
    assert [run.label for run in named.runs()] == ["odm", "shipped"]
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path / "universal", HistoryPolicy(seed=5))
    mine = parse(TrainConfig, {**CONFIG, "policy": "./universal"}, "mine")
    assert mine.run_id("f") != config.run_id("f")


def test_a_corpus_without_a_target_is_refused() -> None:
    corpus: Any = Space((Domain("web", 10), Domain("code", 10)))
    with pytest.raises(PolicyError, match=r"none is a target domain .*--target NAME"):
        build_policy(parse(TrainConfig, CONFIG, "mine"), corpus)
