"""Data Mixing Agent: offline reinforcement learning for continual pre-training.

Source: arXiv 2507.15640, ACL 2026.

    state    ρ_0, mixtures α_0 … α_{t−1}, feedback e_0 … e_t, progress (`policies.history.encoder`)
    action   the mixture α_t
    reward   r_t = e_{t+1} − e_t
             e_t = λ (g_t − g_0)/|g_0| + (1 − λ) (h_t − h_0)/|h_0|   (`policies.feedback`)
    data     trajectories of the inductive scoring sampler, one per proxy run
             (`policies.history.scoring_sampler`)
    agent    behaviour cloning of the best trajectories, then CQL on the simplex
             (`learning.history_learning`)

Proposals: one scoring sampler for each of `proxies` runs, all at once. All runs start from the same
base model (set `model` to its folder) and use the same data order. They differ only in the
sampler's `number`. Commit: the policy learned from these runs.

No public code exists. Deviations from the paper: the sampler's heuristics and the standardisation
of the feedback are ours, because the paper gives neither. The agent is a Transformer over domain
tokens that works for any number of domains; the published one is tied to 52 inputs. Conservative
Q-learning draws its actions from the simplex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.feedback import FIELDS, Feedback
from cuvee.policies.history.scoring_sampler import ScoringSampler

if TYPE_CHECKING:
    from cuvee.learning.history_learning import Learned, LearnProgress
    from cuvee.learning.learn_settings import LearnSettings


@register_method("data_mixing_agent")
@dataclass(frozen=True)
class DataMixingAgent:
    """The method Data Mixing Agent.

    - `evaluation`: JSONL question files of the fields "general" and "target".
    - `proxies`: number of proxy runs.
    - `share`: fraction of an interval's cost that is spent on the evaluation.
    - `weight`: λ.
    - `start`: ρ_0, shares by name. Default: the token shares of the source domains.
    - `candidates`: number of candidate mixtures per step of the sampler.
    - `agent`: overrides `LearnSettings`.
    """

    evaluation: Mapping[str, Sequence[str]] = field(default_factory=dict)
    proxies: int = 64
    share: float = 0.02
    weight: float = 0.5
    start: Mapping[str, float] | None = None
    candidates: int = 64
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    grows: ClassVar[tuple[str, ...]] = ("proxies",)
    learns_from_failed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if set(self.evaluation) != set(FIELDS):
            named = ", ".join(self.evaluation) or "nothing"
            raise ConfigError(
                f"evaluation names {named}: give question files as "
                "{general: [FILE, …], target: [FILE, …]}"
            )
        if self.proxies < 1:
            raise ConfigError(f"proxies is {self.proxies}: at least 1 run is needed to learn from")
        # Bad settings raise here: not when a run starts, and not after all proxy runs.
        self.sampler(0)
        self._learn_settings()

    def sampler(self, number: int) -> ScoringSampler:
        """Return the policy of proxy run `number`."""
        return ScoringSampler(
            self.seed,
            number,
            evaluation=self.files(),
            share=self.share,
            weight=self.weight,
            start=self.start,
            candidates=self.candidates,
        )

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the samplers whose runs are not logged.

        If runs do not record their policy, the first samplers count as done. Raises `ConfigError`
        for a corpus without source or target domains.
        """
        roles = {domain.role for domain in corpus.domains}
        if roles != {"source", "target"}:
            raise ConfigError(
                "the agent balances source domains and target domains: build the corpus with "
                "--target NAME"
            )
        samplers = [self.sampler(number) for number in range(self.proxies)]
        steered = [run.config.get("policy") for run in logged]
        if not any(isinstance(policy, Mapping) for policy in steered):
            return samplers[len(logged) :]
        done = [policy.get("settings") for policy in steered if isinstance(policy, Mapping)]
        return [sampler for sampler in samplers if sampler.settings() not in done]

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the learned policy.

        It has no question files and acts without feedback until it gets some
        (`HistoryPolicy.with_evaluation`). Raises `PolicyError` if there are too few usable runs.
        """
        return self.learn(corpus, logged).policy

    def learn(
        self,
        corpus: Domains,
        logged: Sequence[Run],
        folder: Path | None = None,
        observer: Callable[[LearnProgress], None] | None = None,
    ) -> Learned:
        """Do the work of `commit`, and resume from `folder` after an interruption."""
        from cuvee.learning.history_learning import learn

        settings = self._learn_settings()
        return learn(logged, Feedback(self.weight), settings, self.seed, folder, observer)

    def _learn_settings(self) -> LearnSettings:
        from cuvee.learning.learn_settings import LearnSettings

        return LearnSettings.of(self.agent)

    def files(self) -> dict[str, list[str]]:
        """Return the question files with absolute paths.

        A worker may have another working directory.
        """
        return {
            name: [str(Path(file).absolute()) for file in self.evaluation[name]] for name in FIELDS
        }
