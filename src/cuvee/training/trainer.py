"""`LMTrainer`: trains a Hugging Face causal language model on a mixture stream."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from cuvee.core.domain import Domain, Split
from cuvee.core.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.registry import register_trainer
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.stream import MixtureStream
from cuvee.probes.base import FORWARD_SHARE, Context, MicroBatch, Place, TokenLosses
from cuvee.probes.meters import Meters
from cuvee.training.distributed import Ranks
from cuvee.training.export import export_model
from cuvee.training.loss import NextTokenLoss
from cuvee.training.model import build_model, size_of
from cuvee.training.placement import compute_type_for, device_for, is_compiled
from cuvee.training.settings import TrainerSettings
from cuvee.training.update import OptimizerStep
from cuvee.training.validation import Validation, next_token_counts, pools_of, tokens_of

Forward = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""The forward pass of a step, by default `NextTokenLoss`; `training.together` replaces it."""

# A resumed run may change these settings: they say where a run computes, not what.
_FREE_TO_CHANGE = {"device", "compile", "order_seed"}  # the stream checks the seed of its order


@register_trainer("lm")
class LMTrainer:
    """Implements `core.protocols.Trainer`.

    One interval is `settings.interval` optimizer steps; the last one may be shorter. Every rank
    builds a trainer over its own slice of the stream and calls the same methods in the same order.
    The signals cover all ranks and are equal on each. The state is equal on each rank and does not
    depend on the number of ranks.

    `Signals.loss` is the training loss by domain and `Signals.probes["valid_loss"]` (K,) the
    validation loss, both in nats per token. Probes that the policy declares add their own signals.
    `cost` counts training tokens, and the FLOPs and seconds of training, validation and probes.
    `others` are further corpora from which domains of the stream come, or are added while it runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stream: MixtureStream,
        corpus: Corpus,
        settings: TrainerSettings,
        ranks: Ranks | None = None,
        others: Sequence[Corpus] = (),
    ) -> None:
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.device = device_for(settings)
        self.model = model.to(self.device).train()
        self.stream = stream
        self.corpus = corpus
        self.corpora = {each.fingerprint: each for each in (corpus, *others)}
        for name in ("batch_size", "sequence_length"):
            if getattr(stream, name) != getattr(settings, name):
                raise ConfigError(
                    f"the settings' {name} is {getattr(settings, name)}, the stream's "
                    f"{getattr(stream, name)}: make them equal"
                )
        longest = getattr(model.config, "max_position_embeddings", None) or settings.sequence_length
        if settings.sequence_length > longest:
            raise ConfigError(
                f"sequence_length {settings.sequence_length} is more than the model's {longest} "
                "positions"
            )
        compute = compute_type_for(settings, self.device)
        compiled = is_compiled(settings, self.device)
        self.loss = NextTokenLoss(model, compute=compute, compiled=compiled)
        self.forward: Forward = self.loss
        self.clock = time.perf_counter
        self.update = OptimizerStep(model, settings)
        self.validation = Validation(settings.validation_tokens, settings.sequence_length)
        self.size = size_of(model, settings.sequence_length)
        self.step = 0
        self.cost = Cost()
        self._intervals = 0
        self._meters: Meters | None = None

    @classmethod
    def build(
        cls,
        model: str | Mapping[str, Any],
        corpus: Corpus,
        settings: TrainerSettings,
        ranks: Ranks,
    ) -> LMTrainer:
        """Build a new model and stream. All randomness depends on the seeds of `settings` only."""
        stream = MixtureStream(
            corpus,
            Mixture.natural(corpus.domains),
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
            seed=settings.seed if settings.order_seed is None else settings.order_seed,
            rank=ranks.rank,
            world_size=ranks.size,
        )
        fresh = build_model(model, corpus, seed=settings.seed)
        return cls(fresh, stream, corpus, settings, ranks)

    @staticmethod
    def price(model: str | Mapping[str, Any], corpus: Corpus, settings: TrainerSettings) -> Cost:
        """Estimate tokens and FLOPs of training, validation and the final test.

        A corpus `without_test` has no final test. Probes add to the real cost.
        """
        size = size_of(build_model(model, corpus, seed=0), settings.sequence_length)
        tokens = settings.total_steps * settings.batch_size * settings.sequence_length
        names = corpus.names
        pools = [corpus.pool(n, "valid") if corpus.has(n, "valid") else None for n in names]
        validation = Validation(settings.validation_tokens, settings.sequence_length)
        tests = [corpus.pool(n, "test") if corpus.has(n, "test") else None for n in names]
        validated = settings.validations * validation.tokens(pools) + validation.tokens(tests)
        return Cost(tokens, (tokens + validated * FORWARD_SHARE) * size.flops_per_token)

    @property
    def done(self) -> bool:
        return self.step >= self.settings.total_steps

    def start(self, probes: Sequence[Probe]) -> Signals:
        """Attach the probes and measure before the first step."""
        began = self.clock()
        meters = self._attach(probes)
        domains = self.stream.domains
        meters.begin_interval(domains)
        return self._signals(meters, domains, validate=True, began=began)

    def advance(self, mixture: Mixture) -> Signals:
        """Train one interval under `mixture`.

        Raises `DivergedError` if a loss or gradient is not finite, before weights change, and
        `TrainingError` if ranks disagree or are missing.
        """
        assert self._meters is not None, "call start or restore before advance"
        assert not self.done, "the budget is used up"
        began = self.clock()
        self.stream.set_mixture(mixture)
        meters = self._meters
        domains = self.stream.domains
        meters.begin_interval(domains)
        steps = min(self.settings.interval, self.settings.total_steps - self.step)
        devices = [self.device] if self.device.type == "cuda" else []
        # Restore the generators afterwards: every step reseeds them.
        with torch.random.fork_rng(devices=devices):
            for _ in range(steps):
                try:
                    self._train_step(meters, domains)
                except torch.OutOfMemoryError as error:
                    raise TrainingError(
                        f"step {self.step}: {error} Lower micro_batch_size or sequence_length"
                    ) from error
        self._intervals += 1
        if self.done:
            meters.end_run()
        every = self.settings.validate_every
        validate = self.done or (every > 0 and self._intervals % every == 0)
        return self._signals(meters, domains, validate=validate, began=began)

    def _train_step(self, meters: Meters, domains: tuple[Domain, ...]) -> None:
        batch = next(self.stream)
        assert batch.names == tuple(domain.name for domain in domains), (
            "domains may change only between intervals"
        )
        # Randomness depends only on seed, step and rank, so checkpoints need no generator state.
        torch.manual_seed(_seed_of(self.settings.seed, self.step, self.ranks.rank))
        counted_BL = next_token_counts(batch.counted_BL)
        denominator = float(self.ranks.agree(self.step, batch, int(counted_BL.sum())))
        self.update.begin()
        meters.begin_step(self.step)
        meters.add_tokens(batch.tokens_K())
        total = torch.zeros((), device=self.device)
        for micro in self._micro_batches(batch, counted_BL, denominator):
            meters.before_forward(micro)
            loss, loss_BL = self.forward(micro.tokens_BL, micro.counted_BL, denominator)
            meters.after_forward(micro, loss_BL)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        step_loss, norm = self.update.reduce(total, self.ranks, self.step)
        if not torch.isfinite(step_loss + norm):
            raise DivergedError(self._not_finite(meters, domains, float(norm)))
        meters.before_update()
        self.update.apply(norm, self.settings.learning_rate_at(self.step))
        self.step += 1

    def _micro_batches(
        self, batch: Batch, counted_BL: np.ndarray[Any, Any], denominator: float
    ) -> list[MicroBatch]:
        rows = self.settings.micro_batch_size or max(len(counted_BL), 1)
        tokens = torch.from_numpy(batch.tokens_BL).to(self.device)
        counted = torch.from_numpy(counted_BL).to(self.device)
        domain = torch.from_numpy(batch.domain_B).to(self.device)[:, None].expand(tokens.shape)
        parts = (slice(start, start + rows) for start in range(0, len(counted_BL), rows))
        return [
            MicroBatch(tokens[part], domain[part], counted[part], denominator) for part in parts
        ]

    def _not_finite(self, meters: Meters, domains: tuple[Domain, ...], norm: float) -> str:
        """The error message, with the domains whose loss is not finite.

        It calls a collective. After the sum over ranks, a gradient that is not finite is seen by
        every rank, so all ranks call it.
        """
        losses = meters.loss.sums()
        self.ranks.sum(losses, f"the search for domains with a bad loss in step {self.step}")
        sums_K = losses.view(2, -1)[0]
        at_fault = [
            domain.name
            for domain, total in zip(domains, sums_K.tolist(), strict=True)
            if not np.isfinite(total)
        ]
        what = (
            f"the loss of {', '.join(at_fault)}"
            if at_fault
            else "the gradient, though no domain's loss,"
        )
        return (
            f"step {self.step}: {what} is not finite (gradient norm {norm:g}); the weights are "
            "those of the step before. Resume from the last checkpoint, with a learning_rate below "
            f"{self.settings.learning_rate:g} if it happens again"
        )

    def _attach(self, probes: Sequence[Probe]) -> Meters:
        if self.ranks.size > 1:  # a single rank need not hash the weights
            self.ranks.same("corpus, settings and weights", self._fingerprint())
        if self._meters is not None:
            self._meters.close()
        s = self.settings
        context = Context(
            model=self.model,
            device=self.device,
            place=Place(self.ranks.rank, self.ranks.size),
            tokenizer=self._tokenizer(),
            interval_tokens=s.interval * s.batch_size * s.sequence_length,
            compute=self.loss.compute,
            flops_per_token=self.size.flops_per_token,
            valid_text=self,
            valid_tokens=lambda: tokens_of(self._pools("valid")),
            row_tokens=s.sequence_length,
        )
        self._meters = Meters(probes, context)
        return self._meters

    def _fingerprint(self) -> str:
        sha = hashlib.sha256(
            f"{self.corpus.fingerprint}{self.stream.seed}{self.step}"
            f"{_comparable(self.settings)}".encode()
        )
        for weight in self.update.weights.values():
            sha.update(weight.detach().cpu().numpy().data)
        return sha.hexdigest()

    def _signals(
        self, meters: Meters, domains: tuple[Domain, ...], *, validate: bool, began: float
    ) -> Signals:
        """Add up the sums of meters and validation over ranks in one collective, and read them."""
        own = meters.sums()
        tested = self.done and any(self._pools("test").values())
        due: list[tuple[Split, bool]] = [("valid", validate), ("test", tested)]
        splits = [split for split, now in due if now]
        held_out = [self._held_out(domains, split) for split in splits]
        flat = torch.cat([own, *(sums.to(own) for sums, _ in held_out)])
        self.ranks.sum(flat, f"the sum of measurements after step {self.step}")
        measured = meters.read(flat[: len(own)])
        probes = measured.probes
        sums_S2K = flat[len(own) :].view(len(splits), 2, len(domains)).cpu().numpy()
        for split, sums_2K in zip(splits, sums_S2K, strict=True):
            probes[f"{split}_loss"] = Measured.mean(*sums_2K)
        validated = sum(read for _, read in held_out)
        tokens = int(measured.tokens_K.sum())
        seconds = self.clock() - began
        passes = (tokens + validated * FORWARD_SHARE) * self.size.flops_per_token
        self.cost += Cost(tokens, passes + measured.flops, seconds)
        progress = self.step / self.settings.total_steps
        return Signals(domains, self.step, progress, measured.tokens_K, measured.loss, probes)

    def _held_out(self, domains: tuple[Domain, ...], split: Split) -> tuple[Tensor, int]:
        """Return this rank's sums, and how many tokens all ranks read for them."""
        by_name = self._pools(split)
        pools = [by_name[domain.name] for domain in domains]
        rows = self.settings.micro_batch_size or self.settings.batch_size
        self.model.eval()
        sums = self.validation.sums(
            self.loss, pools, self.device, rows, self.ranks.rank, self.ranks.size
        )
        self.model.train()
        return sums, self.validation.tokens(pools)

    def has_valid_text(self, domain: str) -> bool:
        """Whether a domain of the stream has validation text; part of `probes.base.ValidText`."""
        return self._pools("valid").get(domain) is not None

    def valid_token_losses(self, domains: Sequence[str], tokens: int) -> TokenLosses:
        """Return the token losses of a validation on `tokens` tokens of each domain.

        Part of `probes.base.ValidText`.
        """
        by_name = self._pools("valid")
        validation = Validation(tokens, self.settings.sequence_length)
        rows = self.settings.micro_batch_size or self.settings.batch_size
        self.model.eval()
        found = validation.token_losses(
            self.loss,
            [by_name.get(name) for name in domains],
            self.device,
            rows,
            self.ranks.rank,
            self.ranks.size,
        )
        self.model.train()
        return found

    def _pools(self, split: Split) -> dict[str, TokenPool | None]:
        """Pools by the domain's current name, which may differ from its corpus's name."""
        return pools_of(self.stream, {**self.stream.corpora, **self.corpora}, split)

    @property
    def vocabulary(self) -> str:
        return self.corpus.vocabulary

    def add_domain(self, name: str, folder: Path, fingerprint: str) -> Domain:
        """Add a domain of the corpus in `folder` to the stream, with weight 0.

        Part of `core.protocols.TakesDomains`.
        """
        self.stream.add_domain(name, self.corpus.companion(folder, fingerprint))
        return self.stream.domains[-1]

    def state_dict(self) -> State:
        """A copy of everything that the rest of the run depends on.

        Call it between intervals. It does not communicate with other ranks.
        """
        return {
            "step": self.step,
            "intervals": self._intervals,
            "settings": _comparable(self.settings),
            "update": self.update.state_dict(),
            "stream": self.stream.state_dict(),
            "meters": self._meters.state_dict() if self._meters else {},
            "cost": asdict(self.cost),
        }

    def restore(self, state: Mapping[str, Any], probes: Sequence[Probe]) -> None:
        """Resume from `state_dict`, instead of `start`.

        Raises `CheckpointError` if the model or the settings differ.
        """
        own = _comparable(self.settings)
        for name, value in own.items():
            if state["settings"].get(name) != value:
                raise CheckpointError(
                    f"the checkpoint was made with {name} = {state['settings'].get(name)}, not "
                    f"{value}: give the same settings, or start a new run"
                )
        self.update.load_state_dict(state["update"])
        self.stream.load_state_dict(state["stream"], list(self.corpora.values()))
        self.step = state["step"]
        self._intervals = state["intervals"]
        self.cost = Cost(**state["cost"])
        self._attach(probes).load_state_dict(state["meters"])

    def export(self, folder: Path | str) -> None:
        """Write the model, and the corpus's tokenizer if any, as a Hugging Face folder."""
        export_model(self.model, self._tokenizer(), self.corpus.end_of_text, Path(folder))

    def _tokenizer(self) -> Tokenizer | None:
        """The corpus's tokenizer, or None for a corpus of shards that came without one."""
        return None if self.corpus.manifest.tokenizer.sha256 is None else self.corpus.tokenizer()


def _seed_of(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")


def _comparable(settings: TrainerSettings) -> dict[str, Any]:
    document = {
        name: value for name, value in asdict(settings).items() if name not in _FREE_TO_CHANGE
    }
    comparable: dict[str, Any] = json.loads(json.dumps(document))
    return comparable
