"""`ScoringSampler`: generates varied trajectories to learn from.

It is the inductive scoring sampler of Data Mixing Agent (arXiv 2507.15640 §3). At each step,
candidate mixtures are drawn from several proposals and scored by a weighted sum of heuristics (both
in `cuvee.policies.history.heuristics`). The next mixture is drawn from softmax(score / τ). The
weights, τ, and the schedule of the target share are drawn once per trajectory, so a collection has
good and bad trajectories.

The paper leaves the following open; these choices are ours:

- Each heuristic is standardised over the candidates of the step before it is weighted. A weight
  then means the same for 2 or 104 domains and any units.
- Each trajectory has its own preference among the domains of a role, drawn once. It is the token
  shares, flattened towards uniform by a random power, times log-normal factors. Without it, all
  domains of a role would have the same average weight over a run, and it could not be learned which
  of them matter.
- Half of the trajectories are straight: one quarter holds one mixture, and one quarter moves evenly
  from one target share to another, up or down. The others start at the source domains and are
  pulled back to them. With many source domains per target domain, few of those would read much of
  the target for long, and none would read it first.
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
# Concentrations of the criteria's weights. The target share matters most.
_EMPHASIS = (1.0, 2.0, 1.0, 1.0, 1.0)
_TEMPERATURES = (0.1, 2.0)
_ENDS = (0.05, 1.0)
_BENDS = (0.05, 3.0)
_TASTES = (0.0, 1.5)
_HELD = 0.25  # fraction of the trajectories that hold one mixture; they are straight, too
_STRAIGHT = 0.5  # fraction of the trajectories that are straight


@dataclass(frozen=True)
class Character:
    """The random properties of one trajectory.

    - `weights`: weights of `CRITERIA`; they sum to 1.
    - `temperature`: τ.
    - `end`: the target share at the end of the schedule.
    - `bend`: the schedule rises early if `bend` is below 1, late if it is above 1.
    - `taste`: standard deviation of the log factors by which domains of one role are preferred to
      each other.
    - `flatness`: 0 if domains of a role are preferred by their tokens, 1 if equally.
    - `straight`: the target share moves evenly from `begin` to `end`, and heuristics are not used.
    """

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
        """Draw random properties."""

        def log_uniform(low: float, high: float) -> float:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))

        weights = rng.dirichlet(_EMPHASIS)
        temperature = log_uniform(*_TEMPERATURES)
        end = rng.uniform(*_ENDS)
        bend = log_uniform(*_BENDS)
        taste = rng.uniform(*_TASTES)
        kind = rng.random()
        flatness = rng.uniform()
        begin = rng.uniform(*_ENDS)
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
    """Generates trajectory `number` of the family `seed`.

    The mixture depends on the settings and the history only.

    - `evaluation`: JSONL question files of the fields "general" and "target" (see `EvaluationSet`).
      Without them nothing is evaluated, and the heuristic feedback direction is 0.
    - `share`: fraction of an interval's cost that is spent on the evaluation.
    - `weight`: λ of `Feedback`.
    - `start`: ρ_0, shares by name, which need not sum to 1. Default: the token shares of the source
      domains, so target domains have weight 0.
    - `candidates`: number of candidates per step, a quarter from each proposal.

    All arguments are JSON values.
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
        """The properties of this trajectory."""
        return self._character

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture.

        Raises `PolicyError` if there are no source or no target domains.
        """
        fields = [heuristics.role_shares(so_far.domains, role) for role in ("source", "target")]
        if not all(field_K.any() for field_K in fields):
            raise PolicyError(
                "the scoring sampler needs at least one source domain and one target domain: "
                "build the corpus with --target NAME"
            )
        start_K = self._start(so_far.names, fields[0])
        factors_K = self._factors(len(so_far.names))
        power = 1 - self._character.flatness
        source_K, target_K = (heuristics.tilted(field_K, factors_K, power) for field_K in fields)
        if self._character.straight:
            begin = self._character.begin
            share = begin + (self._character.end - begin) * so_far.last.progress
            self._decision = {"proposal": "straight", "wanted_target_share": share}
            return Mixture.normalise(so_far.names, (1 - share) * source_K + share * target_K)
        last_K, before_K = (_past(so_far, steps, start_K) for steps in (1, 2))
        rng = self._generator(1 + len(so_far))
        each = self._settings["candidates"] // len(heuristics.PROPOSALS)
        candidates_MK = heuristics.proposals(rng, each, last_K, source_K, target_K)
        character = self._character
        is_target_K = np.array([domain.is_target for domain in so_far.domains])
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
        """Return the trajectory's properties and how the mixture was chosen. Does not learn."""
        character = asdict(self._character)
        return {
            **character,
            "weights": dict(zip(CRITERIA, character["weights"], strict=True)),
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
        """Return how much the last change of the mixture raised the feedback; 0 if unknown."""
        if not len(so_far):
            return 0.0
        first = so_far.at(0)
        before = self._feedback.at(first, so_far.at(len(so_far) - 1))
        now = self._feedback.at(first, so_far.last)
        return 0.0 if before is None or now is None else now - before

    def _factors(self, K: int) -> FloatArray:
        """Return the (K,) factors by which domains of one role are preferred to each other."""
        return np.asarray(np.exp(self._character.taste * self._generator(0, K).normal(size=K)))

    def _generator(self, *timestep: int) -> np.random.Generator:
        """Return the random generator of one step.

        It depends on the step only, so a resumed run draws the same numbers.
        """
        return np.random.default_rng([self._settings["seed"], self._settings["number"], *timestep])

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


def _past(so_far: Trajectory, steps: int, start_K: FloatArray) -> FloatArray:
    """Return the (K,) mixture `steps` intervals ago over the current domains.

    Before the first interval it is `start_K`.
    """
    if len(so_far) < steps:
        return start_K
    shares = so_far.mixtures[-steps].as_dict()
    weights_K = np.array([shares.get(name, 0.0) for name in so_far.names])
    return np.asarray(weights_K / weights_K.sum()) if weights_K.any() else start_K


def _standardised(scores_CM: FloatArray) -> FloatArray:
    """Scale each heuristic to mean 0 and std 1 over the candidates; 0 if all are equal."""
    deviation_C1 = scores_CM.std(axis=1, keepdims=True)
    return np.where(
        deviation_C1 > 1e-12,
        (scores_CM - scores_CM.mean(axis=1, keepdims=True)) / np.maximum(deviation_C1, 1e-12),
        0.0,
    )
