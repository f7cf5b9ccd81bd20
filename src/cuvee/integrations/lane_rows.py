"""`LaneRows`: a mixture stream as a map-style dataset, for hosts that read rows by number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cuvee.data.stream.batch import Batch
from cuvee.data.stream.domain_state import open_again
from cuvee.data.stream.loader import UpdateFile
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.rows import Rows

IGNORED = -100
"""The label of positions whose loss does not count, as in Hugging Face."""
Labels = Callable[[Tensor], Tensor]
"""(B, L) tokens → (B, L) labels: the tokens, with `IGNORED` where the loss does not count."""
_OWN = ("cuvee_stamp", "cuvee_domain", "cuvee_counted")


class LaneRows(Dataset[dict[str, Tensor]]):
    """A dataset of `steps` steps of B rows. Row n is lane n mod B of global step n div B.

    Rows may be read in any order and in any process. Each row carries the log of mixtures under
    which it was drawn, because a worker process may draw it before it receives a decision.

    With `pieces` P > 1, P consecutive lanes are packed into one row, so a row may hold several
    domains. No token is predicted from another piece. `labels` masks tokens, such as prompts.
    """

    _known: int
    """How many domains `_steered`, the stream of the controller, had at the last decision."""
    _updates: UpdateFile

    def __init__(
        self, stream: MixtureStream, steps: int, *, pieces: int = 1, labels: Labels | None = None
    ) -> None:
        self.steps = steps
        self._pieces = pieces
        self._labels = labels
        self.restart(stream)

    def __len__(self) -> int:
        return self.steps * self._stream.batch_size // self._pieces

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the rows of one micro-batch. torch's loaders call it."""
        P = self._pieces
        lanes = self._lanes([number * P + piece for number in numbers for piece in range(P)])
        return [_packed(lanes[at : at + P]) for at in range(0, len(lanes), P)]

    def _lanes(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        size = self._stream.batch_size
        rows: list[dict[str, Tensor]] = []
        while len(rows) < len(numbers):
            left = numbers[len(rows) :]
            step = left[0] // size
            same = next((i for i, n in enumerate(left) if n // size != step), len(left))
            self._go_to(step)
            batch = self._stream.rows(step, [n % size for n in left[:same]])
            rows += _split(batch, self._labels)
        return rows

    def follow(self, update: MixtureUpdate) -> None:
        """Send a decision to every process that reads, with the domains that join with it."""
        domains = self._steered.sources()
        joined = domains[self._known :]
        self._known = len(domains)
        self._updates.append({**update.to_json(), "joined": joined})

    def restart(self, stream: MixtureStream) -> None:
        """Continue from the `stream` of a restored controller. Call it before workers start."""
        self._steered = stream
        self._known = len(stream.names)
        self._stream = copy.copy(stream)
        self._start = self._stream.state_dict()
        self._updates = UpdateFile()

    def _go_to(self, step: int) -> None:
        """Apply all decisions, and set the stream to `step`.

        The stream restarts if a decision changes steps that were read, or if `step` is earlier.
        """
        new = self._updates.read()
        if (
            any(update["step"] < self._stream.position for update in new)
            or step < self._stream.position
        ):
            self._stream.load_state_dict(self._start)
            self._updates.rewind()
            new = self._updates.read()
        for row in new:
            update = MixtureUpdate.from_json(row)
            if update.version > self._stream.last_version:
                corpora = open_again(row["joined"], self._stream.corpora)
                for domain in row["joined"]:
                    self._stream.add_domain(domain["name"], corpora[domain["fingerprint"]])
                self._stream.set_mixture(update.mixture, update.step)


def _split(batch: Batch, labels: Labels | None) -> list[dict[str, Tensor]]:
    words = np.frombuffer(bytes.fromhex(batch.log_digest), dtype="<i8")
    stamp = torch.from_numpy(np.concatenate([[batch.step, batch.version], words]))
    rows = Rows.of(batch)
    labels_BL = rows.tokens_BL if labels is None else labels(rows.tokens_BL)
    labels_BL = labels_BL.masked_fill(rows.domain_BL < 0, IGNORED)
    parts = zip(rows.tokens_BL, labels_BL, rows.domain_BL, strict=True)
    return [
        {"input_ids": tokens, "labels": labels, "cuvee_domain": domain, "cuvee_stamp": stamp}
        for tokens, labels, domain in parts
    ]


def _packed(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join pieces to one row. The first token of a piece has no context in its own piece."""
    for piece in pieces[1:]:
        piece["labels"][0] = IGNORED
    joined = {
        name: torch.cat([piece[name] for piece in pieces])
        for name in ("input_ids", "labels", "cuvee_domain")
    }
    return {**joined, "cuvee_stamp": pieces[0]["cuvee_stamp"]}


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows to one micro-batch. Counted positions follow from the labels."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    counted_BL = torch.zeros_like(batch["labels"], dtype=torch.bool)
    counted_BL[:, :-1] = batch["labels"][:, 1:] != IGNORED
    return {**batch, "cuvee_counted": counted_BL}


def take_rows(inputs: dict[str, Any]) -> Rows | None:
    """Remove and return what `collate` added to a model's inputs; None for another dataset."""
    own = [inputs.pop(name, None) for name in _OWN]
    if own[0] is None:
        return None
    stamp, domain_BL, counted_BL = own
    step, version, *words = stamp[0].tolist()
    digest = np.array(words, dtype="<i8").tobytes().hex()
    return Rows(step, version, digest, inputs["input_ids"], domain_BL, counted_BL)
