"""RegMix: finds a mixture by regression over small static runs.

Source: Liu et al. 2024, arXiv 2407.01492, ICLR 2025.

    prior     α ~ Dirichlet(s b),   b_i ∝ √(n_i / Σn),   ln s ~ U(ln 0.1, ln 5)
              weights below 2e-4 become 0
    propose   N proxy runs, each with one such α
    commit    fit the losses by domain from α (`methods.regmix.fit`), predict them for 100,000 α
              from the same prior, and average the 128 with the lowest objective

No candidate reads a domain more than `epoch_cap` times in `tokens` tokens. b and the range of s are
those of the released configuration (temperature 0.5, strength 0.1 to 5).

Deviations:

- Losses are fitted by domain and then weighted (`methods.regmix.fit` explains why), by default with
  the fit that ranks unseen proxy runs best.
- The released code draws s from 15 levels and rounds weights to multiples of 2e-4. Here s is
  continuous and nothing is rounded. Any two proxy mixtures differ by more than 0.5 % total
  variation.
- The released code also limits repetition in the proxies' mixtures, by rejection. Here only
  candidates are limited, so that one set of proxies serves target runs of any length. A weight
  above its limit is cut and the others are scaled up, because with many small domains rejection
  would leave no candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, available_K, natural_K
from cuvee.core.epochs import allowed, check_epochs, largest_shares
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.methods.regmix.fit import FITS, Fitted, fit, installed
from cuvee.methods.regmix.runs import (
    FEWEST_RUNS,
    Objective,
    Table,
    check_objective,
    check_validated,
)
from cuvee.policies.fixed import Fixed

_TEMPERATURE = 0.5
_STRENGTHS = (0.1, 5.0)
_SMALLEST_SHARE = 2e-4
_CANDIDATES = 100_000
_KEPT = 128
_NEARLY_SAME = 0.005  # smallest total variation between two proxy mixtures
_BLOCK = 256  # mixtures drawn at a time
_MOST_BLOCKS = 64
_SAME = 1e-9  # largest total variation between a proxy's mixture and the one in its log


@register_method("regmix")
@dataclass(frozen=True)
class RegMix:
    """The method RegMix.

    - `proxies`: N, the number of proxy runs.
    - `fit`: name of a fit, or `best` for the one with the best rank correlation.
    - `objective`: `valid_loss` is the mean validation loss over domains; `source_target` is half
      the mean of the source domains plus half the mean of the target domains; or weights by domain
      name.
    - `tokens`: token budget of the target run; None for no epoch cap.
    - `epoch_cap`: largest number of times that the target run may read a domain.
    """

    proxies: int = 64
    fit: Literal["best", "gaussian_process", "lightgbm", "log_linear"] = "best"
    objective: Objective = "valid_loss"
    tokens: int | None = None
    epoch_cap: float = 4.0
    seed: int = 0

    grows: ClassVar[tuple[str, ...]] = ("proxies",)

    def __post_init__(self) -> None:
        if self.proxies < FEWEST_RUNS:
            raise ConfigError(f"proxies is {self.proxies}: a fit needs at least {FEWEST_RUNS}")
        if self.fit not in ("best", *FITS):
            raise ConfigError(f"fit is {self.fit!r}: use best, {', '.join(FITS)}")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(
                f"tokens is {self.tokens}: give the target run's budget, 1 or more, or leave it out"
            )
        check_epochs("epoch_cap", self.epoch_cap)
        check_objective(self.objective)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the policies of the proxy runs that are not logged, in any order of completion.

        With a larger `proxies`, the existing runs are kept.
        """
        installed(self.fit)  # before the proxies are paid for
        names = tuple(domain.name for domain in corpus.domains)
        drawn_NK = self._drawn(corpus.domains)
        there = [run.trajectory.mixtures[0] for run in logged if len(run.trajectory)]
        there_MK = np.array(
            [mixture.to(names).weights_K for mixture in there if set(mixture.names) <= set(names)]
        )
        if len(there_MK):
            drawn_NK = drawn_NK[
                [(_total_variation(there_MK, drawn_K) > _SAME).all() for drawn_K in drawn_NK]
            ]
        return [Fixed(Mixture.normalise(names, drawn_K)) for drawn_K in drawn_NK]

    def _drawn(self, domains: tuple[Domain, ...]) -> FloatArray:
        """Return (N, K) distinct mixtures from the prior.

        With few domains, many samples of the prior have all weight on one domain.
        """
        generator = np.random.Generator(np.random.PCG64(self.seed))
        found_NK = np.empty((0, len(domains)))
        for _ in range(_MOST_BLOCKS):
            for drawn_K in draw(domains, _BLOCK, generator):
                if (_total_variation(found_NK, drawn_K) > _NEARLY_SAME).all():
                    found_NK = np.vstack([found_NK, drawn_K])
                if len(found_NK) == self.proxies:
                    return found_NK
        raise ConfigError(
            f"proxies is {self.proxies}, but over {len(domains)} domains only {len(found_NK)} "
            f"mixtures were found that differ by more than {_NEARLY_SAME:g}: ask for fewer"
        )

    def check(self, domains: Sequence[Domain], validated: frozenset[str]) -> None:
        """Raises what `commit` would for want of validation losses or an impossible cap."""
        installed(self.fit)
        check_validated(tuple(domains), validated, self.objective)
        self._ceilings(tuple(domains))

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return a `Fixed` policy with its evidence.

        The evidence has the fit, its cross-validated rank correlation, and the runs left out with
        reasons. Raises `PolicyError` if too few runs can be used, or if no fit ranks unseen runs
        better than chance.
        """
        ceilings_K = self._ceilings(corpus.domains)
        table = Table.of(corpus.domains, logged, self.objective)
        fits = [fit(name, *table.arrays) for name in installed(self.fit)]
        best = max(fits, key=lambda fitted: fitted.ranks.value)
        if best.ranks.low <= 0:
            raise PolicyError(
                f"the fit ({best.name}) ranks proxies that it has not seen with Spearman "
                f"{best.ranks.value:.2f} ({best.ranks.low:.2f} to {best.ranks.high:.2f}), which "
                f"may be chance: train more proxies (proxies is {self.proxies}), train each "
                "longer, or validate on more tokens (train.validation_tokens)"
            )
        candidates_MK = draw(
            corpus.domains, _CANDIDATES, np.random.Generator(np.random.PCG64([self.seed, 1]))
        )
        candidates_MK = capped(candidates_MK, ceilings_K, natural_K(corpus.domains))
        predicted_M = best.losses(candidates_MK) @ table.values_D
        chosen_K = candidates_MK[np.argpartition(predicted_M, _KEPT)[:_KEPT]].mean(axis=0)
        missing = len(self.propose(corpus, logged))
        evidence = {
            "method": "regmix",
            "summary": f"{best.name} ranks proxies that it has not seen with Spearman "
            f"{best.ranks.value:.3f} ({best.ranks.low:.3f} to {best.ranks.high:.3f}); "
            f"{best.ranks.runs} runs fitted, {len(table.left_out)} left out, {missing} missing",
            "fit": best.name,
            "rank_correlation": asdict(best.ranks),
            "rank_correlations": {fitted.name: fitted.ranks.value for fitted in fits},
            "predicted": _predicted(best, chosen_K, table),
            "left_out": table.left_out,
            "missing": missing,
        }
        return Fixed(
            Mixture.normalise([domain.name for domain in corpus.domains], chosen_K), evidence
        )

    def _ceilings(self, domains: tuple[Domain, ...]) -> FloatArray:
        """Return the (K,) weights at which domains are read `epoch_cap` times in the target run."""
        if self.tokens is None:
            return np.ones(len(domains))
        ceilings_K = largest_shares(allowed(self.epoch_cap, available_K(domains)), self.tokens)
        if ceilings_K.sum() < 1.0:
            total = sum(domain.tokens for domain in domains)
            raise ConfigError(
                f"the {total:,} tokens of the corpus, each read {self.epoch_cap:g} times "
                f"(epoch_cap), are fewer than the target's {self.tokens:,} (tokens): "
                "raise epoch_cap, or train on fewer tokens"
            )
        return ceilings_K


def draw(domains: tuple[Domain, ...], count: int, generator: np.random.Generator) -> FloatArray:
    """Draw (count, K) mixtures from the prior.

    Gamma variates with shapes far below 1 underflow, so their logarithms are drawn: ln G(a) = ln
    G(a + 1) + ln(U) / a.
    """
    base_K = natural_K(domains) ** _TEMPERATURE
    low, high = np.log(_STRENGTHS)
    shapes_MK = np.exp(generator.uniform(low, high, (count, 1))) * (base_K / base_K.sum())
    logs_MK = (
        np.log(generator.standard_gamma(shapes_MK + 1.0))
        + np.log1p(-generator.random(shapes_MK.shape)) / shapes_MK
    )
    mixtures_MK = np.exp(logs_MK - logs_MK.max(axis=1, keepdims=True))
    mixtures_MK /= mixtures_MK.sum(axis=1, keepdims=True)
    mixtures_MK[mixtures_MK < _SMALLEST_SHARE] = 0.0
    return np.asarray(mixtures_MK / mixtures_MK.sum(axis=1, keepdims=True))


def capped(mixtures_MK: FloatArray, ceilings_K: FloatArray, shares_K: FloatArray) -> FloatArray:
    """Cut weights to their ceilings and scale up the others, until all are within (M, K).

    The ceilings sum to 1 or more. If all domains of a mixture are at their ceilings, the rest goes
    to the other domains in proportion to their natural shares `shares_K`.
    """
    return capped_phases(mixtures_MK[:, None], ceilings_K, shares_K, np.ones(1))[:, 0]


def capped_phases(
    mixtures_MPK: FloatArray, ceilings_K: FloatArray, shares_K: FloatArray, phases_P: FloatArray
) -> FloatArray:
    """Do the same as `capped` for runs with P phases, (M, P, K).

    A ceiling limits a domain's mean weight over the run. `phases_P` are the lengths of the phases
    and sum to 1.
    """
    within_MPK = mixtures_MPK + 1e-12 * shares_K
    fixed_MPK = np.zeros_like(within_MPK)
    full_MK = np.zeros((len(within_MPK), len(ceilings_K)), dtype=np.bool_)
    while True:
        free_MPK = np.where(full_MK[:, None], 0.0, within_MPK)
        room_MP1 = 1.0 - fixed_MPK.sum(axis=2, keepdims=True)
        total_MP1 = free_MPK.sum(axis=2, keepdims=True)
        scaled_MPK = free_MPK * (room_MP1 / np.where(total_MP1 > 0, total_MP1, 1.0))
        mean_MK = np.einsum("mpk,p->mk", scaled_MPK, phases_P)
        over_MK = ~full_MK & (mean_MK > ceilings_K)
        if not over_MK.any():
            return np.asarray(fixed_MPK + scaled_MPK)
        cut_MK = np.where(over_MK, ceilings_K / np.where(over_MK, mean_MK, 1.0), 0.0)
        fixed_MPK = fixed_MPK + scaled_MPK * cut_MK[:, None]
        full_MK |= over_MK


def _total_variation(mixtures_MK: FloatArray, mixture_K: FloatArray) -> FloatArray:
    return np.asarray(0.5 * np.abs(mixtures_MK - mixture_K).sum(axis=1))


def _predicted(best: Fitted, chosen_K: FloatArray, table: Table) -> dict[str, float]:
    return dict(zip(table.valued, best.losses(chosen_K[None])[0].tolist(), strict=True))
