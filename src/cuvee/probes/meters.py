"""`Meters`: all meters of one training loop. cuvee's trainer and the integrations both use it.

meters = Meters(policy.probes, Context(model, device))
meters.begin_interval(domains)
for step in interval:
    meters.begin_step(step)
    for micro in micro_batches:
        meters.add_tokens(tokens_K)
        meters.before_forward(micro)
        loss_BL = ...                      # the host's forward pass
        meters.after_forward(micro, loss_BL)
        ...                                # the host's backward pass
    meters.before_update()
vector = meters.sums()                     # add this vector over ranks
measured = meters.read(vector)

`meters.end_run()` goes before the last `sums` of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import IntArray
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, MicroBatch
from cuvee.probes.loss import LossByDomain, LossMeter


class Measurements(NamedTuple):
    """The measurements of one interval over all ranks."""

    tokens_K: IntArray
    """Tokens read from each domain."""
    flops: float
    """Floating-point operations of measuring, beyond those of training."""
    loss: Measured
    """(K,) mean training loss of each domain, in nats per counted token."""
    probes: dict[str, Measured]


class Meters:
    """The meters of `probes` on one model, and of the loss by domain, which is always measured.

    Raises `ConfigError` for a probe without `attach`, and for two probes of one name.
    """

    def __init__(self, probes: Sequence[Probe], context: Context) -> None:
        self.context = context
        self.loss: LossMeter = LossByDomain().attach(context)
        self._meters: dict[str, Meter] = {"loss": self.loss}
        self._tokens_K = np.zeros(0, dtype=np.int64)
        for probe in probes:
            if isinstance(probe, LossByDomain):
                continue  # it is attached already
            if not hasattr(probe, "attach"):
                raise ConfigError(
                    f"probe {probe.name!r} cannot be measured on a torch model: "
                    "it has no attach(context)"
                )
            split = context.place.size > context.place.data_ranks
            if split and not getattr(probe, "works_on_parts", False):
                raise ConfigError(
                    f"probe {probe.name!r} cannot be measured on a model that is split over "
                    "context, tensor or pipeline ranks: use a policy that needs the loss and "
                    "weight_norms only, such as odm or ado"
                )
            if probe.name in self._meters:
                raise ConfigError(f"two probes are called {probe.name!r}: rename one")
            self._meters[probe.name] = probe.attach(context)

    # Inside an interval

    def begin_interval(self, domains: tuple[Domain, ...]) -> None:
        self._tokens_K = np.zeros(len(domains), dtype=np.int64)
        for meter in self._meters.values():
            meter.begin_interval(domains)

    def begin_step(self, step: int) -> None:
        for meter in self._meters.values():
            meter.begin_step(step)

    def add_tokens(self, tokens_K: IntArray) -> None:
        """Add the tokens that this rank read from each domain, without padding."""
        self._tokens_K += tokens_K

    def before_forward(self, batch: MicroBatch) -> None:
        for meter in self._meters.values():
            meter.before_forward(batch)

    def after_forward(self, batch: MicroBatch, loss_BL: Tensor) -> None:
        """`loss_BL` is the detached next-token loss at each position, 0 where it does not count."""
        for meter in self._meters.values():
            meter.after_forward(batch, loss_BL)

    def before_update(self) -> None:
        """Call it when the gradients of the step are complete, before the weights change."""
        for meter in self._meters.values():
            meter.before_update()

    # At the end of an interval

    def end_run(self) -> None:
        """Call it after the last step of the run, before the last `sums`."""
        for meter in self._meters.values():
            meter.end_run()

    def sums(self) -> Tensor:
        """This rank's sums of the interval: one flat float64 vector on the context's device.

        The vectors of all ranks have the same length. `read` takes their sum.
        """
        parts = [meter.sums() for meter in self._meters.values()]
        self._sizes = [len(part) for part in parts]
        flops = sum(meter.flops() for meter in self._meters.values())
        parts += [torch.from_numpy(self._tokens_K), torch.tensor([flops], dtype=torch.float64)]
        return torch.cat([part.to(self.context.device, torch.float64) for part in parts])

    def read(self, sums: Tensor) -> Measurements:
        """The interval's measurements from the sum of all ranks' vectors. Call `sums` first."""
        *parts, tokens_K, flops = torch.split(sums, [*self._sizes, len(self._tokens_K), 1])
        probes: dict[str, Measured] = {}
        for meter, part in zip(self._meters.values(), parts, strict=True):
            probes.update(meter.read(part))
        tokens = tokens_K.cpu().numpy().astype(np.int64)
        return Measurements(tokens, float(flops), probes.pop("loss"), probes)

    # State

    def state_dict(self) -> dict[str, Any]:
        """State that a run needs to resume between intervals; the same on every rank."""
        return {name: meter.state_dict() for name, meter in self._meters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, meter in self._meters.items():
            meter.load_state_dict(state.get(name, {}))

    def interval_state(self) -> dict[str, Any]:
        """A copy of this rank's sums so far. Inside an interval, save it beside `state_dict`."""
        meters = {name: meter.interval_state() for name, meter in self._meters.items()}
        return {"tokens": self._tokens_K.copy(), "meters": meters}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        """Restore `interval_state`. Call `begin_interval` first."""
        self._tokens_K = np.array(state["tokens"], dtype=np.int64)
        for name, meter in self._meters.items():
            meter.load_interval_state(state["meters"][name])

    def close(self) -> None:
        """Remove all hooks from the model."""
        for meter in self._meters.values():
            meter.close()
