"""`Simulator`: a `Trainer` without a model. A run takes milliseconds on a CPU.

Losses follow a scaling law with transfer between domains and forgetting:

    n_i(t+1) = (1 − f_i)^φ n_i(t) + η Σ_j T_ij α_j(t) N
    L_i(t)   = E_i + A_i (n_i(t) / N₀)^(−β_i)

n are effective tokens. N tokens are drawn per interval, and f_i is the fraction forgotten per
interval. T_ij (diagonal 1) says how much a token of domain j teaches about domain i. The loss
follows Hoffmann et al. 2022 (arXiv:2203.15556), with one law per domain. η(t) and φ(t), 1 by
default, are the rates of learning and forgetting relative to their means. They can follow the
learning rate or a power of it.

If domains are forgotten at different rates, the order of the data matters, and the best schedule is
better than the best constant mixture. With f = 0 it is not. `ScalingLaws.losses` is differentiable.
`best_static` and `best_schedule` optimise through it, so the regret of an agent can be measured
exactly.

The effect of a mixture on L_i per token is −∂L_i/∂n_i T_ij. The probe "alignment" reports the Gram
matrix of gradients with this effect, √(s_i s_j) (T_ij + T_ji) / 2 with s_i = −∂L_i/∂n_i · N₀. The
probe "evaluation" reports minus the mean loss of the source and of the target domains, as
log-probabilities of general and target questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Probe, State
from cuvee.core.registry import register_trainer
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost
from cuvee.probes.target_gain import NAME as TARGET_GAIN
from cuvee.probes.target_gain import ROWS, SQUARE
from cuvee.simulation.laws import Laws
from cuvee.training.settings import TrainerSettings

_LAYERS = 4
_ROWS = 8  # per domain and interval, for "target_gain"
_FLOPS_PER_TOKEN = 6e6  # as if the model had a million parameters


@dataclass(frozen=True, kw_only=True)
class ScalingLaws(Laws):
    """The laws of one simulated run, as float64 tensors over K domains.

    `pace_T` is η and `fade_T` is φ, one number per interval. An empty tuple means 1. Raises
    `ConfigError` for wrong shapes or ranges.
    """

    intervals: int
    interval: float = 1e6
    unit: float = 1e6
    pace_T: tuple[float, ...] = ()
    fade_T: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        K = self.domains
        for name in ("scale_K", "exponent_K", "forgetting_K", "start_K", "value_K"):
            if getattr(self, name).shape != (K,):
                raise ConfigError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, {K} domains need ({K},)"
                )
        for name in ("pace_T", "fade_T"):
            if (count := len(getattr(self, name))) not in (0, self.intervals):
                raise ConfigError(
                    f"{name} has {count} numbers, {self.intervals} intervals need as many, or none"
                )
        transfer = self.transfer_KK
        if transfer.shape != (K, K) or bool(
            (transfer < 0).any() | (transfer.diagonal() != 1).any()
        ):
            raise ConfigError(
                f"transfer between {K} domains must be a non-negative ({K}, {K}) matrix with ones "
                "on its diagonal"
            )
        if bool(
            (self.forgetting_K < 0).any()
            | (self.forgetting_K >= 1).any()
            | (self.start_K <= 0).any()
        ):
            raise ConfigError(
                "forgetting must be at least 0 and below 1, and every domain must start with "
                "some effective tokens"
            )

    @property
    def domains(self) -> int:
        """K, the number of domains."""
        return len(self.floor_K)

    @classmethod
    def draw(
        cls, domains: int, seed: int, *, intervals: int = 25, forgetting: float = 0.3
    ) -> ScalingLaws:
        """Draw random laws.

        Domains are points on a sphere. Near domains teach each other more. A few domains are
        forgotten fast.
        """
        rng = np.random.default_rng([seed, domains])
        points_KD = rng.normal(size=(domains, 6))
        points_KD /= np.linalg.norm(points_KD, axis=1, keepdims=True)
        transfer_KK = np.exp(4 * (points_KD @ points_KD.T - 1))
        np.fill_diagonal(transfer_KK, 1.0)
        return cls(
            floor_K=torch.from_numpy(rng.uniform(1.0, 2.5, domains)),
            scale_K=torch.from_numpy(rng.uniform(0.5, 4.0, domains)),
            exponent_K=torch.from_numpy(rng.uniform(0.2, 0.7, domains)),
            transfer_KK=torch.from_numpy(transfer_KK),
            forgetting_K=torch.from_numpy(forgetting * rng.uniform(0, 1, domains) ** 2),
            start_K=torch.from_numpy(rng.uniform(0.2, 1.0, domains) * 1e6 / domains),
            value_K=torch.from_numpy(rng.dirichlet(np.ones(domains))),
            intervals=intervals,
        )

    def step(self, effective_K: Tensor, weights_K: Tensor, number: int) -> Tensor:
        """Return the effective tokens (…, K) after interval `number` (from 0) under `weights_K`."""
        pace, fade = (one[number] if one else 1.0 for one in (self.pace_T, self.fade_T))
        return self.after(effective_K, weights_K, pace, fade)

    def alignment(self, effective_K: Tensor) -> Tensor:
        """Return the Gram matrix (K, K) of the domains' gradients."""
        slope_K = (
            self.scale_K * self.exponent_K * (effective_K / self.unit).pow(-self.exponent_K - 1)
        )
        root_K = slope_K.sqrt()
        return root_K[:, None] * root_K * (self.transfer_KK + self.transfer_KK.T) / 2

    def losses(self, weights_TK: Tensor) -> Tensor:
        """Return the losses (T+1, K) along a path of mixtures (T, K); differentiable."""
        effective_K = self.start_K
        losses = [self.loss(effective_K)]
        for number, weights_K in enumerate(weights_TK):
            effective_K = self.step(effective_K, weights_K, number)
            losses.append(self.loss(effective_K))
        return torch.stack(losses)

    def objective(self, weights_TK: Tensor) -> Tensor:
        """Return the valued loss Σ v_i L_i at the end of a path of mixtures (T, K)."""
        return self.losses(weights_TK)[-1] @ self.value_K

    def best_static(self, steps: int = 400) -> Tensor:
        """Return the constant mixture (K,) with the lowest objective, found by Adam."""
        return self._climb(1, steps)[0]

    def best_schedule(self, steps: int = 400) -> Tensor:
        """Return the path of mixtures (T, K) with the lowest objective, found by Adam."""
        return self._climb(self.intervals, steps)

    def _climb(self, rows: int, steps: int) -> Tensor:
        logits_TK = torch.zeros(rows, self.domains, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits_TK], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(
                self.objective(logits_TK.softmax(-1).expand(self.intervals, -1))
            )
            optimizer.step()
            schedule.step()
        return logits_TK.detach().softmax(-1)


@register_trainer("simulator")
@dataclass
class Simulator:
    """A `Trainer` over `ScalingLaws`. Deterministic given `seed`.

    `noise` is the standard deviation, in nats, of the training loss of a domain with weight 1/K. It
    is proportional to 1/√weight. The noise of "valid_loss" is a tenth of it, because the same
    tokens are measured each time. For "alignment" it is the standard deviation of a cosine.
    """

    laws: ScalingLaws
    seed: int
    noise: float = 0.02
    steps_per_interval: int = 100
    domains: tuple[Domain, ...] = ()
    cost: Cost = field(default_factory=Cost)
    step: int = 0

    def __post_init__(self) -> None:
        laws = self.laws
        if not self.domains:
            tokens = math.ceil(laws.interval * laws.intervals)
            self.domains = tuple(Domain(f"domain{i}", tokens) for i in range(laws.domains))
        if len(self.domains) != laws.domains:
            raise ConfigError(f"the laws are for {laws.domains} domains, got {len(self.domains)}")
        self._effective_K = laws.start_K.clone()
        self._rng = np.random.default_rng(self.seed)
        self._probes: tuple[str, ...] = ()

    @classmethod
    def build(
        cls, model: str | Mapping[str, Any], corpus: Domains, settings: TrainerSettings, ranks: Any
    ) -> Simulator:
        """Build a world over the corpus's domains, drawn from `settings.seed`.

        Steps and tokens are those of `settings`. `model` is not used, and every rank simulates the
        same run.
        """
        intervals = math.ceil(settings.total_steps / settings.interval)
        laws = ScalingLaws.draw(len(corpus.domains), settings.seed, intervals=intervals)
        interval = settings.interval * settings.batch_size * settings.sequence_length
        return cls(
            replace(
                laws,
                interval=float(interval),
                unit=float(interval),
                start_K=laws.start_K * (interval / laws.interval),
            ),
            seed=settings.seed,
            steps_per_interval=settings.interval,
            domains=tuple(corpus.domains),
        )

    @classmethod
    def price(
        cls, model: str | Mapping[str, Any], corpus: Domains, settings: TrainerSettings
    ) -> Cost:
        """Return the cost of a whole run."""
        intervals = math.ceil(settings.total_steps / settings.interval)
        interval = settings.interval * settings.batch_size * settings.sequence_length
        return cls._price(intervals * interval)

    @property
    def done(self) -> bool:
        return self.step >= self.laws.intervals * self.steps_per_interval

    def start(self, probes: Sequence[Probe]) -> Signals:
        self._attach(probes)
        return self._signals(np.zeros(self.laws.domains, np.int64))

    def advance(self, mixture: Mixture) -> Signals:
        """Simulate one interval. Raises `TrainingError` after the end of the run."""
        if self.done:
            raise TrainingError(
                f"the simulated run ended at step {self.step}: build another simulator"
            )
        weights_K = mixture.to([domain.name for domain in self.domains]).weights_K
        self._effective_K = self.laws.step(
            self._effective_K,
            torch.from_numpy(weights_K.copy()),
            self.step // self.steps_per_interval,
        )
        tokens_K = np.rint(weights_K * self.laws.interval).astype(np.int64)
        self.step += self.steps_per_interval
        self.cost = self.cost + self._price(int(tokens_K.sum()))
        return self._signals(tokens_K)

    def _attach(self, probes: Sequence[Probe]) -> None:
        self._probes = tuple(probe.name for probe in probes)
        if TARGET_GAIN in self._probes:
            self._probes = (*self._probes, SQUARE, ROWS)
        known = ("alignment", TARGET_GAIN, "weight_norms", "evaluation", "valid_loss", "loss")
        unknown = [probe.name for probe in probes if probe.name not in known]
        if unknown:
            raise ConfigError(
                f"the simulator cannot measure {', '.join(unknown)}: it knows {', '.join(known)}"
            )

    def _signals(self, tokens_K: np.ndarray[Any, Any]) -> Signals:
        laws = self.laws
        K = laws.domains
        true_K = laws.loss(self._effective_K).numpy()
        share_K = tokens_K / max(tokens_K.sum(), 1)
        train_K = true_K + self.noise * self._rng.normal(size=K) / np.sqrt(
            K * np.maximum(share_K, 1e-6)
        )
        gram_KK = laws.alignment(self._effective_K).numpy()
        root_K = np.sqrt(gram_KK.diagonal())
        gram_noise_KK = self._rng.normal(size=(K, K)) * self.noise * root_K[:, None] * root_K
        valid_K = true_K + 0.1 * self.noise * self._rng.normal(size=K)
        done = self.step / (laws.intervals * self.steps_per_interval)
        norms = np.arange(1, _LAYERS + 1) * (10 + np.log1p(done * 10)) + 0.01 * self._rng.normal(
            size=_LAYERS
        )
        target_K = np.array([domain.is_target for domain in self.domains])
        of_field_FK = np.stack([~target_K, target_K])
        noisy_KK = gram_KK + (gram_noise_KK + gram_noise_KK.T) / 2
        measured = {
            "evaluation": Measured.mean(of_field_FK @ -valid_K, of_field_FK.sum(1)),
            "alignment": Measured.all(noisy_KK),
            **self._target_gain(gram_KK, tokens_K > 0),
            "weight_norms": Measured.all(norms),
            "valid_loss": Measured.all(valid_K),
        }
        return Signals(
            domains=self.domains,
            step=self.step,
            progress=done,
            tokens_K=tokens_K,
            loss=Measured(np.where(tokens_K > 0, train_K, 0.0), tokens_K > 0),
            probes={
                name: measured[name] for name in ("valid_loss", *self._probes) if name in measured
            },
        )

    def _target_gain(self, gram_KK: FloatArray, read_K: BoolArray) -> dict[str, Measured]:
        """Cosines with the valued gradient, as means of rows that deviate by `noise` times √rows.

        They have a generator of their own, so that they change no other measurement.
        """
        value_K = self.laws.value_K.numpy()
        towards_K = gram_KK @ value_K
        size_K = np.sqrt(gram_KK.diagonal() * float(value_K @ towards_K))
        noise_K = np.random.default_rng([self.seed, self.step]).normal(size=len(value_K))
        cosine_K = towards_K / size_K + self.noise * noise_K
        return {
            TARGET_GAIN: Measured(cosine_K, read_K),
            SQUARE: Measured(cosine_K**2 + self.noise**2 * _ROWS, read_K),
            ROWS: Measured.all(np.where(read_K, float(_ROWS), 0.0)),
        }

    @staticmethod
    def _price(tokens: int) -> Cost:
        return Cost(tokens=tokens, flops=_FLOPS_PER_TOKEN * tokens)

    def valued_loss(self) -> float:
        """Return the current valued loss Σ v_i L_i, without noise."""
        return float(self.laws.loss(self._effective_K) @ self.laws.value_K)

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "tokens": self.cost.tokens,
            "effective": self._effective_K.numpy().copy(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        """Continue from `state`.

        Raises `CheckpointError` if it has another number of domains.
        """
        effective_K: FloatArray = np.array(state["effective"])
        if effective_K.shape != (self.laws.domains,):
            raise CheckpointError(
                f"the state has {len(effective_K)} domains, this simulator {self.laws.domains}"
            )
        self._attach(probes)
        self._effective_K = torch.from_numpy(effective_K)
        self.step = int(state["step"])
        self.cost = self._price(int(state["tokens"]))
        self._rng.bit_generator.state = state["rng"]

    def export(self, folder: Path) -> None:
        """Write nothing, because there is no model."""
