"""What a person would look for in the next mixture of a continual pre-training run, and where they would look.

Heuristics: pure functions of M candidate mixtures (M, K) → scores (M,), higher is better, of the inductive scoring sampler of
Data Mixing Agent (arXiv 2507.15640 §3). The source names the sampler and its purpose; these terms are ours.

    smoothness          −TV(α, α_{t−1})
    target progress     −|target share of α − the share that a rising schedule asks for|
    source coverage     −KL(source part of α ‖ source field's empirical distribution)
    balance             entropy of α
    feedback direction  ± cos(α − α_{t−1}, α_{t−1} − α_{t−2}), + if the last move raised the feedback e, − if it lowered it

`proposals` draws the candidates: around the last mixture, towards the target field, back towards the source field, anywhere.
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
    """(K,) the empirical distribution of one field: each of its domains by its share of the field's tokens, 0 elsewhere, and
    0 everywhere if no domain has the role."""
    tokens_K = np.array(
        [domain.tokens if domain.role == role else 0 for domain in domains], dtype=np.float64
    )
    return np.asarray(tokens_K / max(tokens_K.sum(), 1.0))


def tilted(shares_K: FloatArray, factors_K: FloatArray, power: float = 1.0) -> FloatArray:
    """The distribution in proportion to `shares_K`^`power`, where they are not 0, times `factors_K`, which are positive."""
    products_K = np.where(shares_K > 0, shares_K, 1.0) ** power * (shares_K > 0) * factors_K
    return np.asarray(products_K / products_K.sum())


def smoothness(candidates_MK: FloatArray, last_K: FloatArray) -> FloatArray:
    """Minus the share of the batch that would change hands: −1 to 0."""
    return np.asarray(-0.5 * np.abs(candidates_MK - last_K).sum(axis=1))


def target_progress(
    candidates_MK: FloatArray, target_K: npt.NDArray[np.bool_], wanted: float
) -> FloatArray:
    """Minus how far the share of target domains is from the `wanted` one: −1 to 0."""
    return np.asarray(-np.abs(candidates_MK[:, target_K].sum(axis=1) - wanted))


def rising_share(start: float, end: float, bend: float, progress: float) -> float:
    """The target share that is wanted at `progress`: from `start` to `end`, early if `bend` is below 1, late above."""
    return start + (end - start) * float(progress**bend)


def source_coverage(candidates_MK: FloatArray, source_K: FloatArray) -> FloatArray:
    """−KL(source part ‖ `source_K`) in nats, both summing to 1 over the source domains; −KL of the rarest one alone, the worst
    there is, for a candidate that has no source."""
    wanted_K = np.maximum(source_K[source_K > 0], _RAREST)
    parts_MK = candidates_MK[:, source_K > 0]
    totals_M = parts_MK.sum(axis=1)
    parts_MK = parts_MK / np.where(totals_M > 0, totals_M, 1.0)[:, None]
    logs_MK = np.log(np.where(parts_MK > 0, parts_MK, 1.0)) - np.log(wanted_K)
    return np.asarray(
        np.where(totals_M > 0, -(parts_MK * logs_MK).sum(axis=1), np.log(wanted_K.min()))
    )


def balance(candidates_MK: FloatArray) -> FloatArray:
    """Entropy in nats: 0 for one domain, ln K for uniform."""
    return np.asarray(
        -(candidates_MK * np.log(np.where(candidates_MK > 0, candidates_MK, 1.0))).sum(axis=1)
    )


def feedback_direction(
    candidates_MK: FloatArray, last_K: FloatArray, before_K: FloatArray, change: float
) -> FloatArray:
    """Whether a candidate goes on as the last move did, if that raised the feedback (`change` > 0), or turns if it lowered it:
    −1 to 1. All 0 if nothing changed; 0 for a candidate that stays."""
    moves_MK, move_K = candidates_MK - last_K, last_K - before_K
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
    """(4 · `each`, K) candidate mixtures, in blocks in the order of `PROPOSALS`.

    `last_K`, and the empirical distributions of the source and the target field, sum to 1. The concentration of the Dirichlet
    around the last mixture and the length of a move are drawn for each candidate, so small steps and large ones are on offer.
    """
    K = len(last_K)
    low, high = np.log(_CONCENTRATIONS)
    concentrations_M1 = np.exp(rng.uniform(low, high, (each, 1)))
    centre_K = (
        1 - _REVIVED
    ) * last_K + _REVIVED / K  # or a domain without weight could never be drawn again
    lengths_2M1 = rng.uniform(0.0, _LONGEST_MOVE, (2, each, 1))
    moves_2MK = last_K + lengths_2M1 * (np.stack([target_K, source_K])[:, None, :] - last_K)
    around_MK = _dirichlet(rng, concentrations_M1 * centre_K)
    return np.concatenate([around_MK, *moves_2MK, _dirichlet(rng, np.ones((each, K)))])


def _dirichlet(rng: np.random.Generator, concentrations_MK: FloatArray) -> FloatArray:
    """One draw for each row, as normalised gammas; rows sum to far more than 1, so that never all of a row underflow."""
    gammas_MK = rng.standard_gamma(concentrations_MK)
    return np.asarray(gammas_MK / gammas_MK.sum(axis=1, keepdims=True))
