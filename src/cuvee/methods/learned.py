"""What the methods with a learned policy share: how a proxy's policy becomes the target's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Run
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.files import load_policy


def commit_learned(logged: Sequence[Run]) -> Policy:
    """The actor of the newest proxy run that kept its policy, frozen. Raises `PolicyError` if there is none."""
    kept = [run.policy for run in logged if run.policy]
    if not kept:
        raise PolicyError(
            "no proxy run has left a policy yet: run the proxies first (`cuvee search`)"
        )
    policy = load_policy(Path(kept[-1]))
    if not isinstance(policy, AgentPolicy):
        raise PolicyError(f"{kept[-1]} holds a {type(policy).__name__}, not a policy with an agent")
    return policy.frozen()
