"""DoReMi: the policy against the conformance suite and a hand computation; the method's
reference, proxy and mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.loop import run
from cuvee.methods.doremi import DoReMi, GroupDRO
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains


@dataclass(frozen=True)
class Space:
    domains: tuple[Domain, ...] = some_domains()


class TestGroupDRO(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return GroupDRO({domain.name: 3.0 for domain in domains})


def after(policy: GroupDRO, losses: list[float | None]) -> list[float]:
    """The weights after one interval with these losses."""
    domains = some_domains(len(losses))
    before = Signals(domains, 0, 0.0, np.zeros(len(losses), int), Measured.absent(len(losses)))
    so_far = Trajectory.start(before)
    measured = replace(before, step=1, loss=Measured.from_json(losses))
    so_far = so_far.append(policy.mixture(so_far), measured)
    policy.learn(so_far)
    return policy.mixture(so_far).weights_K.tolist()


def test_against_hand_computed_values() -> None:
    """Excess losses ln 2, 0 (below the reference) and 0 (absent) give ½, ¼, ¼, which are then
    mixed with a tenth of uniform."""
    policy = GroupDRO({"d0": 2.0, "d1": 2.0, "d2": 2.0}, step_size=1.0, smoothing=0.1)
    weights = after(policy, [2.0 + float(np.log(2)), 1.0, None])
    assert weights == pytest.approx([0.45 + 1 / 30, 0.225 + 1 / 30, 0.225 + 1 / 30])


def test_a_domain_that_the_reference_does_not_know_has_no_excess() -> None:
    assert after(GroupDRO({"d0": 2.0}), [2.0, 9.0]) == pytest.approx([0.5, 0.5])


def test_a_huge_excess_does_not_overflow() -> None:
    weights = after(GroupDRO({"d0": 0.0, "d1": 0.0}, step_size=1e6, smoothing=0.0), [9.0, 1.0])
    assert weights == [1.0, 0.0]


def logged(policy: Policy, name: str) -> Run:
    """A run whose last losses are taken for its validation losses."""
    so_far = run(ScriptedTrainer(Space().domains), policy)
    last = replace(so_far.last, probes={"valid_loss": Measured.all(so_far.last.loss.filled(2.0))})
    return Run(name, 0, {}, Trajectory([*so_far.signals[:-1], last], so_far.mixtures))


def test_a_reference_then_a_proxy_and_then_the_mean_of_its_path() -> None:
    method = DoReMi(step_size=0.1)
    (reference,) = method.propose(Space(), ())
    runs = [logged(reference, "reference")]
    (proxy,) = method.propose(Space(), runs)
    assert isinstance(proxy, GroupDRO)
    last = runs[0].trajectory.last.probes["valid_loss"].values
    assert list(proxy.settings()["reference"].values()) == pytest.approx(last.tolist())
    with pytest.raises(PolicyError, match="proxies first"):
        method.commit(Space(), runs)
    runs.append(logged(proxy, "proxy"))
    for order in (runs, runs[::-1]):
        assert tuple(method.propose(Space(), order)) == ()
        committed = run(
            ScriptedTrainer(Space().domains, intervals=1), method.commit(Space(), order)
        )
        mean_K = runs[1].trajectory.weights_TK().mean(axis=0)
        assert committed.mixtures[0].weights_K == pytest.approx(mean_K)


def test_a_proxy_that_stayed_uniform_is_still_a_proxy() -> None:
    method = DoReMi()
    (reference,) = method.propose(Space(), ())
    runs = [logged(reference, "a"), logged(reference, "b")]
    assert tuple(method.propose(Space(), runs)) == ()


def test_a_reference_that_was_not_validated_is_refused() -> None:
    (reference,) = DoReMi().propose(Space(), ())
    bare = Run("bare", 0, {}, run(ScriptedTrainer(Space().domains), reference))
    with pytest.raises(PolicyError, match="validation_tokens"):
        DoReMi().propose(Space(), [bare])
    with pytest.raises(PolicyError, match="step_size"):
        DoReMi(step_size=0.0)
