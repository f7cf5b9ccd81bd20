"""Shuffles without a table: the place of index i in a shuffled order of n things is computed from a key, i and n alone.

A balanced Feistel network over the smallest power of two ≥ n, walked until the value falls below n (cycle walking:
J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Unsigned integer arithmetic only, which wraps
alike everywhere, so that an order is the same on every platform, Python and numpy.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stable_key(*parts: object) -> int:
    """A 64-bit key from the text of `parts`, the same in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix64(value_N: KeyArray) -> KeyArray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection on 64 bits that spreads every bit."""
    mixed_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def epoch_keys(key_N: KeyArray, epoch_N: IntArray) -> KeyArray:
    """The keys of the shuffles of epochs `epoch_N` of things whose own keys are `key_N`."""
    return mix64(key_N + (epoch_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def bits_of(size_N: IntArray) -> npt.NDArray[np.uint8]:
    """The width in bits of the network for each size: at least 2, so that both halves have one."""
    sizes = np.asarray(size_N, dtype=np.int64)
    return np.array([max(2, int(size - 1).bit_length()) for size in sizes.tolist()], dtype=np.uint8)


def permute(index_N: IntArray, size_N: IntArray, bits_N: npt.NDArray[np.uint8], key_N: KeyArray) -> IntArray:
    """For each row, the image of `index` (0 ≤ index < size) under the permutation of `size` things that `key` names.

    `bits_N` is `bits_of(size_N)`, which callers have at hand.
    """
    value_N = _network(index_N.astype(np.uint64), bits_N, key_N).astype(np.int64)
    outside = np.flatnonzero(value_N >= size_N)
    while outside.size:
        walked = _network(value_N[outside].astype(np.uint64), bits_N[outside], key_N[outside]).astype(np.int64)
        value_N[outside] = walked
        outside = outside[walked >= size_N[outside]]
    return value_N


def _network(value_N: KeyArray, bits_N: npt.NDArray[np.uint8], key_N: KeyArray) -> KeyArray:
    """A permutation of [0, 2^bits) for each row. The halves differ by at most one bit and keep their widths."""
    right_bits_N = (bits_N + np.uint8(1)) >> np.uint8(1)
    left_shift_N = np.uint32(32) - (bits_N - right_bits_N).astype(np.uint32)
    right_shift_N = np.uint32(32) - right_bits_N.astype(np.uint32)
    width_N = right_bits_N.astype(np.uint64)
    left_N = (value_N >> width_N).astype(np.uint32)
    right_N = (value_N - (left_N.astype(np.uint64) << width_N)).astype(np.uint32)
    round_key_N = key_N.astype(np.uint32)
    stride_N = (key_N >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    for _ in range(_ROUNDS // 2):
        left_N ^= _scramble(right_N, round_key_N) >> left_shift_N
        round_key_N = round_key_N + stride_N
        right_N ^= _scramble(left_N, round_key_N) >> right_shift_N
        round_key_N = round_key_N + stride_N
    return (left_N.astype(np.uint64) << width_N) | right_N


def _scramble(half_N: npt.NDArray[np.uint32], key_N: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A keyed hash of 32 bits whose upper bits depend on all of them (constants of Prospector's lowbias32)."""
    mixed_N = half_N * np.uint32(0x9E3779B1) + key_N
    mixed_N = (mixed_N ^ (mixed_N >> np.uint32(16))) * np.uint32(0x7FEB352D)
    return (mixed_N ^ (mixed_N >> np.uint32(15))) * np.uint32(0x846CA68B)
