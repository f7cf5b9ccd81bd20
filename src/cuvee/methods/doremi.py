"""DoReMi: domain reweighting with minimax optimization.

Source: Xie et al. 2023, arXiv 2305.10429, NeurIPS 2023.

    propose   a reference run with the uniform mixture,
              then a proxy run under `GroupDRO` with the reference run's final losses
    commit    the mean of the proxy's mixtures, static

The proxy follows algorithm 1 of the paper:

    α_i ← α_i exp(η max(ℓ_i − ℓ_ref,i, 0)), then divided by the sum
    α   ← (1 − c) α + c/K

Deviations: the paper draws uniform batches, weights their losses by α, clips the excess loss at 0
per token, and updates after every step. Here α is the mixture that is drawn, the excess is that of
a domain's mean loss, and the update is after every interval. The reference loss is one number per
domain, its mean over validation text; in the paper, the reference model also reads each training
batch. The paper allows any mixture for the reference run; here it is uniform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, Probe, State
from cuvee.core.registry import register_method, register_policy
from cuvee.core.trajectory import Run, Trajectory
from cuvee.policies.fixed import Fixed


@register_method("doremi")
@dataclass(frozen=True)
class DoReMi:
    """Domain reweighting with minimax optimization.

    `step_size` is η and `smoothing` is c, see `GroupDRO`.
    """

    step_size: float = 1.0
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        # Raises for bad settings here, not when the run starts.
        GroupDRO({}, self.step_size, self.smoothing)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the reference run's policy, then the proxy's, or none if both are logged.

        Raises `PolicyError` if the reference run lacks a final validation loss of a domain.
        """
        reference, proxy = self._split(corpus, logged)
        if reference is None:
            return (Fixed(Mixture.uniform([domain.name for domain in corpus.domains])),)
        return (
            () if proxy else (GroupDRO(_final_losses(reference), self.step_size, self.smoothing),)
        )

    def check(self, domains: Sequence[Domain], validated: frozenset[str]) -> None:
        """Raises `PolicyError` if the reference run could not measure the validation loss of every
        domain.
        """
        if missing := [domain.name for domain in domains if domain.name not in validated]:
            raise PolicyError(
                f"DoReMi needs the validation loss of every domain, and {', '.join(missing[:5])} will have none: give each a "
                "`valid` split, and train.validation_tokens above 0"
            )

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the static mixture. Raises `PolicyError` if no proxy run is logged."""
        _, proxy = self._split(corpus, logged)
        if proxy is None:
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        path = proxy.trajectory
        return Fixed(Mixture.normalise(path.names, path.weights_TK().mean(axis=0)))

    def _split(self, corpus: Domains, logged: Sequence[Run]) -> tuple[Run | None, Run | None]:
        """Return the reference run (the first that was uniform throughout) and the proxy run."""
        uniform = Mixture.uniform([domain.name for domain in corpus.domains])
        started = [run for run in logged if len(run.trajectory)]
        reference = next(
            (
                run
                for run in started
                if all(
                    np.array_equal(m.weights_K, uniform.weights_K) for m in run.trajectory.mixtures
                )
            ),
            None,
        )
        others = [run for run in started if run is not reference]
        return reference, others[0] if others else None


def _final_losses(reference: Run) -> dict[str, float]:
    last = reference.trajectory.last
    measured = last.probes.get("valid_loss")
    if measured is None or not measured.present.all():
        raise PolicyError(
            f"the reference run {reference.id} does not have a final validation loss of every "
            "domain: give each a `valid` split, and set train.validation_tokens above 0"
        )
    return dict(zip(last.names, measured.values.tolist(), strict=True))


@register_policy("group_dro")
class GroupDRO:
    """Multiplicative weights with the excess loss as reward. Starts uniform.

    - `reference`: ℓ_ref by domain name, in nats per token.
    - `step_size`: η > 0.
    - `smoothing`: c, at least 0 and below 1.
    """

    probes: Sequence[Probe] = ()

    def __init__(
        self, reference: Mapping[str, float], step_size: float = 1.0, smoothing: float = 1e-3
    ) -> None:
        if not step_size > 0:
            raise PolicyError(f"step_size is {step_size}: it must be above 0")
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._reference = dict(reference)
        self._step_size = step_size
        self._smoothing = smoothing
        self._weights: dict[str, float] = {}

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture. A domain that joins later starts at weight 1/K."""
        uniform = 1.0 / len(so_far.names)
        return Mixture.normalise(
            so_far.names, [self._weights.get(name, uniform) for name in so_far.names]
        )

    def learn(self, so_far: Trajectory) -> Metrics:
        """Update the weights.

        The excess is 0 for a domain that was not drawn or has no reference loss.
        """
        loss = so_far.last.loss
        names = so_far.names
        known_K = np.array([name in self._reference for name in names]) & loss.present
        reference_K = np.array([self._reference.get(name, 0.0) for name in names])
        excess_K = np.where(known_K, np.maximum(loss.values - reference_K, 0.0), 0.0)
        # Without smoothing, a weight can become 0. It then stays 0.
        with np.errstate(divide="ignore"):
            logs_K = np.log(self.mixture(so_far).weights_K) + self._step_size * excess_K
        raised_K = np.exp(logs_K - logs_K.max())
        smoothed_K = (1.0 - self._smoothing) * raised_K / raised_K.sum() + self._smoothing / len(
            names
        )
        self._weights = dict(zip(names, smoothed_K.tolist(), strict=True))
        return {"excess": dict(zip(names, excess_K.tolist(), strict=True))}

    def settings(self) -> dict[str, Any]:
        return {
            "reference": self._reference,
            "step_size": self._step_size,
            "smoothing": self._smoothing,
        }

    def state_dict(self) -> State:
        return {"weights": dict(self._weights)}

    def load_state_dict(self, state: State) -> None:
        self._weights = dict(state["weights"])
