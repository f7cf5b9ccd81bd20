"""`ScoringSampler`: one trajectory of the inductive scoring sampler of Data Mixing Agent (arXiv 2507.15640 §3).

At each step, candidates are drawn from a blend of proposals and scored by a weighted sum of human heuristics (both in
`cuvee.policies.history.heuristics`), and the next mixture is drawn from softmax(score / τ). The weights, τ, and where the target share is
to end and how it gets there are drawn once a trajectory, so a collection of them holds good and bad paths.

Ours, where the source says nothing. Each heuristic is standardised over the candidates of the step before it is weighted, so
that a weight means the same at 2 domains as at 104, whatever the units. And each trajectory has its own reading of what the two
fields are made of, drawn once: their empirical distributions, flattened by a power between none and all of the way to uniform,
times log-normal factors. Without these all domains of a field come to the same share in the mean over a run, whatever happens
from step to step, and nobody can learn which of them matter. And half of the trajectories go straight: a quarter hold one
mixture, a quarter go from one target share to another, up or down, in even steps. The others begin at the source field and are
drawn back to it, so that with many source domains for one of the target, few of them read much of the target for long, and none
of them reads it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.trajectory import Trajectory
from cuvee.policies.feedback import Feedback, question_files
from cuvee.policies.history import heuristics
from cuvee.probes.evaluation_set import EvaluationSet

CRITERIA = ("smoothness", "target progress", "source coverage", "balance", "feedback direction")
_EMPHASIS = (
    1.0,
    2.0,
    1.0,
    1.0,
    1.0,
)  # the target share is what matters most, so it is to be covered best
_TEMPERATURES = (0.1, 2.0)
_ENDS = (0.05, 1.0)
_BENDS = (0.05, 3.0)
_TASTES = (0.0, 1.5)
_HELD, _STRAIGHT = 0.25, 0.5  # of the trajectories; those that hold their mixture go straight, too


@dataclass(frozen=True)
class Character:
    """What one trajectory is like: `weights` of `CRITERIA`, which sum to 1; `temperature` is τ; the target share is to rise to
    `end`, early if `bend` is below 1 and late above; `taste` is the deviation of the logarithms of the factors by which it
    prefers domains to others of their field. `flatness` is 0 where a field's domains are wanted by their tokens, and 1 where
    they are wanted alike. In one that goes `straight` the target share is `begin` at first and moves evenly to `end`."""

    weights: tuple[float, ...]
    temperature: float
    end: float
    bend: float
    taste: float
    flatness: float = 0.0
    straight: bool = False
    begin: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Character:
        def log_uniform(low: float, high: float) -> float:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))

        weights, temperature = rng.dirichlet(_EMPHASIS), log_uniform(*_TEMPERATURES)
        end, bend, taste = rng.uniform(*_ENDS), log_uniform(*_BENDS), rng.uniform(*_TASTES)
        kind, flatness, begin = rng.random(), rng.uniform(), rng.uniform(*_ENDS)
        return cls(
            weights=tuple(weights.tolist()),
            temperature=temperature,
            end=end,
            bend=bend,
            taste=taste,
            flatness=flatness,
            straight=bool(kind < _STRAIGHT),
            begin=end if kind < _HELD else begin,
        )


@register_policy("scoring_sampler")
class ScoringSampler:
    """Trajectory `number` of those that belong to `seed`. `mixture` is a function of settings and history alone.

    `evaluation` names JSONL question files of the fields "general" and "target", which `share` of an interval's cost is spent
    on (see `EvaluationSet`); without them nothing is evaluated and the feedback's direction is not heeded. `weight` is λ of
    `Feedback`. `start` is ρ_0 by name, which need not sum to 1; by default the source field's empirical distribution, which gives
    target domains nothing. `candidates` are drawn a step, a quarter from each proposal. All arguments are JSON values.
    """

    def __init__(
        self,
        seed: int = 0,
        number: int = 0,
        *,
        evaluation: Mapping[str, Sequence[str]] | None = None,
        share: float = 0.02,
        weight: float = 0.5,
        start: Mapping[str, float] | None = None,
        candidates: int = 64,
    ) -> None:
        if candidates < len(heuristics.PROPOSALS):
            raise PolicyError(
                f"candidates is {candidates}: there must be {len(heuristics.PROPOSALS)} or more"
            )
        questions = question_files(evaluation)
        self._settings: dict[str, Any] = {
            "seed": seed,
            "number": number,
            "evaluation": questions,
            "share": share,
            "weight": weight,
            "start": start and dict(start),
            "candidates": candidates,
        }
        self._feedback = Feedback(weight)
        self._character = Character.draw(self._generator(0))
        self._decision: dict[str, Any] = {}
        self.probes: Sequence[Probe] = (EvaluationSet(questions, share=share),) if questions else ()

    @property
    def character(self) -> Character:
        return self._character

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Raises `PolicyError` if there are no source or no target domains to move between."""
        fields = [heuristics.role_shares(so_far.domains, role) for role in ("source", "target")]
        if not all(field_K.any() for field_K in fields):
            raise PolicyError(
                "the scoring sampler moves between source and target domains, and there must be some of each: "
                "build the corpus with --target NAME"
            )
        start_K = self._start(so_far.names, fields[0])
        factors_K, power = self._factors(len(so_far.names)), 1 - self._character.flatness
        source_K, target_K = (heuristics.tilted(field_K, factors_K, power) for field_K in fields)
        if self._character.straight:
            begin, end = self._character.begin, self._character.end
            share = begin + (end - begin) * so_far.last.progress
            self._decision = {"proposal": "straight", "wanted_target_share": share}
            return Mixture.normalise(so_far.names, (1 - share) * source_K + share * target_K)
        last_K, before_K = (_past(so_far, steps, start_K) for steps in (1, 2))
        rng = self._generator(1 + len(so_far))
        each = self._settings["candidates"] // len(heuristics.PROPOSALS)
        candidates_MK = heuristics.proposals(rng, each, last_K, source_K, target_K)
        character, is_target_K = (
            self._character,
            np.array([domain.is_target for domain in so_far.domains]),
        )
        wanted = heuristics.rising_share(
            float(start_K[is_target_K].sum()), character.end, character.bend, so_far.last.progress
        )
        scores_CM = np.stack(
            [
                heuristics.smoothness(candidates_MK, last_K),
                heuristics.target_progress(candidates_MK, is_target_K, wanted),
                heuristics.source_coverage(candidates_MK, source_K),
                heuristics.balance(candidates_MK),
                heuristics.feedback_direction(
                    candidates_MK, last_K, before_K, self._change(so_far)
                ),
            ]
        )
        score_M = np.array(character.weights) @ _standardised(scores_CM)
        chances_M = np.exp((score_M - score_M.max()) / character.temperature)
        chosen = int(rng.choice(len(score_M), p=chances_M / chances_M.sum()))
        self._decision = {
            "proposal": heuristics.PROPOSALS[chosen // each],
            "score": float(score_M[chosen]),
            "best_score": float(score_M.max()),
            "wanted_target_share": wanted,
            "heuristics": dict(zip(CRITERIA, scores_CM[:, chosen].tolist(), strict=True)),
        }
        return Mixture.normalise(so_far.names, candidates_MK[chosen])

    def learn(self, so_far: Trajectory) -> Metrics:
        """Learns nothing; says what the trajectory is like and how the mixture was come by."""
        said = asdict(self._character)
        return {
            **said,
            "weights": dict(zip(CRITERIA, said["weights"], strict=True)),
            **self._decision,
        }

    def _start(self, names: tuple[str, ...], source_K: FloatArray) -> FloatArray:
        given = self._settings["start"]
        if given is None:
            return source_K
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise PolicyError(
                f"start names {', '.join(unknown)}, but the run has {', '.join(names)}"
            )
        return Mixture.normalise(names, [given.get(name, 0.0) for name in names]).weights_K

    def _change(self, so_far: Trajectory) -> float:
        """How much the last move raised the feedback; 0 if that is not known."""
        if not len(so_far):
            return 0.0
        first, before, now = so_far.signals[0], so_far.signals[-2], so_far.last
        then, today = self._feedback.at(first, before), self._feedback.at(first, now)
        return 0.0 if then is None or today is None else today - then

    def _factors(self, K: int) -> FloatArray:
        """(K,) how much more of a domain there is to be than of another of its field."""
        return np.asarray(np.exp(self._character.taste * self._generator(0, K).normal(size=K)))

    def _generator(self, *timestep: int) -> np.random.Generator:
        """Random numbers of one step, so that a run that goes on draws what it would have drawn."""
        return np.random.default_rng([self._settings["seed"], self._settings["number"], *timestep])

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


def _past(so_far: Trajectory, steps: int, start_K: FloatArray) -> FloatArray:
    """(K,) the mixture so many steps ago over the present domains; ρ_0 before the first one."""
    if len(so_far) < steps:
        return start_K
    shares = so_far.mixtures[-steps].as_dict()
    weights_K = np.array([shares.get(name, 0.0) for name in so_far.names])
    return np.asarray(weights_K / weights_K.sum()) if weights_K.any() else start_K


def _standardised(scores_CM: FloatArray) -> FloatArray:
    """Each heuristic with mean 0 and deviation 1 over the candidates; 0 where it tells none from another."""
    deviation_C1 = scores_CM.std(axis=1, keepdims=True)
    return np.where(
        deviation_C1 > 1e-12,
        (scores_CM - scores_CM.mean(axis=1, keepdims=True)) / np.maximum(deviation_C1, 1e-12),
        0.0,
    )
