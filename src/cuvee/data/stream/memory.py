"""`MemoryCorpus`: a corpus of in-memory arrays, for tests, notebooks and small data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from cuvee.core.domain import Domain, Split
from cuvee.core.errors import CorpusError
from cuvee.core.mixture import check_names
from cuvee.data.corpus.pool import TokenPool


class MemoryCorpus:
    """Named pools in a fixed order.

    The fingerprint covers names, tokens and document starts of both splits.
    """

    def __init__(
        self, train: Mapping[str, TokenPool], valid: Mapping[str, TokenPool] | None = None
    ) -> None:
        self._pools: dict[Split, Mapping[str, TokenPool]] = {
            "train": train,
            "valid": valid or {},
            "test": {},
        }
        self.domains = tuple(Domain(name, len(train[name])) for name in check_names(list(train)))
        sha = hashlib.sha256()
        for split, pools in self._pools.items():
            for name, pool in pools.items():
                sha.update(
                    f"{split}/{name}/{pool.tokens.dtype.str}/{len(pool)}/"
                    f"{len(pool.document_starts)}\n".encode()
                )
                sha.update(np.ascontiguousarray(pool.tokens).data)
                sha.update(np.ascontiguousarray(pool.document_starts, dtype="<i8").data)
        self.fingerprint = sha.hexdigest()

    def pool(self, name: str, split: Split = "train") -> TokenPool:
        """Return the tokens of one domain and split. Raises `CorpusError` if there are none."""
        if name not in self._pools[split]:
            raise CorpusError(
                f"no domain {name!r} in split {split!r}: it has {', '.join(self._pools[split])}"
            )
        return self._pools[split][name]
