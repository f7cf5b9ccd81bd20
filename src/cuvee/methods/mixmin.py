"""MixMin: finds the mixture by minimising the loss of the mixed outputs of one proxy per domain.

Source: Thudi et al. 2025, arXiv 2502.10510.

    propose   one proxy run for each domain k, trained on that domain alone
    commit    minimise  F(w) = −Σ_x v(x) ln Σ_k w_k p_k(x)  over the simplex
              w is the mixture of the whole target run

x is a token of the objective's validation text. p_k(x) is its probability under proxy k, given the
tokens before it. v(x) is its weight in the objective; Σ v = 1. The best predictor for a mixture of
data is the same mixture of the predictors of its parts. F(w) therefore approximates the loss of a
model trained on w. F is convex.

Deviations. The released code uses p_k(x) of a whole document, divides its logarithm by the
document's length and does 100 steps of exponentiated gradient. Here x is a token, and the
multiplicative step is repeated until F is within 1e-8 nats of its minimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.methods.regmix.runs import Objective, check_objective, objective_values
from cuvee.policies.fixed import Fixed
from cuvee.probes.token_losses import NAME, ValidTokenLosses

_ROUNDS = 10_000
_GAP = 1e-8  # largest distance of F from its minimum, in nats


@register_method("mixmin")
@dataclass(frozen=True)
class MixMin:
    """The method MixMin.

    - `objective`: `valid_loss` is the mean validation loss over domains; `source_target` is half
      the mean of the source domains plus half the mean of the target domains; or weights by domain
      name.
    - `tokens`: number of validation tokens of each domain that are read.
    """

    objective: Objective = "valid_loss"
    tokens: int = 4096

    def __post_init__(self) -> None:
        check_objective(self.objective)
        self._probe()  # raises for a bad number of tokens here, not when a proxy starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the policies of the proxy runs that are not finished."""
        finished = self._logged(corpus, logged)
        return [proxy for name, proxy in self._proxies(corpus).items() if name not in finished]

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return a `Fixed` policy with its evidence.

        The evidence has the loss of the mixed outputs and of each proxy. A domain without a proxy
        has weight 0. Raises `PolicyError` if no proxy is logged, or if the objective's domains were
        not measured.
        """
        runs = self._logged(corpus, logged)
        if not runs:
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        values = objective_values(corpus.domains, list(runs.values()), self.objective)
        log_probs_NK, values_N = self._table(list(runs.values()), values)
        weights_K = mixture_of_outputs(log_probs_NK, values_N)
        losses = dict(zip(runs, (-values_N @ log_probs_NK).tolist(), strict=True))
        mixed = output_loss(weights_K, log_probs_NK, values_N)
        best = min(losses, key=losses.__getitem__)
        evidence = {
            "method": "mixmin",
            "summary": f"the mixed outputs of {len(runs)} proxies have a loss of {mixed:.4f} nats "
            f"per token on {len(values_N):,} validation tokens, the best proxy alone ({best}) "
            f"{losses[best]:.4f}",
            "loss": mixed,
            "losses": losses,
            "missing": [domain.name for domain in corpus.domains if domain.name not in runs],
        }
        names = [domain.name for domain in corpus.domains]
        return Fixed(Mixture.normalise(list(runs), weights_K).to(names), evidence)

    def _probe(self) -> ValidTokenLosses:
        named = () if isinstance(self.objective, str) else self.objective.items()
        return ValidTokenLosses([name for name, value in named if value > 0], self.tokens)

    def _proxies(self, corpus: Domains) -> dict[str, Fixed]:
        names = [domain.name for domain in corpus.domains]
        alone = {
            name: Mixture.normalise(names, [float(name == n) for n in names]) for name in names
        }
        return {name: Fixed(mixture, probes=[self._probe()]) for name, mixture in alone.items()}

    def _logged(self, corpus: Domains, logged: Sequence[Run]) -> dict[str, Run]:
        """Return the finished run of each proxy, by domain.

        Runs are matched by the settings of their policies.
        """
        ended = [run for run in logged if NAME in run.trajectory.last.probes]
        found = {}
        for name, proxy in self._proxies(corpus).items():
            wanted = proxy.settings()
            for run in ended:
                if run.config.get("policy", {}).get("settings") == wanted:
                    found[name] = run
                    break
        return found

    def _table(
        self, runs: Sequence[Run], values: Mapping[str, float]
    ) -> tuple[FloatArray, FloatArray]:
        """Return ln p_k(x) of the N tokens of all valued domains (N, K), and their weights (N,)."""
        rows = list(self._probe().domains) or list(runs[0].trajectory.names)
        log_probs = []
        weights = []
        for name, value in values.items():
            measured = [run.trajectory.last.probes[NAME] for run in runs]
            there_N = measured[0].present[rows.index(name)]
            losses_KN = np.stack([one.values[rows.index(name)][there_N] for one in measured])
            log_probs.append(-losses_KN.T)
            weights.append(np.full(len(log_probs[-1]), value / max(len(log_probs[-1]), 1)))
        return np.concatenate(log_probs), np.concatenate(weights)


def mixture_of_outputs(log_probs_NK: FloatArray, values_N: FloatArray) -> FloatArray:
    """Return the minimiser (K,) of F.

    `log_probs_NK` are natural logarithms of probabilities. `values_N` are not negative and sum to
    1.

    The step is w_k ← w_k g_k with g_k = Σ_x v(x) p_k(x) / Σ_j w_j p_j(x). This is exponentiated
    gradient with a step size that needs no tuning (expectation maximisation): F never increases.
    max_k g_k − 1 is an upper bound of F(w) − min F.
    """
    probs_NK = np.exp(log_probs_NK - log_probs_NK.max(axis=1, keepdims=True))
    weights_K = np.full(probs_NK.shape[1], 1.0 / probs_NK.shape[1])
    for _ in range(_ROUNDS):
        gains_K = (values_N / (probs_NK @ weights_K)) @ probs_NK
        if gains_K.max() - 1.0 <= _GAP:
            break
        weights_K = weights_K * gains_K
    return np.asarray(weights_K / weights_K.sum())


def output_loss(weights_K: FloatArray, log_probs_NK: FloatArray, values_N: FloatArray) -> float:
    """Return F(w) in nats per token."""
    highest_N = log_probs_NK.max(axis=1)
    mixed_N = np.exp(log_probs_NK - highest_N[:, None]) @ weights_K
    return float(-(values_N @ (np.log(mixed_N) + highest_N)))
