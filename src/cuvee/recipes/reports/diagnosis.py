"""The content of the diagnostics page of a learned policy: path, critic, heuristics, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cuvee.agents.learning import tensors
from cuvee.agents.simplex import sample_flat
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import natural_K
from cuvee.core.trajectory import Run, Trajectory
from cuvee.evaluation.statistics import Estimate
from cuvee.learning.history_learning import Learned
from cuvee.learning.off_policy import OffPolicyEstimate
from cuvee.policies.feedback import Feedback
from cuvee.policies.history import heuristics
from cuvee.policies.history.encoder import encode_trajectory
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.history.scoring_sampler import CRITERIA
from cuvee.report.learning import Evaluated, SpaceView
from cuvee.simulation.dynamics_model import domain_change

_DRAWS = 256
_SCORED = 64


def diagnose(learned: Learned, runs: Sequence[Run]) -> list[SpaceView]:
    """Return one view per domain space of the evaluation.

    Of `runs`, only those are used from which the policy was learned or on which it was evaluated.
    """
    known = set(learned.provenance["runs"])
    logged = [run.trajectory for run in runs if run.id in known]
    return [_view(name, estimate, learned, logged) for name, estimate in learned.estimates.items()]


def _view(
    name: str,
    estimate: OffPolicyEstimate,
    learned: Learned,
    logged: Sequence[Trajectory],
) -> SpaceView:
    path = estimate.path
    feedback = learned.feedback
    quantile = learned.settings.quantile
    trajectories = [
        one
        for one in logged
        if one.names == path.names and len(one) == len(path) and domain_change(one) is None
    ]
    returns_N = np.array([feedback(one).values[-1] for one in trajectories])
    best_N = returns_N >= np.quantile(returns_N, 1 - quantile)
    target_K = np.array([domain.is_target for domain in path.domains])
    values, q_std_T, disagreement_T = _opinions(learned.policy, path, feedback)
    return SpaceView(
        name=name,
        domains=path.domains,
        path_TK=path.weights_TK(),
        target_shares_NT=np.stack(
            [one.weights_TK()[:, target_K].sum(axis=1) for one in trajectories]
        ),
        best_N=best_N.astype(np.float64),
        values=values,
        q_std_T=q_std_T,
        disagreement_T=disagreement_T,
        evaluations=[
            Evaluated(
                int(one["update"]),
                *(
                    float(one["estimates"][name][key])
                    for key in ("over_static", "over_static_low", "over_static_high")
                ),
            )
            for one in learned.evaluations
        ],
        heuristics=_scores(
            path,
            [one for one, best in zip(trajectories, best_N, strict=True) if best],
            trajectories,
            feedback,
        ),
        verdict=[
            *verdict(estimate, int(learned.provenance["support"]["update"])),
            *_left_out(learned),
        ],
    )


def verdict(estimate: OffPolicyEstimate, update: int) -> list[str]:
    """Return the result of off-policy evaluation in sentences."""
    gain, over, error = estimate.gain, estimate.over_static, estimate.error
    said = [
        f"Evaluated on {gain.pairs} runs, the policy (after {update} updates of Q-learning) ends "
        f"{_apart(gain)} their average in feedback, and {_apart(over)} the static mixture.",
        f"The model that evaluates it is off by {error:.4f} on held-out runs. "
        f"{estimate.outside:.0%} of the decisions are further from what was tried than the data "
        f"are from each other (total variation above {estimate.reach:.2f}).",
    ]
    if not estimate.supported:
        static = (
            "the prior (half for each role, the domains of a role alike)"
            if estimate.is_prior
            else "a static mixture that is surely better than the prior"
        )
        said.append(f"The data do not support this policy: a run under it gets {static} instead.")
    return said


def _left_out(learned: Learned) -> list[str]:
    return [
        f"Run {run} is not part of the evaluation: {change}."
        for run, change in learned.provenance["left_out"].items()
    ]


def _apart(estimate: Estimate) -> str:
    side = "above" if estimate.mean >= 0 else "below"
    return (
        f"{abs(estimate.mean):.4f} "
        f"({100 * estimate.level:.3g} % interval {estimate.low:+.4f} to {estimate.high:+.4f}) {side}"
    )


def _opinions(
    policy: HistoryPolicy, path: Trajectory, feedback: Feedback
) -> tuple[Mapping[str, FloatArray], FloatArray, FloatArray]:
    """Return the critic's values along the path, each (T,).

    First the values of some mixtures by the smaller of the twin critics, then the standard
    deviation of Q over uniformly drawn mixtures, then that of half the twins' difference.
    """
    T, K = len(path), len(path.names)
    own_TK = path.weights_TK()
    last_TK = np.concatenate([heuristics.role_shares(path.domains, "source")[None], own_TK[:-1]])
    asked: dict[str, Any] = {
        "own": own_TK,
        "the last mixture": last_TK,
        "natural": np.broadcast_to(natural_K(path.domains), (T, K)),
        "uniform": np.full((T, K), 1 / K),
    }
    flat = sample_flat((_DRAWS, T, K), torch.Generator().manual_seed(0))
    with torch.inference_mode():
        domains, globals_ = tensors(encode_trajectory(path, feedback))
        tokens_TKH = policy.critic.encode(domains[None], globals_[None])[0, :-1]
        named = torch.minimum(
            *policy.critic.values(
                tokens_TKH, torch.from_numpy(np.stack(list(asked.values()))).float()
            )
        )
        first, second = policy.critic.values(tokens_TKH, flat)
    values = dict(zip(asked, named.double().numpy(), strict=True))
    q_std_T = ((first + second) / 2).std(0)
    disagreement_T = ((first - second) / 2).std(0)
    return values, q_std_T.double().numpy(), disagreement_T.double().numpy()


def _scores(
    path: Trajectory,
    best: Sequence[Trajectory],
    trajectories: Sequence[Trajectory],
    feedback: Feedback,
) -> dict[str, tuple[float, float, float]]:
    columns = [_mean_scores(group[:_SCORED], feedback) for group in ([path], best, trajectories)]
    return {name: (columns[0][i], columns[1][i], columns[2][i]) for i, name in enumerate(CRITERIA)}


def _mean_scores(trajectories: Sequence[Trajectory], feedback: Feedback) -> list[float]:
    """Return the mean over all decisions of each of `CRITERIA`.

    Target progress is measured against a target share that rises evenly to one half.
    """
    found = []
    for trajectory in trajectories:
        source_K = heuristics.role_shares(trajectory.domains, "source")
        target_K = np.array([domain.is_target for domain in trajectory.domains])
        weights_TK = trajectory.weights_TK()
        e_T1 = feedback(trajectory).values
        before = np.concatenate([source_K[None], source_K[None], weights_TK])
        for t, weights_K in enumerate(weights_TK):
            one = weights_K[None]
            last_K = before[t + 1]
            wanted = heuristics.rising_share(0.0, 0.5, 1.0, trajectory.signals[t].progress)
            change = float(e_T1[t] - e_T1[t - 1]) if t else 0.0
            found.append(
                [
                    heuristics.smoothness(one, last_K)[0],
                    heuristics.target_progress(one, target_K, wanted)[0],
                    heuristics.source_coverage(one, source_K)[0],
                    heuristics.balance(one)[0],
                    heuristics.feedback_direction(one, last_K, before[t], change)[0],
                ]
            )
    return [float(score) for score in np.mean(found, axis=0)]
