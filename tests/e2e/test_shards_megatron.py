"""Both ways between cuvee and the real megatron-core: what either writes the other reads."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.data.ingest.adopt import adopt
from stdlib_corpus import stdlib_corpus


@pytest.fixture(scope="module")
def megatron() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it regrets the absence of GPU packages
        try:
            from megatron.core.datasets import indexed_dataset
        except ImportError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"megatron-core is not installed: {error}")
    return indexed_dataset


def test_megatron_reads_what_cuvee_writes(megatron: Any, tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path)
    for name in corpus.names:
        for split in ("train", "valid"):
            pool = corpus.pool(name, split)
            theirs = megatron.IndexedDataset(str(corpus.folder / split / name))
            ends = [*pool.document_starts[1:].tolist(), len(pool)]
            assert len(theirs) == len(pool.document_starts)
            assert theirs.document_indices.tolist() == list(range(len(theirs) + 1))
            for i, (start, end) in enumerate(zip(pool.document_starts.tolist(), ends, strict=True)):
                assert theirs[i].dtype == pool.tokens.dtype
                assert theirs[i].tolist() == pool.tokens[start:end].tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_cuvee_reads_what_megatron_writes(
    megatron: Any, tmp_path: Path, dtype: type[np.generic]
) -> None:
    end = 9
    documents = [[[1, 2, 3, end]], [[4, 5], [6, end]], [[end]]]
    prefix = tmp_path / "law_text_document"
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    corpus = adopt([tmp_path], tmp_path / "corpus", vocab_size=10, end_of_text=end)
    pool = corpus.pool("law")
    assert pool.tokens.dtype == dtype
    assert pool.tokens.tolist() == [
        token for document in documents for sequence in document for token in sequence
    ]
    assert pool.document_starts.tolist() == [0, 4, 8]
    corpus.verify()


def test_the_two_write_the_same_bytes(megatron: Any, tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path)
    pool = corpus.pool("mail")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    ends = [*pool.document_starts[1:].tolist(), len(pool)]
    for start, end in zip(pool.document_starts.tolist(), ends, strict=True):
        builder.add_document(np.array(pool.tokens[start:end]), [end - start])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        ours = corpus.folder / "train" / f"mail.{suffix}"
        assert (tmp_path / f"theirs.{suffix}").read_bytes() == ours.read_bytes()
