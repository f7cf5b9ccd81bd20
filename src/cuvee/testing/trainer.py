"""`TrainerSuite`: tests of the trainer interface. Subclass it, implement `make`, run pytest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, Trainer
from cuvee.core.signals import Signals
from cuvee.core.state import load_state, save_state


class TrainerSuite:
    """Override `make`, and `probes` to test the trainer with probes."""

    probes: Sequence[Probe] = ()

    def make(self) -> Any:
        """Return a new `Trainer` of a few intervals over two or more domains; equal each time."""
        raise AssertionError("a subclass makes the trainer under test")

    def mixture(self, signals: Signals) -> Mixture:
        """Return a mixture that depends on the interval. Every third one excludes domain 0."""
        weights_K = np.arange(1.0, len(signals.names) + 1)
        weights_K[0] += signals.step % 5
        if len(signals.names) > 1 and signals.step % 3 == 2:
            weights_K[0] = 0.0
        return Mixture.normalise(signals.names, weights_K)

    def play(
        self, trainer: Trainer, signals: list[Signals], most: int | None = None
    ) -> list[Signals]:
        signals = list(signals)
        while not trainer.done and (most is None or len(signals) <= most):
            signals.append(trainer.advance(self.mixture(signals[-1])))
        return signals

    def test_the_first_signals_are_from_before_the_first_step(self) -> None:
        trainer = self.make()
        first = trainer.start(self.probes)
        assert (first.step, first.progress, int(first.tokens_K.sum())) == (0, 0.0, 0)
        assert not first.loss.present.any()
        assert not trainer.done

    def test_a_run_ends_exactly_at_its_budget(self) -> None:
        trainer = self.make()
        signals = self.play(trainer, [trainer.start(self.probes)])
        steps = [s.step for s in signals]
        progress = [s.progress for s in signals]
        assert trainer.done
        assert steps == sorted(set(steps))
        assert progress == sorted(set(progress))
        assert progress[-1] == 1.0

    def test_a_domain_that_was_not_drawn_has_no_loss(self) -> None:
        trainer = self.make()
        first = trainer.start(self.probes)
        weights_K = np.ones(len(first.names))
        weights_K[0] = 0.0
        signals = trainer.advance(Mixture.normalise(first.names, weights_K))
        np.testing.assert_array_equal(signals.loss.present, signals.tokens_K > 0)
        assert not signals.loss.present[0]
        assert signals.loss.present[1:].any()

    def test_cost_adds_up_the_tokens_of_the_signals(self) -> None:
        trainer = self.make()
        signals = self.play(trainer, [trainer.start(self.probes)])
        assert trainer.cost.tokens == sum(int(s.tokens_K.sum()) for s in signals)
        assert trainer.cost.flops > 0

    def test_two_trainers_made_alike_measure_the_same(self) -> None:
        runs = []
        for _ in range(2):
            trainer = self.make()
            runs.append(self.play(trainer, [trainer.start(self.probes)]))
        assert runs[0] == runs[1]

    def test_a_run_resumed_at_any_interval_equals_an_unbroken_one(self, tmp_path: Path) -> None:
        trainer = self.make()
        signals = [trainer.start(self.probes)]
        states = [trainer.state_dict()]
        while not trainer.done:
            signals = self.play(trainer, signals, most=len(signals))
            states.append(trainer.state_dict())
        for t, state in enumerate(states):
            save_state(tmp_path / str(t), state)
            resumed = self.make()
            resumed.restore(load_state(tmp_path / str(t)), self.probes)
            assert resumed.done == (t == len(states) - 1)
            assert self.play(resumed, signals[: t + 1]) == signals
            assert_same_state(resumed.state_dict(), states[-1])


def assert_same_state(a: Any, b: Any, path: str = "", ignore: Sequence[str] = ("seconds",)) -> None:
    """Assert that states are bit-identical except for wall-clock times."""
    if isinstance(a, dict):
        assert isinstance(b, dict), path
        assert list(a) == list(b), path
        for key in a:
            if key not in ignore:
                assert_same_state(a[key], b[key], f"{path}/{key}", ignore)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        assert a.tobytes() == b.tobytes(), path
    else:
        assert a == b, path
