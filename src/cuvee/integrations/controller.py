"""`Controller`: steers the data mixture inside a training loop that is not cuvee's.

    controller = Controller(policy, stream, model, interval=50, steps=10_000)
    controller.begin()                                 # before anything is read
    for batch in stream:                               # or rows of a host's own data loader
        with controller.step(batch) as step:
            loss_BL = ...                              # the host's forward pass: next-token losses
            step.losses(loss_BL, denominator=n)        # the host divides the sum of losses by n
            (loss_BL.sum() / n).backward()
            step.before_update()
            optimizer.step()

It makes the decisions of `cuvee.loop.run` in the same order. With `lag` 0 and the same
deterministic arithmetic, both record the same trajectory, bit by bit.

**Lag.** A host that reads ahead needs the next mixture before the interval ends. So each decision
is made `lag` steps before the end of the interval, from what was measured until then, and takes
effect exactly at the end. The steps that a decision measures are shifted by `lag` against the
steps that it steers.

**Checks.** Every batch carries its step and the log of mixtures under which it was drawn. Both are
compared before the forward pass, so nothing is trained on stale data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Policy, State
from cuvee.core.signals import Measured, Signals
from cuvee.core.state import from_bytes, to_bytes
from cuvee.core.trajectory import Cost, Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.rows import Rows
from cuvee.integrations.step import Step
from cuvee.policies.files import load_requested
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.operator import Operator, TakesRequests
from cuvee.probes.base import Context, Place
from cuvee.probes.meters import Meters
from cuvee.training.distributed import Leader, Ranks, weights_of
from cuvee.training.validation import pools_of, tokens_of


class Record(Protocol):
    """Stores intervals, such as a `Claim` on a run of the store. Only rank 0 calls it."""

    def append(
        self,
        number: int,
        mixture: Mixture | None,
        signals: Signals,
        metrics: Metrics | None = None,
        cost: Cost | None = None,
    ) -> object: ...


class Controller:
    """Intervals, meters, policy, guard and record of one run that a host trains.

    The run has `steps` optimizer steps. Decisions are logged in `stream`. The host reads batches
    from it, or from copies that follow `on_update`, which is called with every decision. `interval`
    and `lag` are in optimizer steps, and `lag` is the smaller one. A policy without a guard is
    guarded with `limits`. Raises `ConfigError` if steps, interval or lag are not possible.

    If `record` is a `Claim`, operators' requests reach the run (`cuvee steer`). A domain that one
    adds is then new in the mixture of an update, and must be added to copies of the stream first.

    With several ranks, each builds a controller over its own model and calls the same methods in
    the same order; `ranks` is `Ranks.adopt()`. Rank 0 decides. Each rank reads rows of its own,
    except under context, tensor or pipeline parallelism: then give `place`.
    """

    def __init__(
        self,
        policy: Policy,
        stream: MixtureStream,
        model: nn.Module,
        *,
        interval: int,
        steps: int,
        lag: int = 0,
        limits: Limits | None = None,
        ranks: Ranks | None = None,
        place: Place | None = None,
        tokenizer: Any | None = None,
        record: Record | None = None,
        on_update: Callable[[MixtureUpdate], None] | None = None,
    ) -> None:
        if interval < 1 or steps < 1:
            raise ConfigError(
                f"interval is {interval} and steps is {steps}: both must be 1 or more"
            )
        if not 0 <= lag < interval:
            raise ConfigError(
                f"lag is {lag} and interval is {interval}: the lag must be 0 or more and smaller "
                "than the interval. Raise the interval, or let the host read less far ahead"
            )
        self.stream = stream
        self.interval = interval
        self.steps = steps
        self.lag = lag
        self.ranks = ranks or Ranks()
        self.place = place or Place(self.ranks.rank, self.ranks.size)
        self.step_number = 0
        self.cost = Cost()
        tokens = stream.batch_size * stream.sequence_length
        guarded = Guard.around(policy, limits, interval * tokens)
        if isinstance(record, TakesRequests):
            takes = isinstance(stream.corpus, Corpus) and self.ranks.size == 1
            guarded.operator = Operator(record, load_requested, self if takes else None)
        self._guard = guarded
        self._leader = Leader(guarded, self.ranks)
        self._context = _context(model, self.place, tokenizer, interval, stream)
        self._record = record
        self._on_update = on_update
        self._meters: Meters | None = None
        self._so_far: Trajectory | None = None
        self._mixture: Mixture | None = None
        self._before: State = {}
        self._updates: list[MixtureUpdate] = []
        self._validated: Measured | None = None
        self._clock = time.perf_counter()
        self._step: Step | None = None

    # What a host calls

    @property
    def trajectory(self) -> Trajectory:
        """The complete intervals. Call `begin` before the first step."""
        assert self._so_far is not None, "call begin first"
        return self._so_far

    @property
    def done(self) -> bool:
        return self.step_number >= self.steps

    def begin(self) -> None:
        """Attach the probes, measure, and make the first decision. Call it before reading.

        It has no effect if the controller has begun or was restored.
        """
        if self._so_far is not None:
            return
        if self.stream.position > 0:
            raise TrainingError(
                f"the stream was read up to step {self.stream.position} before the first decision: "
                "call begin() first"
            )
        meters = self._attach()
        meters.begin_interval(self.stream.domains)
        self._so_far = Trajectory.start(self._measure(meters))
        if self._record is not None and self.ranks.rank == 0:
            self._record.append(0, None, self._so_far.last)
        self._decide(at_step=0)
        meters.begin_interval(self.stream.domains)

    @contextmanager
    def step(self, batch: Batch | Rows | None = None) -> Iterator[Step]:
        """Run one optimizer step. `batch` has this rank's rows if the step has one forward pass.

        With gradient accumulation, call `step()` without a batch, and call `forward` of the `Step`
        before each forward pass. At the end of the block, raises `TrainingError` if the losses or
        `before_update` are missing.
        """
        step = self.begin_step()
        if batch is not None:
            step.forward(batch)
        yield step
        self.end_step()

    def begin_step(self) -> Step:
        """Begin a step, for hosts that use callbacks instead of `with step()`."""
        self.begin()
        if self.done:
            raise TrainingError(f"all {self.steps} steps are done: give the controller more steps")
        assert self._meters is not None
        assert self._mixture is not None
        if self.stream.names != self._mixture.names:
            raise TrainingError(
                f"the stream has the domains {', '.join(self.stream.names)}, but the run steers "
                f"{', '.join(self._mixture.names)}: only `cuvee steer` changes the domains of a "
                "controller's run. This step was not trained; resume from the last checkpoint"
            )
        update = self.update_at(self.step_number)
        first = update.step == self.step_number
        if first:
            self.ranks.agree(self.step_number, update, 0)
        self._meters.begin_step(self.step_number)
        peers = self.ranks if first and self.ranks.size > self.place.data_ranks else None
        self._step = Step(self._meters, self.step_number, update, peers)
        return self._step

    def end_step(self) -> None:
        """End a step after the weights were updated, and make the decision that is due."""
        step = self._step
        self._step = None
        assert step is not None, "end_step follows begin_step"
        step.check_complete()
        self.step_number += 1
        if self.stream.position < self.step_number:
            self.stream.seek(self.step_number)
        coming = self.step_number + self.lag
        if self.done:
            self._close_interval()
        elif coming % self.interval == 0 and coming < self.steps:
            self._close_interval()
            self._decide(at_step=coming)
            assert self._meters is not None
            self._meters.begin_interval(self.stream.domains)

    def validated(self, losses: Mapping[str, float]) -> None:
        """Add validation losses by domain, in nats per token, to the next signals.

        They must be equal on every rank. The rewards of AC-ODM value the domains that are given
        before the first step.
        """
        names = self.stream.names
        if unknown := sorted(set(losses) - set(names)):
            raise ConfigError(
                f"validated names {', '.join(unknown)}, but the stream has {', '.join(names)}"
            )
        values_K = np.array([losses.get(name, 0.0) for name in names])
        self._validated = Measured(values_K, np.array([name in losses for name in names]))

    def update_at(self, step: int) -> MixtureUpdate:
        """Return the decision in force at `step`, in the current interval or the next one."""
        return next(update for update in reversed(self._updates) if update.step <= step)

    # Domains that an operator adds

    @property
    def vocabulary(self) -> str:
        assert isinstance(self.stream.corpus, Corpus)
        return self.stream.corpus.vocabulary

    def add_domain(self, name: str, folder: Path, fingerprint: str) -> Domain:
        """Add a domain of the corpus in `folder` to the stream, with weight 0.

        Part of `core.protocols.TakesDomains`.
        """
        assert isinstance(self.stream.corpus, Corpus)
        self.stream.add_domain(name, self.stream.corpus.companion(folder, fingerprint))
        self._updates = [update.over(self.stream.names) for update in self._updates]
        return self.stream.domains[-1]

    # Deciding

    def _decide(self, at_step: int) -> None:
        """Decide. The policy's previous state is kept, so a restored controller can ask again."""
        assert self._so_far is not None
        self._before = copy.deepcopy(self._leader.state_dict())
        self._mixture = self._leader.mixture(self._so_far)
        update = self.stream.set_mixture(self._mixture, at_step)
        self._updates = [*self._updates[-1:], update]
        if self._on_update is not None:
            self._on_update(update)

    def _close_interval(self) -> None:
        assert self._meters is not None
        assert self._so_far is not None
        assert self._mixture is not None
        before = self.cost
        self._so_far = self._so_far.append(self._mixture, self._measure(self._meters))
        metrics = self._leader.learn(self._so_far)
        if self._record is not None and self.ranks.rank == 0:
            spent = Cost(
                self.cost.tokens - before.tokens,
                self.cost.flops - before.flops,
                self.cost.seconds - before.seconds,
            )
            self._record.append(
                len(self._so_far), self._so_far.last_mixture, self._so_far.last, metrics, spent
            )
        if self.done:
            self._before = self._leader.state_dict()

    def _measure(self, meters: Meters) -> Signals:
        sums = meters.sums().cpu()
        self.ranks.sum(sums, f"the sum of measurements after step {self.step_number}")
        measured = meters.read(sums)
        if self._validated is not None:
            measured.probes["valid_loss"] = self._validated
            self._validated = None
        tokens = int(measured.tokens_K.sum())
        now = time.perf_counter()
        flops = tokens * self._context.flops_per_token + measured.flops
        self.cost += Cost(tokens, flops, now - self._clock)
        self._clock = now
        return Signals(
            self.stream.domains,
            self.step_number,
            self.step_number / self.steps,
            measured.tokens_K,
            measured.loss,
            measured.probes,
        )

    def _attach(self) -> Meters:
        if self._meters is not None:
            self._meters.close()
        weights = weights_of(self._context.model, self.place, self.ranks)
        self._context = replace(self._context, flops_per_token=6.0 * weights)
        self._meters = Meters(self._leader.probes, self._context)
        return self._meters

    # State

    def state(self) -> bytes:
        """Return this rank's state between two steps as bytes of one safetensors file.

        It may be inside an interval.
        """
        assert self._step is None, "the state is taken between steps"
        self.begin()
        assert self._meters is not None
        assert self._so_far is not None
        assert self._mixture is not None
        stream = copy.copy(self.stream)
        stream.seek(self.step_number)
        validated = self._validated
        return to_bytes(
            {
                **self._fixed(),
                "step": self.step_number,
                "stream": stream.state_dict(),
                "updates": [update.to_json() for update in self._updates],
                "mixture": self._mixture.to_json(),
                "policy": self._before,
                "late": self._guard.late_at == len(self._so_far),
                "trajectory": self._so_far.to_json(),
                "meters": self._meters.state_dict(),
                "sums": self._meters.interval_state(),
                "validated": None if validated is None else validated.to_json(),
                "cost": asdict(self.cost),
            }
        )

    def restore(self, data: bytes) -> None:
        """Resume from `state`, instead of `begin`.

        The host restores its model and continues to read at the saved step. The policy is asked
        again for its last decision. Raises `CheckpointError` if the answer differs, or if steps,
        interval, lag or the number of ranks differ.
        """
        state = from_bytes(data, "the controller's state")
        for name, value in self._fixed().items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"the controller's state was saved with {name} = {state.get(name)}, not "
                    f"{value}: use the same value"
                )
        self._leader.load_state_dict(state["policy"])
        meters = self._attach()  # with the probes of the restored policy
        self.step_number = int(state["step"])
        self.stream.load_state_dict(state["stream"])
        self._updates = [MixtureUpdate.from_json(update) for update in state["updates"]]
        self._mixture = Mixture.from_json(state["mixture"])
        self._before = state["policy"]
        self._so_far = Trajectory.from_json(state["trajectory"])
        self._guard.recorded = {len(self._so_far): bool(state.get("late"))}
        self.cost = Cost(**state["cost"])
        self._clock = time.perf_counter()
        if state["validated"] is not None:
            self._validated = Measured.from_json(state["validated"])
        meters.begin_interval(self.stream.domains)
        meters.load_state_dict(state["meters"])
        meters.load_interval_state(state["sums"])
        if not self.done:
            self._ask_again()

    def _ask_again(self) -> None:
        assert self._so_far is not None
        assert self._mixture is not None
        again = self._leader.mixture(self._so_far)
        if again.digest() != self._mixture.digest():
            raise CheckpointError(
                f"asked again for the mixture from step {self._updates[-1].step} on, the policy "
                f"answers {again.as_dict()} instead of {self._mixture.as_dict()}: its state_dict "
                "does not contain everything that its decisions depend on"
            )

    def _fixed(self) -> dict[str, Any]:
        own = {"steps": self.steps, "interval": self.interval, "lag": self.lag}
        return {**own, "rank": self.ranks.rank, "ranks": self.ranks.size}

    def close(self) -> None:
        """Remove all hooks from the model."""
        if self._meters is not None:
            self._meters.close()


def tokenizer_of(corpus: Corpus) -> Any | None:
    """Return the corpus's `tokenizers.Tokenizer`, or None if it has none, as imported shards."""
    return None if corpus.manifest.tokenizer.sha256 is None else corpus.tokenizer()


def _context(
    model: nn.Module, place: Place, tokenizer: Any, interval: int, stream: MixtureStream
) -> Context:
    return Context(
        model=model,
        device=next(model.parameters()).device,
        place=place,
        tokenizer=tokenizer,
        interval_tokens=interval * stream.batch_size * stream.sequence_length,
        valid_tokens=lambda: tokens_of(pools_of(stream, stream.corpora, "valid")),
        row_tokens=stream.sequence_length,
    )
