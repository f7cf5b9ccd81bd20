"""Shuffling without a table: the image of index i of n is computed from a key, i and n.

The permutation is a Feistel network in mixed radix over a × b ≥ n with a, b ≈ √n. It is applied
repeatedly until the value is below n (the generalised Feistel cipher and cycle walking of J. Black
and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Since a b exceeds n by less
than a, few values need a second application. Unsigned integer arithmetic wraps in the same way
everywhere, so an order does not depend on platform, Python or numpy. It uses 32 bits, which
vectorise best and suffice for 2^32 items.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import IntArray

WordArray = npt.NDArray[np.uint64]
RadixArray = npt.NDArray[np.uint32]

_ROUND_PAIRS = 4
_CHUNK = 16384
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_16 = np.uint32(16)
MOST_THINGS = 1 << 32


def stable_key(*parts: object) -> int:
    """Return a 64-bit key from the text of `parts`, the same in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix64(value_N: WordArray) -> WordArray:
    """Return the finaliser of splitmix64, a bijection on 64 bits.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    mixed_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def epoch_keys(key_N: WordArray, epoch_N: IntArray) -> WordArray:
    """Return the shuffle keys (N,) of epochs `epoch_N` of domains with keys `key_N`."""
    return mix64(key_N + (epoch_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def sides(size: int) -> tuple[int, int]:
    """Return the radices (a, b) for `size` ≤ 2^32 items: a = ⌈√size⌉, b = ⌈size / a⌉."""
    assert size <= MOST_THINGS
    a = max(1, math.isqrt(max(size, 1) - 1) + 1)
    return a, max(1, -(-size // a))


def permute(
    index_N: IntArray, size_N: IntArray, a_N: RadixArray, b_N: RadixArray, key_N: WordArray
) -> IntArray:
    """Return the image of each index, 0 ≤ index < size, under the permutation named by its key.

    `a_N` and `b_N` are `sides(size)`, which callers compute once.
    """
    value_N = np.empty(len(index_N), dtype=np.int64)
    for begin in range(0, len(index_N), _CHUNK):  # chunks that stay in the CPU cache
        rows = slice(begin, begin + _CHUNK)
        value_N[rows] = _network(index_N[rows], a_N[rows], b_N[rows], key_N[rows])
    outside = np.flatnonzero(value_N >= size_N)
    while outside.size:
        walked = _network(value_N[outside], a_N[outside], b_N[outside], key_N[outside])
        value_N[outside] = walked
        outside = outside[walked >= size_N[outside]]
    return value_N


def _network(value_N: IntArray, a_N: RadixArray, b_N: RadixArray, key_N: WordArray) -> IntArray:
    """Permute [0, a b): two digits in mixed radix, each shifted in turn by a hash of the other."""
    # A value may exceed 2^32 by less than 2^16, because a b may; it is truncated here.
    low_N = value_N.astype(np.uint32)
    left_N = (
        low_N // b_N
        if int(value_N.max(initial=0)) < MOST_THINGS
        else (value_N // b_N).astype(np.uint32)
    )
    right_N = low_N - left_N * b_N
    round_key_N = key_N.astype(np.uint32)
    stride_N = (key_N >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    for _ in range(_ROUND_PAIRS):
        _shift(left_N, right_N, a_N, round_key_N)
        round_key_N += stride_N
        _shift(right_N, left_N, b_N, round_key_N)
        round_key_N += stride_N
    return left_N.astype(np.int64) * b_N + right_N


def _shift(
    digit_N: RadixArray, other_N: RadixArray, radix_N: RadixArray, key_N: RadixArray
) -> None:
    """Set digit to (digit + hash(other, key) × radix / 2^16) mod radix, for radices up to 2^16."""
    hash_N = other_N * np.uint32(0x9E3779B1)
    hash_N += key_N
    hash_N ^= hash_N >> _16
    hash_N *= np.uint32(0x7FEB352D)
    hash_N >>= _16
    hash_N *= radix_N
    hash_N >>= _16
    digit_N += hash_N
    # Below the radix, the difference wraps to a huge number.
    np.minimum(digit_N, digit_N - radix_N, out=digit_N)
