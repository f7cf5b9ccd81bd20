"""`CurveModel`: laws of training fitted to every loss and feedback of logged runs, as an ensemble.

A unit of text is the budget of a logged run; s is the part of it that an interval reads. Two
families of laws predict the loss of domain i from what was read, w_j being worth of text of j:

    power      L = E + D m^−β,   m ← κ^(s φ) m + s η g Σ_j T_ij w_j,                      m_0 = 1
    relaxing   L = E + D x,      x ← e^(−s η g Σ_j T_ij w_j) x + (1 − κ^(s φ)) (r − x),   x_0 = 1

Every domain has its own start E + D, reducible loss D, decay β or limit r, pace g, retention κ, and
a place z with T_ij = exp(−|z_i − z_j|²). They are drawn towards the mean of their role. η and φ are
powers of a learning rate that decays along a cosine. The worth of text read a times is that of
Muennighoff et al. 2023 (arXiv:2305.16264), min(a, 1) + R (1 − exp(−max(a − 1, 0) / R)), less what
it was before. The feedback of a field falls with the losses of its role.

All parameters are fitted by gradient (Adam) to all timesteps of all runs. A member of the ensemble
is a family with its own bootstrap sample of whole runs. Families are weighted by their error about
the feedback at the end of runs that a member has not seen. Tokens enter, not intervals, so runs of
other lengths and with other domain sizes are predicted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import available_K
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Trajectory
from cuvee.simulation.dynamics_model import domain_change

FAMILIES = ("power", "relaxing")
_PLACES = 3
_BY_DOMAIN = ("reducible", "decay", "pace", "retention")
# Means of the parameters before anything is known, on the scales of `_Parameters`.
_BEFORE = {"reducible": 0.0, "decay": -1.0, "pace": 1.0, "retention": 0.0}
_REPEATS = float(np.log(5.0))
FEWEST_RUNS = 4


@dataclass(frozen=True)
class RunText:
    """What is known of a run before it begins.

    `unit` are the tokens of a unit of text, `share_T` (T,) the part of it that each interval reads,
    and `available_K` (K,) the tokens of each domain.
    """

    unit: float
    share_T: FloatArray
    available_K: FloatArray

    @classmethod
    def of_length(
        cls, unit: float, tokens: float, intervals: int, available: FloatArray
    ) -> RunText:
        """Return a run of `tokens` tokens in equal intervals."""
        return cls(unit, np.full(intervals, tokens / unit / intervals), available)


@dataclass(frozen=True)
class Predicted:
    """Losses (…, T+1, K) and feedback by field (…, T+1, 2) of one path for each member."""

    loss_TK: Tensor
    fields_T2: Tensor


class _Logs:
    """Logged runs of one domain space as tensors."""

    def __init__(self, runs: Sequence[Trajectory]) -> None:
        first = runs[0]
        self.target_K = np.array([domain.is_target for domain in first.domains])
        signals = [run.signals[1:] for run in runs]
        tokens_NT = np.array([[one.tokens_K.sum() for one in run] for run in signals], np.float64)
        unit = float(tokens_NT.sum(1).mean())
        self.text = RunText(unit, tokens_NT.mean(0) / unit, available_K(first.domains))
        self.weights_NTK = torch.from_numpy(np.stack([run.weights_TK() for run in runs])).float()
        losses = np.array([[one.loss.filled(np.nan) for one in run] for run in signals])
        self.seen_NTK = torch.from_numpy(np.isfinite(losses)).float()
        self.loss_NTK = torch.from_numpy(np.nan_to_num(losses)).float()
        asked = np.array(
            [[one.probes["evaluation"].filled(np.nan) for one in run.signals] for run in runs]
        )
        base_N12 = asked[:, :1]
        fields_NT2 = ((asked - base_N12) / np.abs(base_N12))[:, 1:]
        self.answered_NT2 = torch.from_numpy(np.isfinite(fields_NT2)).float()
        self.fields_NT2 = torch.from_numpy(np.nan_to_num(fields_NT2)).float()
        early_K = np.nanmean(np.where(np.isfinite(losses), losses, np.nan)[:, :2], axis=(0, 1))
        self.start_K = np.where(np.isfinite(early_K), early_K, np.nanmean(early_K))


class _Parameters:
    """The parameters of M members of one family, as leaves for an optimizer."""

    def __init__(self, family: str, logs: _Logs, members: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        K = len(logs.target_K)

        def leaf(*shape: int, middle: float = 0.0, spread: float = 0.0) -> Tensor:
            noise = spread * torch.randn(members, *shape, generator=generator)
            return (middle + noise).requires_grad_()

        self.family = family
        self.role_2K = torch.from_numpy(np.stack([~logs.target_K, logs.target_K])).float()
        self.start_K = torch.from_numpy(logs.start_K).float()
        self.leaves = {
            "start": leaf(K, spread=0.01),
            "places": leaf(K, _PLACES, spread=0.5),
            "powers": leaf(2, spread=0.2),
            "final": leaf(1, middle=-1.0, spread=0.3),
            "repeats": leaf(1, middle=_REPEATS, spread=0.3),
            "answers": leaf(K),
            "scale": leaf(2),
            "noise": leaf(2, middle=-4.0),
        }
        for name in _BY_DOMAIN:
            self.leaves[name] = leaf(2, middle=_BEFORE[name], spread=0.3)
            self.leaves[f"{name}_K"] = leaf(K, spread=0.1)

    def of(self, name: str) -> Tensor:
        """Return (M, K) a parameter by domain: the mean of its role and its own deviation."""
        return self.leaves[name] @ self.role_2K + self.leaves[f"{name}_K"]

    def penalty(self) -> Tensor:
        """Return (M,) minus the logarithm of the prior."""
        leaves = self.leaves
        own = [leaves[f"{name}_K"].square().sum(-1) / 0.5 for name in _BY_DOMAIN]
        middle = [(leaves[name] - _BEFORE[name]).square().sum(-1) / 4 for name in _BY_DOMAIN]
        whole = [
            leaves["places"].square().sum((-1, -2)) / 2,
            leaves["answers"].square().sum(-1),
            leaves["start"].square().sum(-1) / 0.02,
            leaves["powers"].square().sum(-1) / 2,
            (leaves["repeats"][:, 0] - _REPEATS).square() / 0.5,
            leaves["scale"].square().sum(-1) / 0.1,
        ]
        return torch.stack([*own, *middle, *whole]).sum(0)


class _Laws:
    """The laws of M members, as functions of what is read. Built anew for each evaluation."""

    def __init__(self, parameters: _Parameters) -> None:
        leaves = parameters.leaves
        self.family = parameters.family
        self.start_MK = parameters.start_K + leaves["start"]
        self.reducible_MK = self.start_MK * parameters.of("reducible").sigmoid()
        self.decay_MK = parameters.of("decay").exp()
        self.pace_MK = parameters.of("pace").exp()
        self.fade_MK = parameters.of("retention").exp()  # −ln κ
        places = leaves["places"]
        apart = (places[:, :, None] - places[:, None]).square().sum(-1)
        self.transfer_MKK = (-apart).exp()
        self.repeats_M1 = leaves["repeats"].exp()
        self.powers_M2 = leaves["powers"].exp()
        self.final_M1 = leaves["final"].sigmoid()
        logits = leaves["answers"][:, None] + parameters.role_2K.clamp(min=1e-9).log()
        # In units of the first loss of the role, as the feedback is.
        base_M2 = (parameters.role_2K * self.start_MK[:, None]).sum(-1) / parameters.role_2K.sum(-1)
        self.value_M2K = (leaves["scale"].exp() / base_M2)[..., None] * logits.softmax(-1)

    def rates(self, progress_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return η and φ, (M, T) each, at that progress."""
        decayed_T = 0.5 * (1 + (np.pi * progress_T).cos())
        rate_MT = self.final_M1 + (1 - self.final_M1) * decayed_T
        relative_MT = (2 * rate_MT / (1 + self.final_M1)).clamp(min=1e-3)
        return relative_MT ** self.powers_M2[:, :1], relative_MT ** self.powers_M2[:, 1:]

    def after(self, state: Tensor, learned: Tensor, left: Tensor) -> Tensor:
        """Return the state (M, N, K) after an interval.

        `learned` is what was taught, and `left` what is retained, of the state of each domain.
        """
        if self.family == "power":
            return left * state + learned
        return (-learned).exp() * state + (1 - left) * (self.decay_MK[:, None] - state)

    def loss(self, state: Tensor) -> Tensor:
        """Return the losses (M, …, K) at that state (M, …, K)."""
        shape = (len(state), *(1,) * (state.dim() - 2), state.shape[-1])
        start, reducible, decay = (
            one.view(shape) for one in (self.start_MK, self.reducible_MK, self.decay_MK)
        )
        risen = state.clamp(min=1e-3) ** -decay if self.family == "power" else state
        return start + reducible * (risen - 1)

    def taught(self, weights: Tensor, text: RunText) -> Tensor:
        """Return Σ_j T_ij w_j (M, N, T, K), with repeated text at its worth."""
        unit_K = torch.from_numpy(text.available_K / text.unit).float().clamp(min=1e-9)
        read = weights * torch.from_numpy(text.share_T).float()[:, None] / unit_K
        epochs = read.cumsum(-2)
        repeats = self.repeats_M1[..., None, None]
        worth = unit_K * (fresh(epochs, repeats) - fresh(epochs - read, repeats))
        return worth @ self.transfer_MKK.transpose(-1, -2)[:, None]

    def play(self, weights: Tensor, text: RunText) -> Predicted:
        """Play N paths (N, T, K), or others for each member (M, N, T, K)."""
        share_T = torch.from_numpy(text.share_T).float()
        eta_MT, phi_MT = self.rates((share_T.cumsum(0) - share_T / 2) / share_T.sum())
        learned = self.taught(weights, text) * (self.pace_MK[:, None] * eta_MT[..., None])[:, None]
        left_MTK = (-share_T[:, None] * self.fade_MK[:, None] * phi_MT[..., None]).exp()
        state = torch.ones_like(learned[:, :, 0])
        states = [state]
        for t in range(len(share_T)):
            state = self.after(state, learned[:, :, t], left_MTK[:, None, t])
            states.append(state)
        loss = self.loss(torch.stack(states, -2))
        fallen = self.start_MK[:, None, None] - loss
        return Predicted(loss, torch.einsum("mntk,mfk->mntf", fallen, self.value_M2K))


def fresh(epochs: Tensor, repeats: Tensor) -> Tensor:
    """Return what `epochs` passes are worth, in passes over new text."""
    again = (epochs - 1).clamp(min=0)
    return epochs.clamp(max=1) + repeats * (1 - (-again / repeats).exp())


class CurveModel:
    """The fitted ensemble.

    `weight_M` (M,) are the weights of its members, which sum to 1. `errors` are the root mean
    squares, by family, of errors of e at the end of runs that the members have not seen. `error` is
    that of the weighted ensemble's families.
    """

    def __init__(
        self,
        parameters: Sequence[_Parameters],
        text: RunText,
        errors: dict[str, float],
        feedback_weight: float,
    ) -> None:
        self._parameters = parameters
        self.text = text
        self.errors = errors
        self._feedback_2 = torch.tensor([feedback_weight, 1 - feedback_weight])
        trust = np.array([errors[one.family] ** -4.0 for one in parameters])
        self.trust = trust / trust.sum()
        """(F,) the weights of the families, as in `laws`."""
        members = [len(one.leaves["start"]) for one in parameters]
        self.weight_M = torch.from_numpy(
            np.repeat(self.trust / members, members).astype(np.float32)
        )
        with torch.no_grad():
            self.laws = [_Laws(one) for one in parameters]
        self.error = float(
            np.sqrt(np.average([errors[one.family] ** 2 for one in parameters], weights=trust))
        )

    def noise(self, count: int, has_feedback: float) -> tuple[Tensor, ...]:
        """Return the fitted noise of `count` runs, the fields of `universal.MeasurementNoise`."""
        log_std_2 = torch.cat([one.leaves["noise"].detach() for one in self._parameters]).mean(0)
        wide = torch.ones(count, 1)
        loss, feedback = (wide * one.exp() for one in log_std_2)
        return has_feedback * wide, loss, feedback, torch.inf * wide

    def gains(self, weights_TK: Tensor, text: RunText | None = None) -> Tensor:
        """Return e (M,) at the end of a path of mixtures (T, K), by member; differentiable.

        `text` describes the run; by default it is as long as those that were logged.
        """
        played = [laws.play(weights_TK[None], text or self.text) for laws in self.laws]
        ends_M2 = torch.cat([one.fields_T2[:, 0, -1] for one in played])
        return ends_M2 @ self._feedback_2

    def prudent(self, weights_TK: Tensor, kappa: float, text: RunText | None = None) -> Tensor:
        """Return mean − `kappa` · deviation of e over the members."""
        gain_M = self.gains(weights_TK, text)
        mean = self.weight_M @ gain_M
        variance = self.weight_M @ (gain_M - mean).square()
        return mean - kappa * (variance + 1e-12).sqrt()


def fit_curves(
    runs: Sequence[Trajectory],
    feedback_weight: float = 0.5,
    *,
    families: Sequence[str] = FAMILIES,
    members: int = 4,
    steps: int = 300,
    seed: int = 0,
) -> CurveModel:
    """Fit `members` members of each family to `runs`. Deterministic.

    The runs must have the same domains and intervals. What was not measured, because a run was
    stopped, is absent. Raises
    `PolicyError` if fewer than 4 runs are given, or if their domains changed.
    """
    if len(runs) < FEWEST_RUNS:
        raise PolicyError(
            f"{len(runs)} runs are too few to fit laws to, {FEWEST_RUNS} are needed: run more proxies "
            "(`cuvee search`)"
        )
    if changed := [change for run in runs if (change := domain_change(run))]:
        raise PolicyError(f"laws cannot be fitted to a run: {changed[0]}. Leave it out")
    logs = _Logs(runs)
    rng = np.random.default_rng([seed, 23])
    parameters = []
    errors = {}
    feedback_2 = torch.tensor([feedback_weight, 1 - feedback_weight])
    for number, family in enumerate(families):
        counts_MN = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=members)
        fitted = _Parameters(family, logs, members, seed * 100 + number)
        predicted = _fit(fitted, logs, torch.from_numpy(counts_MN).float(), steps)
        wrong_MN = ((predicted.fields_T2[:, :, -1] - logs.fields_NT2[:, -1]) @ feedback_2).numpy()
        unseen_MN = (counts_MN == 0) & (logs.answered_NT2[:, -1].min(-1).values.numpy() > 0)
        errors[family] = max(float(np.sqrt(np.square(wrong_MN[unseen_MN]).mean())), 1e-6)
        parameters.append(fitted)
    return CurveModel(parameters, logs.text, errors, feedback_weight)


def _fit(parameters: _Parameters, logs: _Logs, counts_MN: Tensor, steps: int) -> Predicted:
    """Fit in place by Adam and return the predictions of the logged runs."""
    optimizer = torch.optim.Adam(parameters.leaves.values(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # A domain's loss is measured on its own rows only, so a rare domain's is noisier.
    exact_NTK = logs.seen_NTK * logs.weights_NTK * logs.weights_NTK.shape[-1]
    for _ in range(steps):
        optimizer.zero_grad()
        predicted = _Laws(parameters).play(logs.weights_NTK, logs.text)
        log_std = parameters.leaves["noise"]
        wrong_loss = (predicted.loss_TK[:, :, 1:] - logs.loss_NTK).square()
        wrong_fields = (predicted.fields_T2[:, :, 1:] - logs.fields_NT2).square()
        by_loss = _likelihood(wrong_loss, log_std[:, 0], exact_NTK, logs.seen_NTK, counts_MN)
        by_fields = _likelihood(
            wrong_fields, log_std[:, 1], logs.answered_NT2, logs.answered_NT2, counts_MN
        )
        torch.autograd.backward((by_loss + by_fields + parameters.penalty()).sum())
        torch.nn.utils.clip_grad_norm_(parameters.leaves.values(), 1e3)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return _Laws(parameters).play(logs.weights_NTK, logs.text)


def _likelihood(
    wrong: Tensor, log_std_M: Tensor, exact: Tensor, seen: Tensor, counts_MN: Tensor
) -> Tensor:
    """Return (M,) minus the log-likelihood of errors with a fitted standard deviation."""
    log_std = log_std_M.clamp(min=-8.0)[:, None, None, None]
    each = 0.5 * wrong * exact * (-2 * log_std).exp() + log_std * seen
    return (each.sum((-1, -2)) * counts_MN).sum(-1)
