"""A training loop of someone else, which knows nothing of cuvee but the controller."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller
from cuvee.integrations.rows import Rows
from cuvee.methods.odm import ODM
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.training.loss import NextTokenLoss
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.update import OptimizerStep
from cuvee.training.validation import next_token_counts

SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS, INTERVAL = 23, 4
SETTINGS = TrainerSettings(
    steps=STEPS,
    interval=INTERVAL,
    batch_size=6,
    sequence_length=32,
    micro_batch_size=3,
    learning_rate=1e-2,
    validation_tokens=0,
    device="cpu",
    precision="fp32",
    compile=False,
    seed=5,
)


def stream_of(corpus: Corpus) -> MixtureStream:
    return MixtureStream(
        corpus, Mixture.natural(corpus.domains), batch_size=6, sequence_length=32, seed=5
    )


class Host:
    """A training loop that knows nothing of cuvee but the controller."""

    def __init__(self, corpus: Corpus, policy: Policy, **options: Any) -> None:
        self.stream = stream_of(corpus)
        self.model = build_model(SMALL, corpus, seed=5)
        self.update = OptimizerStep(self.model, SETTINGS)
        self.loss = NextTokenLoss(self.model)
        wanted = {"interval": INTERVAL, "steps": STEPS, **options}
        self.controller = Controller(policy, self.stream, self.model, **wanted)

    def train(self, until: int = STEPS) -> None:
        self.controller.begin()
        while self.controller.step_number < until:
            self.train_step(next(self.stream))

    def train_step(self, batch: Batch) -> None:
        number = self.controller.step_number
        rows = Rows.of(batch)
        count = float(next_token_counts(batch.counted_BL).sum())
        self.update.begin()
        total = torch.zeros(())
        with self.controller.step() as step:
            for part in (slice(0, 3), slice(3, 6)):
                names = ("tokens_BL", "domain_BL", "counted_BL")
                micro = replace(rows, **{name: getattr(rows, name)[part] for name in names})
                step.forward(micro)
                loss, loss_BL = self.loss(micro.tokens_BL, micro.counted_BL, count)
                step.losses(loss_BL, denominator=count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            _, norm = self.update.reduce(total, self.controller.ranks, number)
            step.before_update()
            self.update.apply(norm, SETTINGS.learning_rate_at(number))

    def save(self) -> tuple[Any, bytes]:
        return copy.deepcopy(self.update.state_dict()), self.controller.state()

    def load(self, saved: tuple[Any, bytes]) -> None:
        self.update.load_state_dict(saved[0])
        self.controller.restore(saved[1])

    def weights(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.model.parameters()]


def odm(corpus: Corpus) -> Policy:
    return Guard(ODM().commit(corpus, ()), Limits(max_change=0.3))
