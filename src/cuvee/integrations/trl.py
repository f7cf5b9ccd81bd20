"""`SFTSteering`: cuvee's controller in TRL's `SFTTrainer`, whose fused loss returns no logits.

    steer = SFTSteering(corpus, policy="odm", interval=50, sequence_length=1024)
    args = steer.arguments(
        SFTConfig("out", max_steps=10_000, dataset_kwargs={"skip_prepare_dataset": True})
    )
    trainer = SFTTrainer(model, args, processing_class=tokenizer, **steer.trainer_kwargs())

`SFTTrainer` accepts only a `datasets.Dataset`. It gets a dataset of row numbers with a transform
that reads the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from cuvee.core.errors import ConfigError, TrainingError
from cuvee.integrations.huggingface import Steering, TrainerHooks
from cuvee.integrations.lane_rows import LaneRows, collate


class SFTSteering(Steering):
    """`Steering` for `SFTTrainer` with its default loss, `loss_type="nll"`."""

    def arguments(self, args: TrainingArguments) -> TrainingArguments:
        """As in `Steering`. Also refuses settings with which `SFTTrainer` would change the rows."""
        if not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ConfigError(
                "rows are already tokens: give SFTConfig "
                'dataset_kwargs={"skip_prepare_dataset": True}'
            )
        if args.loss_type != "nll":
            raise ConfigError(
                f"loss_type is {args.loss_type!r}: steering measures the loss of loss_type='nll'"
            )
        return super().arguments(args)

    def trainer_kwargs(self) -> dict[str, Any]:
        """Return the arguments of `SFTTrainer`: dataset, collator and a callback."""
        rows = super().trainer_kwargs()["train_dataset"]
        return {
            "train_dataset": _as_dataset(rows),
            "data_collator": _collate,
            "callbacks": [_FusedHooks(self)],
        }


class _FusedHooks(TrainerHooks):
    """Takes losses from the model's outputs and the denominator from the gradient of the losses."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any
    ) -> None:
        super().on_train_begin(args, state, control, **host)
        self._handles.append(host["model"].register_forward_hook(self._after_forward))

    def _after_forward(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._waiting and self._step is not None:
            self._step.losses(-outputs.log_probs)
            outputs.log_probs.register_hook(self._bind)
            self._waiting = False

    def _bind(self, gradient_BL: Tensor) -> None:
        """Bind the denominator d: in the host's loss −Σ log-probabilities / d, each has −1 / d."""
        share = -float(gradient_BL.flatten()[0])
        if not share > 0 or bool((gradient_BL + share).abs().max() > 1e-6 * share):
            raise TrainingError(
                "the host gives tokens different weights in the loss, which measurements do not "
                "support"
            )
        assert self._step is not None
        self._step.bind(1.0 / share)


def _as_dataset(rows: LaneRows) -> Any:
    from datasets import Dataset

    def read(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Tensor]]:
        found = rows.__getitems__(batch["row"])
        return {name: [row[name] for row in found] for name in found[0]}

    return Dataset.from_dict({"row": np.arange(len(rows))}).with_transform(read)


def _collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    batch = collate(rows)
    return {**batch, "attention_mask": (batch["cuvee_domain"] >= 0).long()}
