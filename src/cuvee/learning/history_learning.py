"""Learns a policy from logged runs (Data Mixing Agent, arXiv 2507.15640 §3).

`learn` runs behaviour cloning, then conservative Q-learning. A fraction of the runs is held out:
nothing is learned from them, but off-policy evaluation uses all runs. The actor is evaluated
(`learning.off_policy`) after behaviour cloning and then every `eval_every` updates. Of the actors
that stay near the data, the one is kept whose gain over the static mixture has the highest
lower bound. If learning diverges, it costs time but not quality. `updates=0` is behaviour cloning
(SFT) only.

Runs may come from several domain spaces. The actor is evaluated in each space separately, and the
lowest bound counts.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.agents.learning import digest, load_module, module_state
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.epochs import caps_K
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Lesson, State
from cuvee.core.trajectory import Cost, Run
from cuvee.learning.learn_settings import LearnSettings
from cuvee.learning.logged_runs import (
    as_episode,
    ended,
    finished,
    held_out,
    imagine,
    spaces_of,
)
from cuvee.learning.merging import coarser
from cuvee.learning.model_actor import FittedSpace, ModelLearner, fitted_spaces
from cuvee.learning.off_policy import OffPolicyEstimate, OffPolicyEvaluator, static_candidates
from cuvee.learning.offline import OfflineLearner
from cuvee.learning.planning import plan
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import UNIVERSAL, load_policy
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.history.readable import MOST_EPOCHS
from cuvee.simulation.dynamics_model import domain_change
from cuvee.training.checkpoint import Checkpoints

_FEWEST = 8
# Subtracted from the bound of an actor that leaves the data, so that any other actor is better.
_FAR_OUT = 1e3


@dataclass(frozen=True)
class LearnProgress:
    """Progress of `learn`, for observers.

    `stage` is "cloning" or "learning". `estimates` are the results of the newest evaluation, by
    domain space.
    """

    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]
    estimates: Mapping[str, Mapping[str, Any]]


Observer = Callable[[LearnProgress], None]


@dataclass(frozen=True)
class Learned(Lesson):
    """The result of `learn`.

    `evaluations` holds the results of all evaluations, in the order of updates. `estimates` are
    those of the actor that was kept, by domain space. `held_out` are the ids of the runs that were
    held out. In the provenance, "supported" under "support" is null if no runs were held out.
    """

    policy: HistoryPolicy
    evaluations: Sequence[Mapping[str, Any]]
    estimates: Mapping[str, OffPolicyEstimate]
    held_out: Sequence[str]
    feedback: Feedback
    settings: LearnSettings


def learn(
    runs: Sequence[Run],
    feedback: Feedback,
    settings: LearnSettings,
    seed: int = 0,
    folder: Path | None = None,
    observer: Observer | None = None,
) -> Learned:
    """Learn a policy from `runs`.

    With a `folder`, an interrupted call resumes from it, with exactly the same result. Runs that
    stopped or diverged are data, too (`learning.logged_runs`); "ended_early" in the provenance
    names them. Runs whose domains changed are learned from but not used in the evaluation; "left_out" in the provenance
    names them. Raises `PolicyError` if no runs are left for the evaluation, if fewer than 8 runs
    have feedback for every interval, or if a run has a non-finite number (it is named).
    """
    usable = [run for run in runs if len(run.trajectory) and feedback(run.trajectory).present.all()]
    if len(usable) < _FEWEST:
        raise PolicyError(
            f"{len(usable)} of {len(runs)} runs have feedback for every interval, at least "
            f"{_FEWEST} are needed: run more proxies (`cuvee search`), with question files"
        )
    return _Learning(usable, feedback, settings, seed, folder, observer).finish()


class _Learning:
    """The state of one call of `learn`: learner, position, best actor and evaluations."""

    def __init__(
        self,
        runs: Sequence[Run],
        feedback: Feedback,
        settings: LearnSettings,
        seed: int,
        folder: Path | None,
        observer: Observer | None,
    ) -> None:
        self.runs = runs
        self.feedback = feedback
        self.settings = settings
        self.seed = seed
        self.observer = observer
        self.seconds = 0.0
        self.position = 0
        self.evaluations: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        held = held_out(runs, settings.held_out, seed)
        changes = {run.id: domain_change(run.trajectory) for run in runs}
        self.left_out = {run_id: change for run_id, change in changes.items() if change}
        if settings.held_out and self.left_out and not held:
            each = "; ".join(f"{run_id}: {change}" for run_id, change in self.left_out.items())
            raise PolicyError(
                f"too few runs are left to evaluate a policy: {each}. Run proxies whose domains "
                "stay the same (`cuvee search`), or set held_out to 0 to skip the evaluation"
            )
        self.held_out = [run.id for run in runs if run.id in held]
        learned_from = [run for run in runs if run.id not in held]
        seen = [run.trajectory for run in learned_from]
        names = [run.id for run in learned_from]
        if settings.coarse:
            seen += coarser([run.trajectory for run in learned_from if finished(run)], seed)
            names += [
                f"coarser version {number} of a run" for number in range(len(seen) - len(names))
            ]
        diverged = {id(run.trajectory) for run in learned_from if run.diverged}
        episodes = [
            as_episode(trajectory, feedback, id(trajectory) in diverged) for trajectory in seen
        ]
        imagined = [
            as_episode(one, feedback)
            for one in imagine(learned_from, settings.imagined, feedback.weight, seed)
        ]
        self.learner = OfflineLearner(episodes, settings, seed, names, imagined)
        self.models = [] if settings.learner == "cql" else _fitted(learned_from, feedback, seed)
        self.by_model = ModelLearner(self.models, self.learner.actor, feedback.weight)
        self.initial = _start_from(self.learner, settings) if settings.initial else None
        self.evaluators = _evaluators(runs, held, feedback, settings.quantile, self.looks)
        self.checkpoints = Checkpoints(folder, keep=2) if folder else None

    @property
    def total(self) -> int:
        """The number of updates of both stages."""
        stages = 2 if self.settings.learner == "both" else 1
        return self.settings.bc_updates + stages * self.settings.updates

    @property
    def looks(self) -> int:
        """The number of policies that are compared: one actor an evaluation, and the plan."""
        learned = self.total - self.settings.bc_updates
        return 1 + math.ceil(learned / self.settings.eval_every) + bool(self.models)

    def finish(self) -> Learned:
        """Run the remaining updates and evaluations and return the result."""
        started = time.perf_counter()
        if self.checkpoints and (saved := self.checkpoints.latest()):
            self.load_state_dict(saved[1])
        before = self.seconds
        metrics: Mapping[str, float] = {}
        while True:
            if self._due():
                self._evaluate()
                self.seconds = before + time.perf_counter() - started
                if self.checkpoints:
                    self.checkpoints.save(self.position, self.state_dict())
            if self.position:
                self._report(metrics)
            if self.position == self.total:
                return self._learned()
            metrics = self._update()
            self.position += 1

    def _update(self) -> Mapping[str, float]:
        learned = self.position - self.settings.bc_updates
        if learned < 0:
            return self.learner.clone()
        if self._by_model(learned + 1):
            return self.by_model.update(self.learner.rng, self.learner.generator)
        return self.learner.update()

    def _by_model(self, update: int) -> bool:
        """Whether the update with that number (from 1) uses the fitted worlds."""
        kind = self.settings.learner
        return kind == "model" or (kind == "both" and update > self.settings.updates)

    def _learner_of(self, update: int) -> str:
        if update == 0:
            return "sft"
        return "model" if self._by_model(update) else "cql"

    def _due(self) -> bool:
        learned = self.position - self.settings.bc_updates
        evaluated = self.evaluations[-1]["update"] if self.evaluations else -1
        return learned > evaluated and (
            learned % self.settings.eval_every == 0 or self.position == self.total
        )

    def _evaluate(self) -> None:
        policy = self._policy(
            self.learner.actor.net.state_dict(), self.learner.critic.net.state_dict()
        )
        figures = {
            space: evaluator(policy).figures() for space, evaluator in self.evaluators.items()
        }
        worst = min(
            (
                float(one["over_static_low"]) - (0.0 if one["within_reach"] else _FAR_OUT)
                for one in figures.values()
            ),
            default=float(self.position),
        )
        self.evaluations.append(
            {
                "update": self.position - self.settings.bc_updates,
                "worst": worst,
                "estimates": figures,
            }
        )
        if self.best is None or worst > self.best["worst"]:
            self.best = {
                "worst": worst,
                "update": self.evaluations[-1]["update"],
                "actor": module_state(self.learner.actor.net),
                "critic": module_state(self.learner.critic.net),
            }

    def _policy(
        self, actor: Mapping[str, Any], critic: Mapping[str, Any], **said: Any
    ) -> HistoryPolicy:
        architecture = dataclasses.asdict(self.settings.architecture)
        policy = HistoryPolicy(architecture, weight=self.feedback.weight, seed=self.seed, **said)
        load_module(policy.actor, {name: np.asarray(value) for name, value in actor.items()})
        load_module(policy.critic, {name: np.asarray(value) for name, value in critic.items()})
        return policy

    def _learned(self) -> Learned:
        assert self.best is not None
        bare = self._policy(self.best["actor"], self.best["critic"])
        estimates = {space: evaluator(bare) for space, evaluator in self.evaluators.items()}
        acts = all(estimate.supported for estimate in estimates.values())
        planned = self._plan()
        support = {
            "supported": acts if estimates else None,
            "steered_by": "actor" if acts else "plan" if planned.get("points") else "static",
            "learner": self._learner_of(self.best["update"]),
            "plan": planned.get("figures"),
            "update": self.best["update"],
            "spaces": {space: estimate.figures() for space, estimate in estimates.items()},
        }
        fallback = self._fallback(estimates)
        if fallback and planned.get("points"):
            fallback["points"] = planned["points"]
        policy = self._policy(
            self.best["actor"],
            self.best["critic"],
            support=support if estimates else None,
            fallback=fallback,
        )
        cost = sum((run.cost for run in self.runs), Cost())
        provenance = {
            "runs": [run.id for run in self.runs],
            "held_out": self.held_out,
            "left_out": self.left_out,
            "ended_early": {
                run.id: f"{'diverged' if run.diverged else 'stopped'} after interval "
                f"{len(run.trajectory)}"
                for run in self.runs
                if not finished(run)
            },
            "corpora": sorted({str(run.config.get("corpus", "")) for run in self.runs} - {""}),
            "proxies": {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds},
            "learning": {
                "seconds": self.seconds,
                "seed": self.seed,
                "cql_ratio": self.learner.conservative.achieved,
                "settings": dataclasses.asdict(self.settings),
                "initial": self.initial,
            },
            "support": support,
        }
        return Learned(
            policy=policy,
            provenance=provenance,
            evaluations=self.evaluations,
            estimates=estimates,
            held_out=self.held_out,
            feedback=self.feedback,
            settings=self.settings,
        )

    def _plan(self) -> dict[str, Any]:
        """Return the figures of the plan, and its points if the data support it.

        {} without a fitted model or an evaluation, or if the runs are of several domain spaces.
        """
        if len(self.models) != 1 or len(self.evaluators) != 1:
            return {}
        model, domains = self.models[0]
        planned = plan(model, domains, epochs=self._epochs_K(domains))
        estimate = next(iter(self.evaluators.values()))(planned)
        found: dict[str, Any] = {"figures": estimate.figures()}
        return {**found, **planned.settings()} if estimate.supported else found

    def _epochs_K(self, domains: Sequence[Domain]) -> FloatArray:
        """Return the epoch caps (K,) that the policy keeps in a run like those that were logged."""
        caps = (self.runs[0].config.get("guard") or {}).get("epochs")
        return np.minimum(caps_K(caps, [domain.name for domain in domains]), MOST_EPOCHS)

    def _fallback(self, estimates: Mapping[str, OffPolicyEstimate]) -> dict[str, Any] | None:
        """Return the static mixture that is played if neither actor nor plan is supported.

        "target" and "flatness" are means over the domain spaces. "shares" is by domain, if all runs
        have the same domains.
        """
        found = list(estimates.values())
        if not found:
            return None
        target, flatness = np.mean([estimate.by_role for estimate in found], axis=0).tolist()
        by_role = {"target": target, "flatness": flatness}
        if len(found) > 1:
            return by_role
        return {
            **by_role,
            "shares": dict(zip(found[0].path.names, found[0].static_K.tolist(), strict=True)),
        }

    def _report(self, metrics: Mapping[str, float]) -> None:
        if self.observer:
            stage = "cloning" if self.position <= self.settings.bc_updates else "learning"
            estimates = self.evaluations[-1]["estimates"] if self.evaluations else {}
            self.observer(LearnProgress(stage, self.position, self.total, metrics, estimates))

    def state_dict(self) -> State:
        return {
            "identity": self._identity(),
            "position": self.position,
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "evaluations": self.evaluations,
            "best": self.best,
        }

    def load_state_dict(self, state: State) -> None:
        if state["identity"] != self._identity():
            assert self.checkpoints
            raise PolicyError(
                f"{self.checkpoints.folder} holds a checkpoint of other runs or other settings: "
                "remove that folder to start again, or use the settings it was started with"
            )
        self.position = int(state["position"])
        self.seconds = float(state["seconds"])
        self.evaluations = list(state["evaluations"])
        self.best = state["best"]
        self.learner.load_state_dict(state["learner"])

    def _identity(self) -> dict[str, Any]:
        return {
            "runs": [run.id for run in self.runs],
            "seed": self.seed,
            "feedback": self.feedback.weight,
            "settings": dataclasses.asdict(self.settings),
            "initial": self.initial,
        }


def _fitted(runs: Sequence[Run], feedback: Feedback, seed: int) -> list[FittedSpace]:
    """Fit laws to the runs of each domain space that has enough of them."""
    spaces = [space.trajectories for space in spaces_of(runs, feedback)]
    return fitted_spaces(spaces, feedback.weight, seed)


def _start_from(learner: OfflineLearner, settings: LearnSettings) -> str:
    """Copy the actor of a saved policy and return its digest.

    The critics are not copied, because they were trained on other returns.
    """
    folder = UNIVERSAL if settings.initial == UNIVERSAL.name else Path(settings.initial)
    policy = load_policy(folder)
    if not isinstance(policy, HistoryPolicy):
        raise PolicyError(
            f"{folder} holds a {type(policy).__name__}: only what `cuvee learn` wrote can be the "
            "initial policy"
        )
    wanted = dataclasses.asdict(settings.architecture)
    found = policy.settings()["architecture"]
    if wanted != found:
        raise PolicyError(
            f"the policy in {folder} has the architecture {found}, not {wanted}: "
            "give it as `architecture`"
        )
    state = module_state(policy.actor)
    load_module(learner.actor.net, state)
    return digest(state)


def _evaluators(
    runs: Sequence[Run], held: set[str], feedback: Feedback, quantile: float, looks: int
) -> dict[str, OffPolicyEvaluator]:
    evaluators: dict[str, OffPolicyEvaluator] = {}
    for space in spaces_of(runs, feedback):
        if not any(run.id in held for run in space.runs):
            continue
        learned_from = [
            trajectory
            for run, trajectory in zip(space.runs, space.trajectories, strict=True)
            if run.id not in held and ended(trajectory)
        ]
        returns = [float(feedback(trajectory).values[-1]) for trajectory in learned_from]
        example = space.trajectories[0]
        name = f"{len(example.names)} domains, {len(example)} intervals" + (
            f" ({len(evaluators) + 1})" if evaluators else ""
        )
        statics = static_candidates(learned_from, returns, quantile)
        evaluators[name] = OffPolicyEvaluator(space.trajectories, statics, feedback.weight, looks)
    return evaluators
