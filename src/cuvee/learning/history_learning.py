"""From logged runs to a policy: cloning, conservative Q-learning, and when to stop (Data Mixing Agent, arXiv 2507.15640 §3).

A share of the runs is held out: off-policy evaluation uses all runs, and nothing is learned from the held-out ones. The actor
is evaluated (`learning.off_policy`) after behaviour cloning and then every `eval_every` updates. Among the actors that stay near
the data, the one whose gain over the best static mixture has the highest lower bound is kept. Learning that diverges therefore
costs time and not quality. `updates=0` is behaviour cloning (SFT) only.

Runs may be of several domain spaces. The actor is evaluated in each space by itself, and the lowest bound counts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from cuvee.agents.history import PRESETS, HistoryArchitecture
from cuvee.agents.learning import digest, load_module, module_state
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Lesson, State
from cuvee.core.renamed import unknown_settings
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.learning.episodes import Episode
from cuvee.learning.merging import coarser
from cuvee.learning.off_policy import OffPolicyEstimate, OffPolicyEvaluator, static_candidates
from cuvee.learning.offline import OfflineLearner, OfflineSettings
from cuvee.loop import run as run_loop
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import UNIVERSAL, load_policy
from cuvee.policies.history.encoder import encode_trajectory
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.dynamics_model import DynamicsModel, Regression, as_logged, domain_change
from cuvee.training.checkpoint import Checkpoints

_FEWEST = 8
_FAR_OUT = 1e3  # taken off the bound of what is out of reach, so that anything within it is better


@dataclass(frozen=True)
class LearnSettings(OfflineSettings):
    """`OfflineSettings`, and: `bc_updates` and `updates` are steps of behaviour cloning and of Q-learning. `held_out` is the share
    of each space's runs that are kept for off-policy evaluation and not learned from. With 0 nothing is evaluated, and the last
    actor is kept. So many `imagined` trajectories are learned from beside the logged ones, see `imagine`. `initial` is the folder
    of a policy whose actor learning starts from, or `universal`. `coarse`: each run is also learned from in coarser domain spaces.
    `architecture` is a preset's name or its fields."""

    bc_updates: int = 300
    updates: int = 1000
    eval_every: int = 100
    held_out: float = 0.25
    imagined: int = 0
    initial: str = ""
    coarse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}: it is a share of the runs, from 0 to below 1"
            )
        if self.eval_every < 1 or min(self.bc_updates, self.updates) < 0:
            raise ConfigError("eval_every must be 1 or more, bc_updates and updates 0 or more")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From plain JSON. Raises `ConfigError` naming an option that there is not."""
        known = [one.name for one in dataclasses.fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(unknown_settings("the agent", unknown, known))
        given = options.get("architecture", "small")
        if isinstance(given, str) and given not in PRESETS:
            raise ConfigError(
                f"architecture is {given!r}: use {' or '.join(PRESETS)}, or its fields"
            )
        architecture = PRESETS[given] if isinstance(given, str) else HistoryArchitecture(**given)
        return cls(**{**options, "architecture": architecture})


@dataclass(frozen=True)
class LearnProgress:
    """`stage` is "cloning" or "learning"; `estimates` are the newest figures, by domain space."""

    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]
    estimates: Mapping[str, Mapping[str, Any]]


Observer = Callable[[LearnProgress], None]


@dataclass(frozen=True)
class Learned(Lesson):
    """`evaluations` holds the figures of each off-policy evaluation, in the order of updates. `estimates`
    are those of the actor that was kept, by domain space; `held_out` are the ids of the runs they rest on.

    "supported" under "support" of the provenance is null where no runs were held out."""

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
    """Learns from `runs`. With a `folder`, resumes there what was interrupted, to the bit.

    Runs whose domains changed are learned from, but take no part in the evaluation; "left_out" of the provenance names them.
    Raises `PolicyError` if they leave no run to evaluate on, if fewer than 8 runs have feedback for every interval, or naming
    the run that holds a non-finite number.
    """
    usable = [run for run in runs if len(run.trajectory) and feedback(run.trajectory).present.all()]
    if len(usable) < _FEWEST:
        raise PolicyError(
            f"{len(usable)} of {len(runs)} runs have feedback for every interval, at least {_FEWEST} are needed: run more "
            "proxies (`cuvee search`), with question files"
        )
    return _Learning(usable, feedback, settings, seed, folder, observer).finish()


class _Learning:
    """The state of one course of learning: the learner, how far it is, the best actor so far and the trace."""

    def __init__(
        self,
        runs: Sequence[Run],
        feedback: Feedback,
        settings: LearnSettings,
        seed: int,
        folder: Path | None,
        observer: Observer | None,
    ) -> None:
        self.runs, self.feedback, self.settings, self.seed = runs, feedback, settings, seed
        self.observer, self.seconds, self.position = observer, 0.0, 0
        self.evaluations: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        held = _held_out(runs, settings.held_out, seed)
        changes = {run.id: domain_change(run.trajectory) for run in runs}
        self.left_out = {run_id: change for run_id, change in changes.items() if change}
        if settings.held_out and self.left_out and not held:
            each = "; ".join(f"{run_id}: {change}" for run_id, change in self.left_out.items())
            raise PolicyError(
                f"too few runs are left to evaluate a policy on: {each}. Run proxies whose domains stay the same (`cuvee search`), "
                "or set held_out to 0, so that nothing is evaluated"
            )
        self.held_out = [run.id for run in runs if run.id in held]
        learned_from = [run for run in runs if run.id not in held]
        seen = [run.trajectory for run in learned_from]
        names = [run.id for run in learned_from]
        if settings.coarse:
            seen += coarser(seen, seed)
            names += [
                f"a coarser form of a run, number {number}"
                for number in range(len(seen) - len(names))
            ]
        episodes = [as_episode(trajectory, feedback) for trajectory in seen]
        imagined = [
            as_episode(one, feedback)
            for one in imagine(learned_from, settings.imagined, feedback.weight, seed)
        ]
        self.learner = OfflineLearner(episodes, settings, seed, names, imagined)
        self.initial = _begin_with(self.learner, settings) if settings.initial else None
        self.evaluators = _evaluators(runs, held, feedback, settings.quantile)
        self.checkpoints = Checkpoints(folder, keep=2) if folder else None

    @property
    def total(self) -> int:
        return self.settings.bc_updates + self.settings.updates

    def finish(self) -> Learned:
        started = time.perf_counter()
        if self.checkpoints and (saved := self.checkpoints.latest()):
            self.load_state_dict(saved[1])
        before, metrics = self.seconds, dict[str, float]()
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
            metrics = (
                self.learner.clone()
                if self.position < self.settings.bc_updates
                else self.learner.update()
            )
            self.position += 1

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
            actor, critic = (
                module_state(self.learner.actor.net),
                module_state(self.learner.critic.net),
            )
            self.best = {
                "worst": worst,
                "update": self.evaluations[-1]["update"],
                "actor": actor,
                "critic": critic,
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
        support = {
            "supported": all(estimate.supported for estimate in estimates.values())
            if estimates
            else None,
            "update": self.best["update"],
            "spaces": {space: estimate.figures() for space, estimate in estimates.items()},
        }
        fallback = self._fallback(estimates)
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
            "corpora": sorted({str(run.config.get("corpus", "")) for run in self.runs} - {""}),
            "proxies": {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds},
            "learning": {
                "seconds": self.seconds,
                "seed": self.seed,
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

    def _fallback(self, estimates: Mapping[str, OffPolicyEstimate]) -> dict[str, Any] | None:
        """The best static mixture: by role, the mean over spaces, and by domain where all runs have the same ones."""
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
                f"{self.checkpoints.folder} holds what was learned from other runs or with other settings: remove that folder to "
                "begin anew, or go on with the settings that it was begun with"
            )
        self.position, self.seconds = int(state["position"]), float(state["seconds"])
        self.evaluations, self.best = list(state["evaluations"]), state["best"]
        self.learner.load_state_dict(state["learner"])

    def _identity(self) -> dict[str, Any]:
        return {
            "runs": [run.id for run in self.runs],
            "seed": self.seed,
            "feedback": self.feedback.weight,
            "settings": dataclasses.asdict(self.settings),
            "initial": self.initial,
        }


def _begin_with(learner: OfflineLearner, settings: LearnSettings) -> str:
    """Gives it the actor of another policy; the critics, which valued something else, begin anew. Returns the actor's digest."""
    folder = UNIVERSAL if settings.initial == UNIVERSAL.name else Path(settings.initial)
    policy = load_policy(folder)
    if not isinstance(policy, HistoryPolicy):
        raise PolicyError(
            f"{folder} holds a {type(policy).__name__}: only what `cuvee learn` wrote can be learned on from"
        )
    wanted, there = dataclasses.asdict(settings.architecture), policy.settings()["architecture"]
    if wanted != there:
        raise PolicyError(
            f"the policy in {folder} has the architecture {there}, and not {wanted}: give it as `architecture`"
        )
    state = module_state(policy.actor)
    load_module(learner.actor.net, state)
    return digest(state)


def as_episode(trajectory: Trajectory, feedback: Feedback) -> Episode:
    """What a learner reads of a run; the reward of an interval is by how much it raised the feedback."""
    seen, e_T1 = encode_trajectory(trajectory, feedback), feedback(trajectory).values
    kept = len(seen.globals_G)
    weights_TK = trajectory.weights_TK()[len(trajectory) + 1 - kept :]
    return Episode(
        domains_TKF=seen.domains_KF,
        globals_TG=seen.globals_G,
        actions_TK=weights_TK.astype(np.float32),
        rewards_T=np.diff(e_T1)[len(trajectory) + 1 - kept :].astype(np.float32),
        terminated=trajectory.last.progress < 1.0,
    )


def imagine(runs: Sequence[Run], count: int, weight: float, seed: int) -> list[Trajectory]:
    """`count` walks of the scoring sampler through runs as regressions over the logged ones have them (`simulation.dynamics_model`).

    Each walk has a regression of its own, fitted to runs drawn with replacement, so what the data leave open differs from walk to
    walk. Spaces get walks in proportion to their runs; one of fewer than 4 whole runs gets none.
    """
    rng, found = np.random.default_rng([seed, 11]), []
    for space in dict.fromkeys(_space(run.trajectory) for run in runs):
        members = [
            run.trajectory for run in runs if _space(run.trajectory) == space and _whole(run)
        ]
        if len(members) < 4:
            continue
        regression = Regression([as_logged(trajectory) for trajectory in members])
        for number in range(round(count * len(members) / len(runs))):
            trainer = DynamicsModel(
                regression.redrawn(rng), members[int(rng.integers(len(members)))]
            )
            found.append(
                run_loop(trainer, ScoringSampler(int(rng.integers(2**31)), number, weight=weight))
            )
    return found


def _space(trajectory: Trajectory) -> tuple[tuple[str, ...], int]:
    return trajectory.names, len(trajectory)


def _whole(run: Run) -> bool:
    """Whether it ran to its end over the same domains, as it must for a regression."""
    return run.trajectory.last.progress >= 1.0 and domain_change(run.trajectory) is None


def _held_out(runs: Sequence[Run], share: float, seed: int) -> set[str]:
    """Ids of the runs that are held out: a share of each space, drawn by `seed`; none of a space too small to spare two."""
    rng, held = np.random.default_rng([seed, 7]), set()
    for space in dict.fromkeys(_space(run.trajectory) for run in runs):
        members = [run for run in runs if _space(run.trajectory) == space and _whole(run)]
        count = round(share * len(members))
        if count >= 2 and len(members) - count >= 2:
            held |= {members[int(index)].id for index in rng.permutation(len(members))[:count]}
    return held


def _evaluators(
    runs: Sequence[Run], held: set[str], feedback: Feedback, quantile: float
) -> dict[str, OffPolicyEvaluator]:
    evaluators: dict[str, OffPolicyEvaluator] = {}
    for space in dict.fromkeys(_space(run.trajectory) for run in runs if run.id in held):
        members = [run for run in runs if _space(run.trajectory) == space and _whole(run)]
        learned_from = [run.trajectory for run in members if run.id not in held]
        returns = [float(feedback(trajectory).values[-1]) for trajectory in learned_from]
        name = f"{len(space[0])} domains, {space[1]} intervals" + (
            f" ({len(evaluators) + 1})" if evaluators else ""
        )
        statics = static_candidates(learned_from, returns, quantile)
        evaluators[name] = OffPolicyEvaluator(
            [run.trajectory for run in members], statics, feedback.weight
        )
    return evaluators
