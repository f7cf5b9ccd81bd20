"""`AgentPolicy`: an agent with an encoder and a reward. AC-ODM and HDS use it.

The agent starts from a reference mixture ρ, the closed form `policies.paced.Paced`:

    weights ∝ ρ exp(u · residual)    residual: the actor's output, 0 before it learns
                                     u: what is not known of a domain's gain (`Paced.uncertainty`)

The weights of scarce domains are those of the reference, so the agent cannot use up their caps. It
distributes what they leave among the other domains. It pays for the divergence from ρ (`kl_coef`).
The last transition of a run is terminal, because nothing follows the end of the token budget.

Without a reference, as in the papers, the agent starts from the uniform mixture. ODM (`Exp3`)
chooses the mixtures of the warm-up intervals, which fill the replay buffer.

A frozen policy only uses the agent's actor. It needs no reward, and nothing is measured except
losses and weight norms. Its reference keeps what it learned about domains by name.

With the Transformer architecture, the policy acts on any number of domains. If a saved policy
learns on another number of domains, it keeps its networks and starts a new replay buffer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cuvee.agents.base import Agent, Observation, Transition
from cuvee.agents.networks import Architecture, Shape
from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.epochs import EpochCaps
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import AGENTS, ENCODERS, REWARDS, register_policy
from cuvee.core.renamed import unknown_settings
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.encoders import Encoder
from cuvee.policies.exp3 import Exp3
from cuvee.policies.objective import objective_K
from cuvee.policies.paced import Paced
from cuvee.policies.rewards import Reward, RewardFunction
from cuvee.probes.norms import WeightNorms

REFERENCE_FEATURES = (
    "reference",  # ln(K ρ), at least ln 0.001: the logits of an untrained agent
    "uncertainty",  # of the gain, from 0 to 1; the actor's logits are multiplied by it
    "budget",  # ln(1 + what is left of the cap / tokens to come), at most 3, and 3 without a cap
)
_LEAST_REFERENCE = 1e-3
_MOST_BUDGET = 3.0


@register_policy("agent")
class AgentPolicy:
    """Steers a run with an agent, learning or frozen.

    - `agent`, `reward`, `encoder`: names in the registries.
    - `vector`: the reward and the critic's value have one entry per domain instead of one in total.
    - `observe_reward`: the last reward of each domain is one of its features. The agent can then
      learn within one run what its networks would otherwise learn over many runs. The policy needs
      the rewards when frozen, too.
    - `warmup_intervals`: number of intervals at the start in which ODM acts.
    - `objective`: weights by domain name, as in `policies.objective`.
    - `reference`: settings of `Paced`, or None to start uniform.
    - `mode`: "learning" or "frozen".
    - `agent_settings`, `reward_settings`: arguments of the classes that `agent` and `reward` name.

    All arguments are JSON values, so that a policy file can hold them.
    """

    def __init__(
        self,
        agent: str,
        reward: str,
        *,
        encoder: str = "standard",
        vector: bool = False,
        observe_reward: bool = False,
        warmup_intervals: int = 0,
        objective: Mapping[str, float] | None = None,
        reference: Mapping[str, Any] | None = None,
        seed: int = 0,
        mode: Literal["learning", "frozen"] = "learning",
        agent_settings: Mapping[str, Any] | None = None,
        reward_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "agent": agent,
            "reward": reward,
            "encoder": encoder,
            "vector": vector,
            "observe_reward": observe_reward,
            "warmup_intervals": warmup_intervals,
            "objective": dict(objective or {}),
            "reference": None if reference is None else dict(reference),
            "seed": seed,
            "agent_settings": dict(agent_settings or {}),
            "reward_settings": dict(reward_settings or {}),
        }
        self._learning = mode == "learning"
        # Settings are built here, so that a wrong one is refused before the run starts.
        self._agent_kind = AGENTS.get(agent)
        self._agent_settings = _agent_settings(self._agent_kind, self._settings["agent_settings"])
        aim = {"objective": dict(objective)} if objective else {}
        self._reward: RewardFunction = _construct(
            REWARDS.get(reward), {**self._settings["reward_settings"], **aim}
        )
        self._reference = None if reference is None else Paced(**{**reference, **aim})
        self._encode: Encoder = ENCODERS.get(encoder)()
        self._warmup = Exp3()
        self._agent: Agent | None = None
        self._agent_domains: int | None = None
        self._rewards: dict[str, float] = {}
        self._seen: tuple[Signals, Observation] | None = None
        self._decided: tuple[Signals, Observation, Mixture] | None = None

    @property
    def probes(self) -> Sequence[Probe]:
        """The probes of reward and reference, and weight norms.

        A frozen policy that does not observe rewards needs only weight norms.
        """
        wanted: list[Probe] = [WeightNorms()]
        if self._learning or self._settings["observe_reward"]:
            wanted += self._reward.probes
        if self._learning and self._reference:
            wanted += self._reference.probes
        return tuple({probe.name: probe for probe in wanted}.values())

    def capped(self, epochs: EpochCaps, tokens: int | None) -> AgentPolicy:
        """Return the same policy for a run of `tokens` tokens with these epoch caps."""
        if self._reference is None:
            return self
        reference = {**self._settings["reference"], "epochs": epochs, "tokens": tokens}
        copy = AgentPolicy(**{**self.settings(), "reference": reference})
        copy.load_state_dict(self.state_dict())
        return copy

    def frozen(self) -> AgentPolicy:
        """Return a copy that acts without exploration and does not learn."""
        copy = AgentPolicy(**self._settings, mode="frozen")
        copy.load_state_dict(self.state_dict())
        return copy

    def around(self, changes: Mapping[str, Any], state: State | None = None) -> AgentPolicy:
        """Return a copy whose reference has other settings, and this state or none.

        The agent keeps what it learned. Raises `PolicyError` without a reference.
        """
        if self._reference is None:
            raise PolicyError("this policy starts uniform: it has no reference to change")
        copy = AgentPolicy(
            **{**self.settings(), "reference": {**self._settings["reference"], **changes}}
        )
        assert copy._reference is not None, "it was given"
        known = copy._reference.state_dict() if state is None else state
        copy.load_state_dict({**self.state_dict(), "reference": known})
        return copy

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What the method that chose the reference reports about it."""
        return self._reference.evidence if self._reference else {}

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture.

        Repeated calls at the same timestep return the same mixture, although exploration is random.
        """
        if self._decided is None or self._decided[0] is not so_far.last:
            observation = self._observe(so_far)
            self._decided = so_far.last, observation, self._decide(so_far, observation)
        return self._decided[2]

    def explain(self, so_far: Trajectory) -> dict[str, Any]:
        """Return the observation of this decision by feature name, for the guard's audit record."""
        domains_KF, globals_G = self._observe(so_far)
        return {
            "domains": {
                feature: dict(zip(so_far.names, column_K.tolist(), strict=True))
                for feature, column_K in zip(self._features, domains_KF.T, strict=True)
            },
            "run": dict(zip(self._encode.global_features, globals_G.tolist(), strict=True)),
        }

    def _observe(self, so_far: Trajectory) -> Observation:
        """Return the observation of the newest timestep. It is computed once per timestep.

        The observation after an interval is also the one before the next interval.
        """
        if self._seen is None or self._seen[0] is not so_far.last:
            self._seen = so_far.last, self._encoded(so_far)
        return self._seen[1]

    def _encoded(self, so_far: Trajectory) -> Observation:
        counts_K = objective_K(so_far, self._settings["objective"])
        known_K = np.array([name in self._rewards for name in so_far.names])
        rewards_K = np.array([self._rewards.get(name, 0.0) for name in so_far.names])
        observation = self._encode(so_far, counts_K, Measured(rewards_K, known_K))
        if self._reference is None:
            return observation
        rho_K = self._reference.mixture(so_far).weights_K
        budget_K = np.log1p(self._reference.left_share(so_far))
        more_K3 = np.stack(
            [
                np.log(np.maximum(len(rho_K) * rho_K, _LEAST_REFERENCE)),
                self._reference.uncertainty(so_far),
                np.minimum(budget_K, _MOST_BUDGET),
            ],
            axis=1,
        )
        domains_KF = np.hstack([observation.domains_KF, more_K3]).astype(np.float32)
        return Observation(domains_KF, observation.globals_G)

    @property
    def _features(self) -> tuple[str, ...]:
        more = () if self._reference is None else REFERENCE_FEATURES
        return (*self._encode.domain_features, *more)

    def _decide(self, so_far: Trajectory, observation: Observation) -> Mixture:
        if self._learning and len(so_far) < self._settings["warmup_intervals"]:
            weights_K = self._warmup.mixture(so_far).weights_K
        else:
            agent = self._agent_for(len(so_far.names))
            weights_K = agent.act(observation, explore=self._learning)
        if self._reference is None:
            return Mixture.normalise(so_far.names, weights_K)
        return self._reference.distribute(so_far, weights_K)

    def _free_K(self, so_far: Trajectory) -> BoolArray:
        """Return (K,) whether the agent chooses the weight of a domain."""
        if self._reference is None:
            return np.ones(len(so_far.names), dtype=np.bool_)
        free_K: BoolArray = ~self._reference.scarce(so_far)
        return free_K

    def learn(self, so_far: Trajectory) -> Metrics:
        if not self._learning:
            if self._settings["observe_reward"]:
                self._keep_rewards(so_far, self._reward(so_far, self._free_K(so_far)))
            return {}
        decided = self._decided
        executed = so_far.last_mixture
        assert decided is not None, "call mixture before learn"
        assert executed is not None, "call mixture before learn"
        warming = len(so_far) <= self._settings["warmup_intervals"]
        if warming:
            self._warmup.learn(so_far)
        metrics: dict[str, Any] = {"acted": "warm-up" if warming else self._settings["agent"]}
        reward = self._reward(so_far, self._free_K(so_far))
        if self._reference:
            rho_K = reference_weights(decided[1].domains_KF, self._features.index("reference"))
            metrics["distance"] = float(0.5 * np.abs(executed.weights_K - rho_K).sum())
            self._reference.learn(so_far)
        if reward is None:
            return {**metrics, "reward": None}
        self._keep_rewards(so_far, reward)
        transition = Transition(
            observation=decided[1],
            action_K=executed.weights_K,
            reward=reward.vector_K if self._settings["vector"] else reward.scalar,
            next_observation=self._observe(so_far),
            terminated=so_far.last.progress >= 1.0,
        )
        agent = self._agent_for(len(so_far.names))
        if decided[1].domains_KF.shape == transition.next_observation.domains_KF.shape:
            metrics["rejected"] = agent.observe(transition)
        return {
            **metrics,
            "reward": reward.scalar,
            "terms": dict(reward.terms),
            "agent": agent.update(),
        }

    def _keep_rewards(self, so_far: Trajectory, reward: Reward | None) -> None:
        if reward is not None and self._settings["observe_reward"]:
            self._rewards = dict(zip(so_far.names, reward.vector_K.tolist(), strict=True))

    def _agent_for(self, K: int) -> Agent:
        """Return the agent for K domains.

        It is built when K is first known. If the policy learns on another K, the networks are kept
        and the replay buffer is new.
        """
        agent = self._agent
        if agent is None or (self._learning and self._agent_domains != K):
            agent = self._build(K)
            if self._agent is not None:
                known = self._agent.state_dict()
                agent.load_state_dict(
                    {**known, **{k: v for k, v in agent.state_dict().items() if k == "buffer"}}
                )
            self._agent = agent
            self._agent_domains = K
        return agent

    def _build(self, K: int) -> Agent:
        features = self._features
        shape = Shape(
            K,
            len(features),
            len(self._encode.global_features),
            vector=self._settings["vector"],
            reference=features.index("reference") if self._reference else None,
            scale=features.index("uncertainty") if self._reference else None,
        )
        agent: Agent = self._agent_kind(shape, self._agent_settings, seed=self._settings["seed"])
        return agent

    def settings(self) -> dict[str, Any]:
        return {**self._settings, "mode": "learning" if self._learning else "frozen"}

    def state_dict(self) -> State:
        return {
            "features": list(self._features),
            "reference": self._reference.state_dict() if self._reference else None,
            "reward": self._reward.state_dict(),
            "rewards": dict(self._rewards),
            "warmup": self._warmup.state_dict(),
            "domains": self._agent_domains,
            "agent": None if self._agent is None else self._agent.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        if state.get("features") != list(self._features):
            raise PolicyError(
                "this policy was learned by a version of cuvee whose agents observe other features, "
                "or with another encoder or reference: learn it again, or use that version"
            )
        if self._reference:
            self._reference.load_state_dict(state["reference"])
        self._reward.load_state_dict(state["reward"])
        self._rewards = dict(state["rewards"])
        self._warmup.load_state_dict(state["warmup"])
        self._seen = self._decided = None
        self._agent = self._agent_domains = None
        if state["domains"] is not None:
            self._agent_domains = int(state["domains"])
            self._agent = self._build(self._agent_domains)
            self._agent.load_state_dict(state["agent"])


def _agent_settings(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """Return an instance of `kind.settings_type`.

    If it has a field `architecture`, the default is a Transformer, which acts on any number of
    domains.
    """
    if any(field.name == "architecture" for field in dataclasses.fields(kind.settings_type)):
        architecture = {"kind": "transformer", "hidden": 64, **settings.get("architecture", {})}
        settings = {**settings, "architecture": _construct(Architecture, architecture)}
    return _construct(kind.settings_type, settings)


def reference_weights(domains_KF: FloatArray, column: int) -> FloatArray:
    """Return the reference mixture (K,) that an observation holds as logits."""
    rho_K = np.exp(domains_KF[:, column].astype(np.float64))
    weights_K: FloatArray = rho_K / rho_K.sum()
    return weights_K


def _construct(type_: type[Any], settings: Mapping[str, Any]) -> Any:
    """Return `type_(**settings)`, with lists as tuples, which JSON cannot hold.

    Raises `PolicyError` that names unknown settings, and values of the wrong type for a dataclass.
    """
    if dataclasses.is_dataclass(type_):
        known = {field.name for field in dataclasses.fields(type_)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise PolicyError(unknown_settings(type_.__name__, unknown, known))
        try:
            return TypeAdapter(type_).validate_python(dict(settings))
        except ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}"
                for one in error.errors()
            ]
            raise PolicyError(f"settings of {type_.__name__}: {'; '.join(wrong)}") from None
    try:
        return type_(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in settings.items()
            }
        )
    except TypeError as error:
        raise PolicyError(
            f"{type_.__name__} cannot be built from {dict(settings)}: {error}"
        ) from error
