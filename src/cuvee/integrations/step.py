"""`Step`: one optimizer step of a host. It checks under which mixture rows were drawn."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from cuvee.core.errors import TrainingError
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.integrations.rows import Rows
from cuvee.probes.base import MicroBatch
from cuvee.probes.meters import Meters
from cuvee.training.distributed import Ranks


class Step:
    """One optimizer step of a host, from `Controller.step` or `begin_step`."""

    def __init__(
        self, meters: Meters, number: int, update: MixtureUpdate, ranks: Ranks | None = None
    ) -> None:
        """With `ranks`, ranks that must read the same rows are compared before the update."""
        self._meters = meters
        self._place = meters.context.place
        self._number = number
        self._update = update
        self._ranks = ranks
        self._read = b""
        self._micro: MicroBatch | None = None
        self._measured = self._updated = False

    def forward(self, batch: Batch | Rows) -> None:
        """Call it before each forward pass with this rank's rows.

        Raises `TrainingError` for rows of another step or drawn under another log of mixtures.
        Only ranks that count losses must call it (`Place.counts_losses`). Others that read rows may.
        """
        rows = batch if isinstance(batch, Rows) else Rows.of(batch)
        self._check(rows)
        if self._ranks is not None:
            self._read += rows.digest()
        if not self._place.counts_losses:
            return
        self._meters.add_tokens(rows.tokens_K(len(self._update.mixture.names)))
        device = self._meters.context.device
        domain_BL = rows.domain_BL.clamp(min=0)  # the losses of padding are zero
        self._micro = MicroBatch(
            rows.tokens_BL.to(device), domain_BL.to(device), rows.counted_BL.to(device)
        )
        self._meters.before_forward(self._micro)

    def losses(self, loss_BL: Tensor, denominator: float | Tensor | None = None) -> None:
        """Pass the next-token losses of the last forward pass in nats, (B, L) or (B, L − 1).

        (B, L − 1) lacks the last position. The host must call `backward` on Σ counted losses /
        `denominator`. If the host's data-parallel wrapper averages gradients over W ranks, pass
        N / W as `denominator`, with N counted tokens in the whole batch.

        Without effect on ranks that do not count losses. Raises `TrainingError` for a sharded
        tensor or one of another shape.
        """
        if not self._place.counts_losses:
            return
        assert self._micro is not None, "losses follows forward"
        counted_BL = self._micro.counted_BL
        self._check_losses(loss_BL, counted_BL)
        missing = counted_BL.shape[1] - loss_BL.shape[1]
        loss_BL = nn.functional.pad(loss_BL.detach(), (0, missing))
        if denominator is not None:
            self.bind(denominator)
        self._meters.after_forward(self._micro, loss_BL.masked_fill(~counted_BL, 0.0))
        self._measured = True

    def bind(self, denominator: float | Tensor) -> None:
        """Set the denominator of the last forward pass, if only the backward pass knows it."""
        if not self._place.counts_losses:
            return
        assert self._micro is not None, "bind follows forward"
        self._micro.denominator = float(denominator)

    def before_update(self) -> None:
        """Call it when the gradients of the step are complete, before the weights change."""
        if self._ranks is not None:
            digest = hashlib.sha256(self._read).hexdigest() if self._read else None
            self._ranks.same_rows(self._number, self._place.data_rank, digest)
        self._meters.before_update()
        self._updated = True

    def check_complete(self) -> None:
        measured = self._measured or not self._place.counts_losses
        for called, name in ((measured, "losses"), (self._updated, "before_update")):
            if not called:
                raise TrainingError(f"step {self._number} ended without a call of {name}")

    def _check_losses(self, loss_BL: Tensor, counted_BL: Tensor) -> None:
        if hasattr(loss_BL, "full_tensor"):
            raise TrainingError(
                "losses is a DTensor, sharded over ranks: pass losses.full_tensor(), which every "
                "rank of its mesh must call"
            )
        rows, length = counted_BL.shape
        shapes = [(rows, length), (rows, length - 1)]
        if tuple(loss_BL.shape) not in shapes:
            raise TrainingError(
                f"losses has the shape {tuple(loss_BL.shape)}, but the rows of this forward pass "
                f"need {shapes[0]} or {shapes[1]}: pass the loss of each position, not their mean"
            )
        if self._place.context_ranks > 1 and loss_BL.shape[1] < length:
            raise TrainingError(
                f"losses has the shape {tuple(loss_BL.shape)}, without the last position. With "
                "context parallelism, the label of that position lies on another rank: shift labels "
                f"before you split them, and pass {shapes[0]}"
            )

    def _check(self, rows: Rows) -> None:
        if self._place.context_ranks > 1 and rows.uncut is None:
            raise TrainingError(
                "these rows are whole, but each of the "
                f"{self._place.context_ranks} context ranks holds a part of them: pass "
                "rows.at(positions)"
            )
        if rows.step != self._number:
            raise TrainingError(
                f"the host delivered rows of step {rows.step} for step {self._number}: read rows "
                "in order and without shuffling, starting where the controller was restored"
            )
        if (rows.version, rows.log_digest) != (self._update.version, self._update.log_digest):
            raise TrainingError(
                f"step {self._number} was drawn under mixture version {rows.version} "
                f"(log {rows.log_digest[:8]}), but version {self._update.version} "
                f"(log {self._update.log_digest[:8]}) is in force: a reader is out of date. This "
                "step was not trained; use a lag above the number of steps the host reads ahead"
            )
