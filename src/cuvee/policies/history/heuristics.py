"""Heuristics: how a person would judge the next mixture of a continual pre-training run.

Each is a pure function of M candidate mixtures (M, K) → scores (M,); higher is better. The scoring
sampler of Data Mixing Agent (arXiv 2507.15640 §3) combines them. The paper describes the sampler
and its purpose; these formulas are ours.

    smoothness          −TV(α, α_{t−1})
    target progress     −|target share of α − target share of a rising schedule|
    source coverage     −KL(source part of α ‖ token shares of the source domains)
    balance             entropy of α
    feedback direction  ± cos(α − α_{t−1}, α_{t−1} − α_{t−2})
                        + if the last change raised the feedback e, − if it lowered it

`proposals` draws the candidates: near the last mixture, towards the target domains, towards the
source domains, and anywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, Role

PROPOSALS = ("around the last", "towards the target", "back to the source", "anywhere")
_CONCENTRATIONS = (10.0, 1000.0)
_LONGEST_MOVE = 0.5
_REVIVED = 0.01
_RAREST = 1e-6


def role_shares(domains: tuple[Domain, ...], role: Role) -> FloatArray:
    """Return the (K,) token shares of the domains with this role, 0 elsewhere.

    They sum to 1. If no domain has the role, all are 0.
    """
    tokens_K = np.array(
        [domain.tokens if domain.role == role else 0 for domain in domains], dtype=np.float64
    )
    return np.asarray(tokens_K / max(tokens_K.sum(), 1.0))


def tilted(shares_K: FloatArray, factors_K: FloatArray, power: float = 1.0) -> FloatArray:
    """Return the distribution proportional to `shares_K`^`power` · `factors_K`.

    Shares of 0 stay 0. `factors_K` are positive.
    """
    products_K = np.where(shares_K > 0, shares_K, 1.0) ** power * (shares_K > 0) * factors_K
    return np.asarray(products_K / products_K.sum())


def smoothness(candidates_MK: FloatArray, last_K: FloatArray) -> FloatArray:
    """Return minus the total variation from the last mixture, −1 to 0."""
    return np.asarray(-0.5 * np.abs(candidates_MK - last_K).sum(axis=1))


def target_progress(
    candidates_MK: FloatArray, target_K: npt.NDArray[np.bool_], wanted: float
) -> FloatArray:
    """Return minus the distance of the target share from `wanted`, −1 to 0."""
    return np.asarray(-np.abs(candidates_MK[:, target_K].sum(axis=1) - wanted))


def rising_share(start: float, end: float, bend: float, progress: float) -> float:
    """Return the target share at `progress` of a schedule from `start` to `end`.

    It rises early if `bend` is below 1, and late if it is above 1.
    """
    return start + (end - start) * float(progress**bend)


def source_coverage(candidates_MK: FloatArray, source_K: FloatArray) -> FloatArray:
    """Return −KL(source part ‖ `source_K`) in nats.

    Both sum to 1 over the source domains. A candidate without source domains gets the lowest
    possible score, the one of the rarest source domain alone.
    """
    wanted_K = np.maximum(source_K[source_K > 0], _RAREST)
    parts_MK = candidates_MK[:, source_K > 0]
    totals_M = parts_MK.sum(axis=1)
    parts_MK = parts_MK / np.where(totals_M > 0, totals_M, 1.0)[:, None]
    logs_MK = np.log(np.where(parts_MK > 0, parts_MK, 1.0)) - np.log(wanted_K)
    return np.asarray(
        np.where(totals_M > 0, -(parts_MK * logs_MK).sum(axis=1), np.log(wanted_K.min()))
    )


def balance(candidates_MK: FloatArray) -> FloatArray:
    """Return the entropy in nats: 0 for one domain, ln K for uniform."""
    return np.asarray(
        -(candidates_MK * np.log(np.where(candidates_MK > 0, candidates_MK, 1.0))).sum(axis=1)
    )


def feedback_direction(
    candidates_MK: FloatArray, last_K: FloatArray, before_K: FloatArray, change: float
) -> FloatArray:
    """Return how well a candidate continues a change that helped, −1 to 1.

    It is the cosine between the candidate's change and the last change. Its sign is reversed if the
    last change lowered the feedback (`change` < 0). It is 0 if the feedback did not change, and for
    a candidate without a change.
    """
    moves_MK = candidates_MK - last_K
    move_K = last_K - before_K
    sizes_M = np.linalg.norm(moves_MK, axis=1) * np.linalg.norm(move_K)
    known_M = sizes_M > 0
    cosines_M = np.where(known_M, moves_MK @ move_K / np.where(known_M, sizes_M, 1.0), 0.0)
    return np.asarray(np.sign(change) * cosines_M)


def proposals(
    rng: np.random.Generator,
    each: int,
    last_K: FloatArray,
    source_K: FloatArray,
    target_K: FloatArray,
) -> FloatArray:
    """Return (4 · `each`, K) candidate mixtures, in blocks in the order of `PROPOSALS`.

    `last_K`, `source_K` and `target_K` each sum to 1. The concentration of the Dirichlet around the
    last mixture and the length of a change are drawn per candidate, so there are small and large
    changes.
    """
    K = len(last_K)
    low, high = np.log(_CONCENTRATIONS)
    concentrations_M1 = np.exp(rng.uniform(low, high, (each, 1)))
    # The uniform part lets a domain with weight 0 get weight again.
    centre_K = (1 - _REVIVED) * last_K + _REVIVED / K
    lengths_2M1 = rng.uniform(0.0, _LONGEST_MOVE, (2, each, 1))
    moves_2MK = last_K + lengths_2M1 * (np.stack([target_K, source_K])[:, None, :] - last_K)
    around_MK = _dirichlet(rng, concentrations_M1 * centre_K)
    return np.concatenate([around_MK, *moves_2MK, _dirichlet(rng, np.ones((each, K)))])


def _dirichlet(rng: np.random.Generator, concentrations_MK: FloatArray) -> FloatArray:
    """Draw one Dirichlet sample per row, from normalised gammas.

    The concentrations of a row sum to far more than 1, so that not all gammas underflow.
    """
    gammas_MK = rng.standard_gamma(concentrations_MK)
    return np.asarray(gammas_MK / gammas_MK.sum(axis=1, keepdims=True))
