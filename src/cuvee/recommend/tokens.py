"""Weights of tokens, of sequences and of samples, and how one becomes the other.

    tokens       shares of the tokens that are trained on; what a plan holds
    sequences    shares of rows of fixed length; those of tokens if every row is full, as under packing
    samples      shares of documents or conversations, each as long as it is

A trainer that draws samples by weight w reads tokens in proportion to w_k l_k, where l_k is the
mean length of domain k's samples after truncation. So the weights of samples that give token shares
α are w_k ∝ α_k / l_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture

Unit = Literal["tokens", "sequences", "samples"]


def mean_lengths(
    lengths: Mapping[str, Sequence[int]], sequence_length: int | None = None
) -> dict[str, float]:
    """Tokens of a mean sample by domain; a longer one than `sequence_length` is truncated.

    Raises `ConfigError` if a domain has no sample, or none with a token.
    """
    found = {}
    for name, counts in lengths.items():
        cut = np.minimum(counts, sequence_length) if sequence_length else np.asarray(counts)
        if not len(counts) or cut.sum() <= 0:
            raise ConfigError(f"{name} has no sample with a token: measure it again, or drop it")
        found[name] = float(cut.mean())
    return found


def to_samples(tokens: Mixture, lengths: Mapping[str, float]) -> Mixture:
    """The weights of samples that give these shares of tokens.

    Raises `ConfigError` for a domain without a length.
    """
    missing = [name for name in tokens.names if tokens[name] > 0 and not lengths.get(name, 0.0) > 0]
    if missing:
        raise ConfigError(
            f"no mean length is known of {', '.join(missing[:5])}: give --lengths, a JSON file of "
            "tokens per sample by domain"
        )
    counts = [
        share / lengths[name] if share > 0 else 0.0 for name, share in tokens.as_dict().items()
    ]
    return Mixture.normalise(tokens.names, counts)


def to_tokens(samples: Mixture, lengths: Mapping[str, float]) -> Mixture:
    """The shares of tokens that these weights of samples give: the inverse of `to_samples`."""
    counts = [share * lengths.get(name, 0.0) for name, share in samples.as_dict().items()]
    return Mixture.normalise(samples.names, counts)


def planned_against_achieved(planned: Mixture, tokens: Mapping[str, int]) -> list[str]:
    """A line for each domain, the largest difference first: planned share, achieved share,
    difference in points.
    """
    total = sum(tokens.values())
    if total <= 0:
        raise ConfigError("no token was read: there is nothing to compare with the plan")
    rows = [(name, share, tokens.get(name, 0) / total) for name, share in planned.as_dict().items()]
    rows.sort(key=lambda row: -abs(row[2] - row[1]))
    return [
        f"{name}: planned {share:.2%}, achieved {got:.2%} ({100 * (got - share):+.2f} points)"
        for name, share, got in rows
    ]
