"""Shuffles without a table: the place of index i in a shuffled order of n things is computed from a key, i and n alone.

A Feistel network in mixed radix over a × b ≥ n with a, b ≈ √n, walked until the value falls below n (the generalised
Feistel cipher and cycle walking of J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Since
a b exceeds n by less than a, hardly any value walks. Integer arithmetic modulo 2^64 only, which is the same everywhere, so
an order does not depend on platform, Python or numpy.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]

_ROUND_PAIRS = 4
_CHUNK = 8192
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_32 = np.uint64(32)


def stable_key(*parts: object) -> int:
    """A 64-bit key from the text of `parts`, the same in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix64(value_N: WordArray) -> WordArray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection on 64 bits that spreads every bit."""
    mixed_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def epoch_keys(key_N: WordArray, epoch_N: IntArray) -> WordArray:
    """The keys of the shuffles of epochs `epoch_N` of things whose own keys are `key_N`."""
    return mix64(key_N + (epoch_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def sides(size: int) -> tuple[int, int]:
    """The radices (a, b) of the network for `size` things: a = ⌈√size⌉, b = ⌈size / a⌉. `size` may be up to 2^62."""
    a = max(1, math.isqrt(max(size, 1) - 1) + 1)
    return a, max(1, -(-size // a))


def permute(index_N: IntArray, size_N: IntArray, a_N: WordArray, b_N: WordArray, key_N: WordArray) -> IntArray:
    """For each row, the image of `index` (0 ≤ index < size) under the permutation of `size` things that `key` names.

    `a_N` and `b_N` are `sides(size)`, which callers have at hand.
    """
    value_N = np.empty(len(index_N), dtype=np.uint64)
    for begin in range(0, len(index_N), _CHUNK):  # pieces that stay in the cache through all rounds
        rows = slice(begin, begin + _CHUNK)
        value_N[rows] = _network(index_N[rows].astype(np.uint64), a_N[rows], b_N[rows], key_N[rows])
    outside = np.flatnonzero(value_N >= size_N.astype(np.uint64))
    while outside.size:
        walked = _network(value_N[outside], a_N[outside], b_N[outside], key_N[outside])
        value_N[outside] = walked
        outside = outside[walked >= size_N[outside].astype(np.uint64)]
    return value_N.astype(np.int64)


def _network(value_N: WordArray, a_N: WordArray, b_N: WordArray, key_N: WordArray) -> WordArray:
    """A permutation of [0, a b) for each row: digits of a value in mixed radix, each shifted by a hash of the other in turn."""
    left_N = value_N // b_N
    right_N = value_N - left_N * b_N
    key_N = key_N.copy()
    for _ in range(_ROUND_PAIRS):
        _shift(left_N, right_N, a_N, key_N)
        _shift(right_N, left_N, b_N, key_N)
    left_N *= b_N
    left_N += right_N
    return left_N


def _shift(digit_N: WordArray, other_N: WordArray, radix_N: WordArray, key_N: WordArray) -> None:
    """digit ← (digit + hash(other, key) × radix / 2^32) mod radix, in place; moves the key on."""
    key_N += _GOLDEN
    hash_N = other_N * np.uint64(0xBF58476D1CE4E5B9)
    hash_N += key_N
    hash_N ^= hash_N >> _32
    hash_N *= np.uint64(0x94D049BB133111EB)
    hash_N >>= _32
    hash_N *= radix_N
    hash_N >>= _32
    digit_N += hash_N
    np.minimum(digit_N, digit_N - radix_N, out=digit_N)  # below the radix the difference wraps to a huge number
