"""`PolicySuite`: tests of the policy interface. Subclass it, implement `make`, and run pytest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Probe, State
from cuvee.core.signals import Measured, Signals
from cuvee.core.state import load_state, save_state
from cuvee.core.trajectory import Cost, Trajectory
from cuvee.probes.target_gain import NAME as TARGET_GAIN
from cuvee.probes.target_gain import ROWS, SQUARE


class ScriptedTrainer:
    """A deterministic trainer without a model, whose signals are formulas.

    Domain k's loss falls with the tokens read from it, at a rate of its own. The first domain is
    absent in every third interval. Alignment, weight norms and evaluation are formulas too.
    """

    def __init__(
        self, domains: tuple[Domain, ...], intervals: int = 12, tokens: int = 1000
    ) -> None:
        self.domains = domains
        self.intervals = intervals
        self.tokens = tokens
        self.t = 0
        self._seen_K = np.zeros(len(domains))

    @property
    def done(self) -> bool:
        return self.t >= self.intervals

    @property
    def cost(self) -> Cost:
        return Cost(tokens=self.t * self.tokens)

    def state_dict(self) -> State:
        return {"t": self.t, "seen": self._seen_K.copy()}

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        self.t = int(state["t"])
        self._seen_K = np.array(state["seen"])

    def export(self, folder: Path) -> None:
        """There is no model to write."""

    def start(self, probes: Any) -> Signals:
        return self._signals(np.zeros(len(self.domains)))

    def advance(self, mixture: Mixture) -> Signals:
        assert not self.done
        assert mixture.names == tuple(domain.name for domain in self.domains)
        drawn_K = mixture.weights_K * self.tokens
        self._seen_K += drawn_K
        self.t += 1
        return self._signals(drawn_K)

    def _signals(self, drawn_K: Any) -> Signals:
        present_K = drawn_K > 0
        if self.t % 3 == 2:
            present_K[0] = False
        rates_K = 0.2 + 0.1 * np.arange(len(self.domains))
        loss_K = 2.0 + 4.0 * (1.0 + self._seen_K / self.tokens) ** -rates_K
        gradients_KM = np.cos(
            np.outer(1.0 + np.arange(len(self.domains)), 1.0 + np.arange(6)) + 0.1 * self.t
        )
        target_K = np.array([domain.is_target for domain in self.domains])
        field_FK = np.stack([~target_K, target_K])
        probes = {
            "evaluation": Measured.mean(field_FK @ -loss_K, field_FK.sum(axis=1)),
            "alignment": Measured(gradients_KM @ gradients_KM.T, np.outer(present_K, present_K)),
            TARGET_GAIN: Measured(gradients_KM[:, 0], present_K),
            SQUARE: Measured(gradients_KM[:, 0] ** 2 + 0.5, present_K),
            ROWS: Measured.all(np.where(present_K, np.ceil(drawn_K / 20), 0.0)),
            "weight_norms": Measured.all([10.0 + 0.1 * self.t, 20.0 - 0.05 * self.t]),
        }
        measured = Measured(loss_K, present_K)
        return Signals(
            self.domains,
            self.t,
            self.t / self.intervals,
            drawn_K.astype(np.int64),
            measured,
            probes,
        )


def some_domains(K: int = 4) -> tuple[Domain, ...]:
    """Return K domains of different sizes. The last one is a target."""
    return tuple(
        Domain(
            f"d{k}",
            tokens=1000 * (k + 1),
            role="target" if k == K - 1 else "source",
            scores={"mtld": 50.0 + k},
        )
        for k in range(K)
    )


class PolicySuite:
    """Override `make`, which returns a new policy for a run on `domains`."""

    def make(self, domains: tuple[Domain, ...]) -> Policy:
        raise AssertionError("a subclass makes the policy under test")

    def play(
        self, policy: Policy, trainer: ScriptedTrainer, so_far: Trajectory | None = None
    ) -> Trajectory:
        so_far = so_far or Trajectory.start(trainer.start(policy.probes))
        while not trainer.done:
            mixture = policy.mixture(so_far)
            so_far = so_far.append(mixture, trainer.advance(mixture))
            policy.learn(so_far)
        return so_far

    def test_mixtures_are_over_the_domains_of_the_run(self) -> None:
        for K in (2, 5, 52):
            domains = some_domains(K)
            so_far = self.play(self.make(domains), ScriptedTrainer(domains))
            assert all(
                mixture.names == tuple(d.name for d in domains) for mixture in so_far.mixtures
            )

    def test_the_same_history_gives_the_same_mixtures(self) -> None:
        domains = some_domains()
        first, second = (self.play(self.make(domains), ScriptedTrainer(domains)) for _ in range(2))
        assert first == second

    def test_mixture_does_not_change_state(self) -> None:
        """A trainer may ask twice (a retry, a shadow run). Both answers must be equal."""
        domains = some_domains()
        policy = self.make(domains)
        so_far = Trajectory.start(ScriptedTrainer(domains).start(policy.probes))
        assert policy.mixture(so_far) == policy.mixture(so_far)

    def test_resumes_exactly_at_every_interval(self, tmp_path: Path) -> None:
        domains = some_domains()
        whole = self.play(self.make(domains), ScriptedTrainer(domains))
        for stop in range(len(whole)):
            before = self.make(domains)
            trainer = ScriptedTrainer(domains)
            so_far = Trajectory.start(trainer.start(before.probes))
            while trainer.t < stop:
                mixture = before.mixture(so_far)
                so_far = so_far.append(mixture, trainer.advance(mixture))
                before.learn(so_far)
            save_state(tmp_path / str(stop), before.state_dict())
            after = self.make(domains)
            after.load_state_dict(load_state(tmp_path / str(stop)))
            assert self.play(after, trainer, so_far) == whole, f"stopped after {stop} intervals"

    def test_metrics_are_json(self) -> None:
        domains = some_domains()
        policy = self.make(domains)
        trainer = ScriptedTrainer(domains)
        so_far = Trajectory.start(trainer.start(policy.probes))
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        json.dumps(policy.learn(so_far), allow_nan=False)
