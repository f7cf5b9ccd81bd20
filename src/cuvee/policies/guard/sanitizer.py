"""Removes implausible values, and domains that are not the policy's, from the signals that it sees.

`Measured` already refuses NaN and infinity. This module finds numbers that are far too large,
matrices of the wrong shape, and a step or progress that decreases. The trajectory keeps the
original values. The policy sees them as absent, and does not learn from that interval.

Domains that an operator added to the run (`guard.operator`) are left out: the policy sees a run
over the domains that it began with, in which the mixtures of those domains sum to 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory

LARGEST_LOSS = 1e4
"""In nats per token. A uniform guess over any vocabulary has less than 20."""
LARGEST_MEASUREMENT = 1e12
"""For every other measurement: inner products of gradients, norms, scores."""
LARGEST_TOKENS = 1e15
"""For one domain in one interval."""

_LOSSES = ("loss", "valid_loss", "test_loss")


class SignalSanitizer:
    """Computes the trajectory that a policy sees.

    It is the trajectory itself as long as all its values are plausible and an operator added no
    domain. Otherwise it is a copy without these values and domains. The copy is extended
    incrementally, O(K²) per interval; another trajectory restarts it. Signals in which nothing was
    changed are the same objects in both.
    """

    def __init__(self) -> None:
        self._newest: Signals | None = None
        self._seen: Trajectory | None = None
        self._fault: str | None = None
        self._altered = False

    def of(
        self, so_far: Trajectory, without: Collection[str] = ()
    ) -> tuple[Trajectory, str | None]:
        """Return the sanitized `so_far`, and the fault of its newest signals or None.

        The names `without` are left out. Names may be added from one call to the next.
        """
        seen = self._seen
        if seen is None or len(seen) > len(so_far) or so_far.at(len(seen)) is not self._newest:
            cleaned, self._fault = clean(so_far.at(0), None)
            seen = Trajectory.start(cleaned)
            self._altered = self._fault is not None
        for before, mixture, after in so_far.since(len(seen)):
            cleaned, self._fault = clean(after, before)
            self._altered = self._altered or self._fault is not None
            if any(name in without for name in after.names):
                self._altered = True
                cleaned = _without(without, cleaned, seen.last)
                mixture = _own_part(mixture, cleaned.names, seen.last_mixture)
            seen = seen.append(mixture, cleaned)
        self._seen = seen
        self._newest = so_far.last
        return (seen if self._altered else so_far), self._fault


def _without(names: Collection[str], signals: Signals, before: Signals) -> Signals:
    """Return `signals` without the domains `names`.

    An axis of a probe is over domains if its length is the number of domains, now and in `before`.
    """
    own_K = np.array([name not in names for name in signals.names])

    def restricted(name: str, measured: Measured) -> Measured:
        values, present = measured.values, measured.present
        known = before.probes.get(name)
        for axis, length in enumerate(measured.shape):
            then = known.shape[axis : axis + 1] if known else (len(before.names),)
            if length == len(own_K) and then == (len(before.names),):
                values, present = (each.compress(own_K, axis) for each in (values, present))
        return Measured(values, present)

    return replace(
        signals,
        domains=tuple(one for one in signals.domains if one.name not in names),
        tokens_K=signals.tokens_K[own_K],
        loss=restricted("loss", signals.loss),
        probes={name: restricted(name, one) for name, one in signals.probes.items()},
    )


def _own_part(mixture: Mixture, names: tuple[str, ...], last: Mixture | None) -> Mixture:
    """Return the part of `mixture` on `names`, scaled to 1; the last one if that part is empty."""
    weights_K = [mixture[name] for name in names]
    if not any(weights_K):
        return last or Mixture.uniform(names)
    return Mixture.normalise(names, weights_K)


def clean(signals: Signals, before: Signals | None) -> tuple[Signals, str | None]:
    """Return `signals` with implausible values absent, and the first fault found.

    Without a fault, returns the same object and None.
    """
    K = len(signals.names)
    shapes = {"loss": (K,), "valid_loss": (K,), "test_loss": (K,), "alignment": (K, K)}
    faults = [fault for fault in (_clock_fault(signals, before), _token_fault(signals)) if fault]
    replaced: dict[str, Measured] = {}
    for name, measured in {"loss": signals.loss, **signals.probes}.items():
        largest = LARGEST_LOSS if name in _LOSSES else LARGEST_MEASUREMENT
        good = np.abs(measured.values) <= largest
        if name in shapes and measured.shape != shapes[name]:
            faults.append(f"{name} has shape {measured.shape}, {K} domains need {shapes[name]}")
            replaced[name] = Measured.absent(shapes[name])
        elif not good.all():
            worst = measured.values.flat[int(np.argmax(np.abs(measured.values)))]
            faults.append(
                f"{name} holds {worst:.6g}: values above {largest:g} in size are implausible"
            )
            replaced[name] = Measured(measured.values, measured.present & good)
    if not faults:
        return signals, None
    probes = {
        **signals.probes,
        **{name: measured for name, measured in replaced.items() if name != "loss"},
    }
    tokens_K = np.minimum(signals.tokens_K, int(LARGEST_TOKENS))
    return replace(
        signals, loss=replaced.get("loss", signals.loss), probes=probes, tokens_K=tokens_K
    ), faults[0]


def _clock_fault(signals: Signals, before: Signals | None) -> str | None:
    if before is None or (signals.step >= before.step and signals.progress >= before.progress):
        return None
    return (
        f"step {signals.step} at progress {signals.progress:g} follows step {before.step} at "
        f"progress {before.progress:g}: neither may decrease"
    )


def _token_fault(signals: Signals) -> str | None:
    most = int(signals.tokens_K.max())
    return (
        f"{most:,} tokens in one interval: more than {LARGEST_TOKENS:g} are implausible"
        if most > LARGEST_TOKENS
        else None
    )
