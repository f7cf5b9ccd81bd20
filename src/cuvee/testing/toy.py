"""`ToyTrainer`: a trainer without a model, for tests of the code around training.

It takes microseconds per interval and resumes exactly. Faults can be planted by mixture:
`faults={"kill": 0.125}` kills the process of a run that gives the first domain exactly that share.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost


class ToyTrainer:
    """A trainer in which each domain's loss falls as a power of the tokens read from it.

    Noise comes from a generator that is part of the state. A loss is absent where nothing was
    drawn. Trainers with equal `seed` and `noise_seed` agree. `pause` is in seconds per interval.
    """

    def __init__(
        self,
        intervals: int = 8,
        tokens: int = 1000,
        seed: int = 0,
        noise_seed: int = 0,
        pause: float = 0.0,
        faults: Mapping[str, float] | None = None,
    ) -> None:
        self.domains = (
            Domain("web", 10**6),
            Domain("code", 10**5),
            Domain("maths", 10**4, "target"),
        )
        self._intervals = intervals
        self._tokens = tokens
        self._pause = pause
        self._faults = dict(faults or {})
        self._generator = np.random.default_rng([seed, noise_seed])
        self._read_K = np.zeros(len(self.domains))
        self._step = 0
        self.cost = Cost()

    @property
    def done(self) -> bool:
        return self._step >= self._intervals

    def start(self, probes: Sequence[Probe]) -> Signals:
        return self._signals(np.zeros(len(self.domains), dtype=np.int64))

    def advance(self, mixture: Mixture) -> Signals:
        time.sleep(self._pause)
        if self._step == 2:
            self._go_wrong(
                [kind for kind, share in self._faults.items() if share == mixture["web"]]
            )
        drawn_K = self._generator.multinomial(self._tokens, mixture.weights_K)
        self._read_K += drawn_K
        self._step += 1
        self.cost += Cost(self._tokens, 6.0 * self._tokens, 0.001)
        return self._signals(drawn_K)

    def _go_wrong(self, kinds: Sequence[str]) -> None:
        if "kill" in kinds:
            os.kill(os.getpid(), signal.SIGKILL)
        if "memory" in kinds:
            raise MemoryError("planted")
        if "nan" in kinds:
            Measured.all([float("nan")])

    def _signals(self, drawn_K: npt.NDArray[np.int64]) -> Signals:
        K = len(self.domains)
        loss_K = 2.0 + (1.0 + self._read_K / 100.0) ** -0.3 + self._generator.normal(0.0, 0.01, K)
        return Signals(
            domains=self.domains,
            step=self._step,
            progress=self._step / self._intervals,
            tokens_K=drawn_K,
            loss=Measured(loss_K, drawn_K > 0),
            probes={
                "valid_loss": Measured.all(loss_K),
                "gradient_norm": Measured.all(1.0 + loss_K.sum()),
            },
        )

    def state_dict(self) -> State:
        generator = dict(self._generator.bit_generator.state)
        # As text, because these integers have 128 bits.
        generator["state"] = {name: str(value) for name, value in generator["state"].items()}
        cost = {"tokens": self.cost.tokens, "flops": self.cost.flops, "seconds": self.cost.seconds}
        return {
            "step": self._step,
            "read": self._read_K.copy(),
            "generator": generator,
            "cost": cost,
        }

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        generator = dict(state["generator"])
        generator["state"] = {name: int(value) for name, value in generator["state"].items()}
        self._generator.bit_generator.state = generator
        self._step = int(state["step"])
        self._read_K = np.array(state["read"])
        self.cost = Cost(**state["cost"])

    def export(self, folder: Path) -> None:
        """Write nothing: there is no model."""


def make_toy(proxy: Mapping[str, Any], seed: int) -> ToyTrainer:
    """Build a toy trainer in a fleet's worker. `proxy` has its arguments."""
    return ToyTrainer(seed=seed, **proxy)


def make_nothing(proxy: Mapping[str, Any], seed: int) -> ToyTrainer:
    """Fail, as a trainer that cannot be built in a fleet's worker."""
    raise RuntimeError("planted")
