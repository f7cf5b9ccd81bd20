"""`Diagnosis`: what a policy that learned during its run saw and preferred, and whether it helped.

Everything is read from the metrics that a run records anyway, so it costs no step anything. Methods
log different things:

    odm            reward       estimated loss by domain
    ado            speeds       how fast a domain's law falls
    doge           alignment    of its gradient with the objective's
    doremi         excess       of the loss over that of its reference run
    gain           gain         of its rows for the objective
    ac_odm, hds    what the agent observed by domain (audit record), terms of the reward, critic's error
    history        values of the actor's mixture and of others, entropy

A policy that logs none of this, such as a fixed mixture of RegMix or MixMin, learned nothing in the
run and has no diagnosis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import natural_K
from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run
from cuvee.evaluation.ranks import spearman
from cuvee.report.steering import Steering, steering
from cuvee.report.views import held_out_loss
from cuvee.report.words import signed

_PREFERENCES = {
    "reward": "estimated reward",
    "speeds": "speed of learning",
    "alignment": "gradient alignment",
    "excess": "excess loss",
    "gain": "estimated gain",
}
"""Metrics by domain by which a policy prefers domains, and what they are called."""
_LATE = 0.25
"""The last share of a run over which what a policy did is averaged."""
_FEW = 4  # fewer domains have no rank correlation worth printing


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one run with T intervals, over the K domains at its end.

    Correlations are Spearman's, over domains. They are None with fewer than four.
    """

    names: tuple[str, ...]
    natural_K: FloatArray
    weights_K: FloatArray
    """Mean mixture of the last quarter."""
    preference: str
    """What the policy prefers domains by, or ""."""
    preference_K: FloatArray
    """NaN where unknown."""
    fall_K: FloatArray
    """How far the validation loss fell, in nats; NaN where unknown."""
    against: str
    """The method whose fall was subtracted from `fall_K`, or ""."""
    follows: float | None
    """Correlation of preference and weight over the natural share."""
    pays: float | None
    """Correlation of weight over the natural share and fall of the loss."""
    sees: Mapping[str, float]
    """Correlation of what the agent observed by domain with its weights, strongest first."""
    entropy_T: FloatArray
    """Over ln K: 1 is uniform."""
    change_T: FloatArray
    """Total variation to the interval before."""
    critic_error_T: FloatArray
    """Of the intervals in which the agent learned; empty without a critic."""
    own_value: float | None
    """Mean value of the actor's mixture less that of the natural one, in the critic's units."""
    steered: Steering | None


def diagnose(
    run: Run, metrics: Sequence[Metrics], baseline: tuple[str, Run] | None = None
) -> Diagnosis | None:
    """Return the diagnosis of a run with these metrics; None if its policy learned nothing.

    `baseline` is the label and the run with which the fall of the losses is compared.
    """
    path = run.trajectory
    kind = next((key for key in _PREFERENCES if any(_by_name(one.get(key)) for one in metrics)), "")
    agents = [one["agent"] for one in metrics if isinstance(one.get("agent"), Mapping)]
    if len(path) < 2 or not (kind or any(agents)):
        return None
    names = path.names
    weights_TK = path.weights_TK()
    late = max(1, round(_LATE * len(path)))
    weights_K = weights_TK[-late:].mean(axis=0)
    shares_K = natural_K(path.domains)
    relative_K = weights_K / np.maximum(shares_K, 1e-12)
    last = [one[kind] for one in metrics[-late:] if kind and _by_name(one.get(kind))]
    preference_K = _means(last, names)
    fall_K = _falls(run, names)
    if baseline:
        fall_K = fall_K - _falls(baseline[1], names)
    observed = _observed(metrics[-late:], names)
    sees = {name: _correlation(values_K, relative_K) for name, values_K in observed.items()}
    known = {name: found for name, found in sees.items() if found is not None}
    critic = [float(one["critic_loss"]) for one in agents if _finite(one.get("critic_loss"))]
    values = [one for one in agents if _finite(one.get("own_value"))]
    above = [float(one["own_value"]) - float(one.get("natural_value", math.nan)) for one in values]
    entropy_T = np.array([mixture.entropy() for mixture in path.mixtures]) / math.log(len(names))
    return Diagnosis(
        names,
        shares_K,
        weights_K,
        _PREFERENCES.get(kind, ""),
        preference_K,
        fall_K,
        baseline[0] if baseline else "",
        _correlation(preference_K, relative_K),
        _correlation(relative_K, fall_K),
        dict(sorted(known.items(), key=lambda pair: -abs(pair[1]))),
        entropy_T,
        0.5 * np.abs(np.diff(weights_TK, axis=0)).sum(axis=1),
        np.array(critic),
        float(np.mean(above)) if above and np.isfinite(above).all() else None,
        steering(metrics),
    )


def sentences(found: Diagnosis) -> list[str]:
    """Return the diagnosis in words, the most important sentence first."""
    said = []
    others = found.steered.others if found.steered else {}
    if found.steered and others:
        total = found.steered.decisions
        who = " and ".join(f"{name} steered {count}" for name, count in others.items())
        why = f" (alarms: {', '.join(found.steered.alarms)})" if found.steered.alarms else ""
        said.append(f"Not its own alone: {who} of {total} intervals{why}.")
    if found.pays is not None:
        than = f" than under {found.against}" if found.against else ""
        how = f"fell {'further' if found.pays > 0 else 'less far'}{than}"
        weak = ", hardly" if abs(found.pays) < 0.3 else ""
        said.append(
            "The losses of domains that it gave more than their natural share "
            f"{how} (ρ = {signed(found.pays, 2)} over domains{weak})."
        )
    ratio_K = found.weights_K / np.maximum(found.natural_K, 1e-12)
    up, down = int(ratio_K.argmax()), int(ratio_K.argmin())
    said.append(
        f"In its last quarter it gave {found.names[up]} {found.weights_K[up]:.1%} "
        f"({ratio_K[up]:.1f} times natural) and {found.names[down]} {found.weights_K[down]:.1%} "
        f"({ratio_K[down]:.2g} times)."
    )
    if found.follows is not None:
        said.append(
            f"Its mixture and its {found.preference}: ρ = {signed(found.follows, 2)} over domains."
        )
    if found.sees:
        strongest = [f"{name} ({signed(rho, 2)})" for name, rho in list(found.sees.items())[:3]]
        said.append(f"Of what it sees, its mixture goes most with {', '.join(strongest)}.")
    if len(found.critic_error_T) > 3:
        first, last = _ends(found.critic_error_T)
        learns = "it learned to tell values" if last < 0.8 * first else "it learned little"
        said.append(f"The critic’s squared error went from {first:.3g} to {last:.3g}: {learns}.")
    if found.own_value is not None:
        said.append(
            "The critic values its mixture "
            f"{abs(found.own_value):.3g} {'above' if found.own_value > 0 else 'below'} the natural."
        )
    if len(found.change_T):
        moved = float(found.change_T[-max(1, len(found.change_T) // 4) :].mean())
        state = "it still moves" if moved > 0.005 else "it has settled"
        said.append(
            f"Exploration: entropy {found.entropy_T[-1]:.2f} of uniform, from "
            f"{found.entropy_T[0]:.2f}; {state} ({moved:.1%} of the batch an interval at the end)."
        )
    refused = found.steered.refused if found.steered else 0
    said += [f"The guard refused {refused} of its proposals."] if refused else []
    return said


def _ends(values_T: FloatArray) -> tuple[float, float]:
    """Return the means of the first and the last quarter."""
    part = max(1, len(values_T) // 4)
    return float(values_T[:part].mean()), float(values_T[-part:].mean())


def _by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and any(_finite(one) for one in value.values())


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _means(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> FloatArray:
    """Return the (K,) mean over mappings, NaN where no value is known."""
    rows = [[float(one[n]) if _finite(one.get(n)) else np.nan for n in names] for one in found]
    values_NK = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    known_K = np.isfinite(values_NK).sum(axis=0)
    sums_K = np.nansum(values_NK, axis=0)
    return np.where(known_K > 0, sums_K / np.maximum(known_K, 1), np.nan)


def _observed(metrics: Sequence[Metrics], names: Sequence[str]) -> dict[str, FloatArray]:
    """Return what the agent observed by domain, averaged, from the audit records.

    A history agent explains itself by features of the whole run; its `domains` is their number.
    """
    records = [(one.get("guard") or {}).get("explained") for one in metrics]
    explained = [one.get("domains") for one in records if isinstance(one, Mapping)]
    seen = [one for one in explained if isinstance(one, Mapping)]
    features = dict.fromkeys(name for one in seen for name in one)
    return {name: _means([one[name] for one in seen if name in one], names) for name in features}


def _falls(run: Run, names: Sequence[str]) -> FloatArray:
    """Return (K,) how far the validation losses fell between the first and the last validation."""
    measured = [t for t in range(len(run.trajectory) + 1) if held_out_loss(run, t, "valid")]
    if len(measured) < 2:
        return np.full(len(names), np.nan)
    first, last = (held_out_loss(run, t, "valid") for t in (measured[0], measured[-1]))
    return np.array([first.get(name, np.nan) - last.get(name, np.nan) for name in names])


def _correlation(first_K: FloatArray, second_K: FloatArray) -> float | None:
    known_K = np.isfinite(first_K) & np.isfinite(second_K)
    x, y = first_K[known_K], second_K[known_K]
    if len(x) < _FEW or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return spearman(x, y)
