"""The Megatron format: written shards are read back, and each kind of damage has its own error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cuvee.core.errors import ShardError
from cuvee.data.corpus.shards import (
    bin_path,
    file_size,
    idx_path,
    open_shard,
    read_index,
    scan_shard,
    token_dtype,
    write_index,
)

LENGTHS = np.array([3, 1, 4], dtype=np.int32)
HEADER = 34


def write(prefix: Path, dtype: str = "<u2", lengths: npt.NDArray[np.int32] = LENGTHS) -> Path:
    np.arange(lengths.sum(), dtype=dtype).tofile(bin_path(prefix))
    write_index(prefix, lengths, np.dtype(dtype))
    return prefix


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<i4", "<i8", "<u2"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    pool = open_shard(write(tmp_path / "law", dtype), "law")
    assert pool.name == "law"
    assert pool.tokens.dtype == np.dtype(dtype)
    assert pool.tokens.tolist() == list(range(8))
    assert pool.document_starts.tolist() == [0, 3, 4]
    assert len(pool) == 8
    assert not pool.tokens.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        pool.tokens[0] = 1


def test_the_bytes_of_the_index_are_megatrons(tmp_path: Path) -> None:
    content = idx_path(write(tmp_path / "law")).read_bytes()
    assert content[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<QBQQ", content[9:HEADER]) == (1, 8, 3, 4)
    assert np.frombuffer(content, "<i4", 3, HEADER).tolist() == [3, 1, 4]
    assert np.frombuffer(content, "<i8", 3, HEADER + 12).tolist() == [0, 6, 8]
    assert np.frombuffer(content, "<i8", 4, HEADER + 36).tolist() == [0, 1, 2, 3]
    assert len(content) == HEADER + 36 + 32


def test_a_vocabulary_chooses_its_type() -> None:
    assert token_dtype(65_499) == np.uint16
    assert token_dtype(65_500) == np.int32


def test_documents_of_several_sequences_and_empty_ones(tmp_path: Path) -> None:
    prefix = write(tmp_path / "law", lengths=np.array([3, 0, 1, 4, 0], dtype=np.int32))
    content = bytearray(idx_path(prefix).read_bytes())
    assert read_index(prefix).document_starts.tolist() == [0, 3, 4]
    boundaries = np.array(
        [0, 2, 2, 4, 5, 5], dtype="<i8"
    )  # 3+0 tokens, none, 1+4 tokens, none, none
    content[-48:] = boundaries.tobytes()
    idx_path(prefix).write_bytes(content)
    assert read_index(prefix).document_starts.tolist() == [0, 3]


def patched(at: int, form: str, value: Any) -> Callable[[bytearray], bytearray]:
    def change(content: bytearray) -> bytearray:
        struct.pack_into(form, content, at, value)
        return content

    return change


LENGTH_0, POINTER_1, BOUNDARY_0 = HEADER, HEADER + 12 + 8, HEADER + 36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:0], "has 0 bytes, less than the 34 of a header"),
        (lambda content: content[:20], "has 20 bytes, less than"),
        (
            lambda content: content[:-1],
            "has 101 bytes, expected 102 for its 3 sequences and 4 document boundaries",
        ),
        (lambda content: content + b"\0", "has 103 bytes, expected 102"),
        (patched(0, "<B", 0), "it is no Megatron index"),
        (patched(9, "<Q", 2), "has index version 2, expected 1"),
        (patched(17, "<B", 0), "has dtype code 0, expected one of 1, 2"),
        (patched(17, "<B", 9), "has dtype code 9"),
        (patched(17, "<B", 7), "holds float32 values"),
        (patched(17, "<B", 4), "law.bin has 16 bytes, expected 32: 8 tokens of int32"),
        (patched(18, "<Q", 2**63), "for its 9223372036854775808 sequences"),
        (patched(18, "<Q", 4), "has 102 bytes, expected 114"),
        (patched(26, "<Q", 2**64 - 1), "18446744073709551615 document boundaries"),
        (patched(LENGTH_0, "<i", -3), "sequence 0 has length -3, which is negative"),
        (patched(LENGTH_0, "<i", 4), "law.bin has 16 bytes, expected 18: 9 tokens of uint16"),
        (patched(LENGTH_0, "<i", 2**31 - 1), "law.bin has 16 bytes, expected 4294967304"),
        (patched(POINTER_1, "<q", 7), "sequence 1 points at byte 7, expected 6"),
        (patched(POINTER_1, "<q", -(2**63)), "sequence 1 points at byte -9223372036854775808"),
        (patched(BOUNDARY_0, "<q", 1), "document boundaries run from 1 to 3, expected 0 to 3"),
        (
            patched(BOUNDARY_0 + 24, "<q", 2**62),
            "run from 0 to 4611686018427387904, expected 0 to 3",
        ),
        (patched(BOUNDARY_0 + 8, "<q", 3), "document boundary 2 is 2, less than the previous 3"),
        (patched(BOUNDARY_0 + 8, "<q", -1), "document boundary 1 is -1, less than the previous 0"),
    ],
)
def test_a_wrong_index_is_named(
    tmp_path: Path, change: Callable[[bytearray], bytearray], message: str
) -> None:
    prefix = write(tmp_path / "law")
    idx_path(prefix).write_bytes(change(bytearray(idx_path(prefix).read_bytes())))
    with pytest.raises(ShardError, match=message):
        open_shard(prefix, "law")


def test_two_changes_that_cancel_out_do_not(tmp_path: Path) -> None:
    prefix = write(tmp_path / "law")
    content = bytearray(idx_path(prefix).read_bytes())
    content[HEADER : HEADER + 8] = struct.pack(
        "<ii", 1, 3
    )  # lengths 1, 3, 4: the sum is right, the pointers are not
    idx_path(prefix).write_bytes(content)
    with pytest.raises(ShardError, match="sequence 1 points at byte 6, expected 2"):
        open_shard(prefix, "law")


def test_a_bin_of_another_size_or_none_is_named(tmp_path: Path) -> None:
    prefix = write(tmp_path / "law")
    whole = bin_path(prefix).read_bytes()
    for content in (whole[:-1], whole[:-2], whole + b"\0\0", b""):
        bin_path(prefix).write_bytes(content)
        with pytest.raises(ShardError, match=f"law.bin has {len(content)} bytes, expected 16"):
            open_shard(prefix, "law")
    bin_path(prefix).unlink()
    with pytest.raises(ShardError, match=r"law\.bin is missing"):
        open_shard(prefix, "law")
    bin_path(prefix).mkdir()
    with pytest.raises(ShardError, match=r"law\.bin is missing"):
        open_shard(prefix, "law")


def test_a_missing_index_and_an_empty_shard_are_named(tmp_path: Path) -> None:
    prefix = write(tmp_path / "law")
    idx_path(prefix).unlink()
    with pytest.raises(ShardError, match=r"law\.idx cannot be read: No such file"):
        open_shard(prefix, "law")
    with pytest.raises(ShardError, match="holds no tokens"):
        open_shard(write(tmp_path / "none", lengths=np.array([], dtype=np.int32)), "none")
    with pytest.raises(ShardError, match="is missing"):
        file_size(tmp_path / "nowhere")


def test_ids_outside_the_vocabulary_are_named_with_their_place(tmp_path: Path) -> None:
    prefix = write(tmp_path / "law", "<i4")
    assert scan_shard(prefix, np.dtype("<i4"), 8) == scan_shard(prefix, np.dtype("<i4"), 9)
    with pytest.raises(ShardError, match="token 7 is 7, outside the vocabulary of 7"):
        scan_shard(prefix, np.dtype("<i4"), 7)
    np.array([1, 2, -5, 4, 5, 6, 7, 8], dtype="<i4").tofile(bin_path(prefix))
    with pytest.raises(ShardError, match="token 2 is -5"):
        scan_shard(prefix, np.dtype("<i4"), 100)
