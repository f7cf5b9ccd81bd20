"""Validation loss by domain, on fixed windows of each domain's `valid` split.

The windows are the same at every validation, for every number of ranks and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cuvee.core.domain import Split
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.domain_state import Pools
from cuvee.data.stream.stream import MixtureStream
from cuvee.probes.base import TokenLosses
from cuvee.training.loss import NextTokenLoss


class Validation:
    """Validation on at most `tokens` tokens of each domain.

    They are read in windows of `sequence_length`, spread evenly over the `valid` split. Windows do
    not overlap. A split shorter than one window is padded. A domain without a `valid` split has no
    validation loss.
    """

    def __init__(self, tokens: int, sequence_length: int) -> None:
        self.length = sequence_length
        self.most = max(tokens // sequence_length, 1) if tokens else 0
        self._windows: dict[TokenPool, tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]] = {}

    def tokens(self, pools: Sequence[TokenPool | None]) -> int:
        """Return the number of tokens that one validation reads, over all ranks."""
        return sum(len(tokens_BL) for _, tokens_BL, _ in self._parts(pools)) * self.length

    @torch.no_grad()
    def sums(
        self,
        loss: NextTokenLoss,
        pools: Sequence[TokenPool | None],
        device: torch.device,
        rows: int,
        rank: int,
        ranks: int,
    ) -> Tensor:
        """Return this rank's sums as (2K,) float64: losses by domain, then counts by domain.

        `rows` sequences are read per forward pass.
        """
        sums_2K = torch.zeros(2, len(pools), dtype=torch.float64, device=device)
        for tokens_BL, counted_BL, domain_B in self._batches(pools, rows, rank, ranks):
            counted = torch.from_numpy(counted_BL).to(device)
            _, loss_BL = loss(torch.from_numpy(tokens_BL).to(device), counted, 1.0)
            values = torch.stack([loss_BL.double().sum(1), counted.double().sum(1)])
            sums_2K.index_add_(1, torch.from_numpy(domain_B).to(device), values)
        return sums_2K.flatten()

    @torch.no_grad()
    def token_losses(
        self,
        loss: NextTokenLoss,
        pools: Sequence[TokenPool | None],
        device: torch.device,
        rows: int,
        rank: int,
        ranks: int,
    ) -> TokenLosses:
        """Return the loss of each counted token by domain.

        Each rank reads every `ranks`-th group of `rows` windows.
        """
        parts = self._parts(pools)
        most = max((int(counted_BL.sum()) for _, _, counted_BL in parts), default=0)
        losses_DN = torch.zeros(len(pools), most, dtype=torch.float64, device=device)
        counted_DN = torch.zeros(losses_DN.shape, dtype=torch.bool, device=device)
        read = 0
        for k, tokens, counted in parts:
            tokens_BL = torch.from_numpy(tokens).to(device)
            counted_BL = torch.from_numpy(counted).to(device)
            losses_BL = torch.zeros(counted_BL.shape, dtype=torch.float64, device=device)
            for start in range(rank * rows, len(tokens_BL), ranks * rows):
                part = slice(start, start + rows)
                losses_BL[part] = loss(tokens_BL[part], counted_BL[part], 1.0)[1].double()
                read += tokens_BL[part].numel()
            count = int(counted_BL.sum())
            losses_DN[k, :count] = losses_BL[counted_BL]
            counted_DN[k, :count] = True
        return TokenLosses(losses_DN, counted_DN, read)

    def _batches(
        self, pools: Sequence[TokenPool | None], rows: int, rank: int, ranks: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
        parts = self._parts(pools)
        if not parts:
            return
        domain_B = np.concatenate(
            [np.full(len(tokens_BL), k, dtype=np.int64) for k, tokens_BL, _ in parts]
        )
        tokens_BL = np.concatenate([tokens_BL for _, tokens_BL, _ in parts])
        counted_BL = np.concatenate([counted_BL for _, _, counted_BL in parts])
        mine = np.arange(rank, len(domain_B), ranks)
        for start in range(0, len(mine), rows):
            chosen = mine[start : start + rows]
            yield tokens_BL[chosen], counted_BL[chosen], domain_B[chosen]

    def _parts(
        self, pools: Sequence[TokenPool | None]
    ) -> list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        return [
            (k, *self._of(pool))
            for k, pool in enumerate(pools)
            if pool is not None and len(pool) >= 2 and self.most
        ]

    def windows(self, tokens: int) -> npt.NDArray[np.int64]:
        """Return the indices of the windows that are read of a split of `tokens` tokens.

        They are ascending. There are none if the split is shorter than one window.
        """
        fit = tokens // self.length
        count = min(fit, self.most)
        return np.arange(count) * fit // max(count, 1)

    def _of(self, pool: TokenPool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        if pool not in self._windows:
            chosen = self.windows(len(pool))
            if not len(chosen):
                tokens_BL = np.zeros((1, self.length), dtype=np.int64)
                tokens_BL[0, : len(pool)] = pool.tokens
                real_BL = np.arange(self.length)[None] < len(pool)
            else:
                tokens_BL = np.stack(
                    [pool.tokens[i * self.length : (i + 1) * self.length] for i in chosen]
                ).astype(np.int64)
                real_BL = np.ones(tokens_BL.shape, dtype=np.bool_)
            self._windows[pool] = tokens_BL, next_token_counts(real_BL)
        return self._windows[pool]


def pools_of(
    stream: MixtureStream, corpora: Mapping[str, Pools], split: Split
) -> dict[str, TokenPool | None]:
    """Return one split of each present domain, None where there is none.

    `corpora` are found by fingerprint. Names are those in the stream, which a rename changes.
    """
    pools: dict[str, TokenPool | None] = {}
    for row in stream.sources():
        corpus = corpora.get(row["fingerprint"])
        known = isinstance(corpus, Corpus) and corpus.has(row["source"], split)
        pools[row["name"]] = corpus.pool(row["source"], split) if corpus and known else None
    return pools


def tokens_of(pools: Mapping[str, TokenPool | None]) -> dict[str, npt.NDArray[Any]]:
    """Return the tokens of each pool that is there."""
    return {name: pool.tokens for name, pool in pools.items() if pool is not None}


def next_token_counts(real_BL: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Mark positions whose next-token loss counts: the token and its successor are both real."""
    counted_BL = np.zeros(real_BL.shape, dtype=np.bool_)
    counted_BL[:, :-1] = real_BL[:, :-1] & real_BL[:, 1:]
    return counted_BL
