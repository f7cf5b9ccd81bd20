"""A policy as a folder that travels: `policy.safetensors`, `policy.json` (kind, settings, provenance, state) and their hashes.

Names travel and indices do not: a policy file says nothing of the order in which its run had its domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuvee.core.errors import CuveeError, PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.state import load_state, save_state
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.exp3 import Exp3
from cuvee.policies.exponentiated import ExponentiatedAlignment
from cuvee.policies.fixed import Fixed
from cuvee.policies.group_dro import GroupDRO
from cuvee.policies.guard.guard import Guard
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.policies.random_walk import RandomWalk
from cuvee.policies.schedule import Scheduled

KINDS: dict[str, type[Any]] = {
    "fixed": Fixed,
    "schedule": Scheduled,
    "random_walk": RandomWalk,
    "scoring_sampler": ScoringSampler,
    "exp3": Exp3,
    "exponentiated_alignment": ExponentiatedAlignment,
    "group_dro": GroupDRO,
    "agent": AgentPolicy,
    "history": HistoryPolicy,
}
"""Every policy that can be saved. Each has `settings()`, which its constructor takes back."""


UNIVERSAL = Path(__file__).parent / "universal"
"""The policy that ships with the package, see docs/methods/data_mixing_agent.md."""


def save_policy(path: Path, policy: Policy, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes `policy` without its guard, whose limits belong to the run it steered."""
    bare: Any = policy.policy if isinstance(policy, Guard) else policy
    kind = next((kind for kind, type_ in KINDS.items() if type(bare) is type_), None)
    if kind is None:
        raise PolicyError(
            f"{type(bare).__name__} cannot be saved as a policy file; it knows {', '.join(KINDS)}"
        )
    document = {
        "kind": kind,
        "settings": bare.settings(),
        "provenance": dict(provenance or {}),
        "state": bare.state_dict(),
    }
    save_state(path, document, stem="policy")


def load_policy(path: Path) -> Policy:
    """Raises `PolicyError` or `CheckpointError` if `path` holds no complete, unaltered policy of a known kind."""
    document = _read(path)
    kind = _kind(path, document)
    try:
        policy: Policy = kind(**document["settings"])
        policy.load_state_dict(document["state"])
    except CuveeError:
        raise
    except Exception as error:  # a file of another program can be wrong in any way
        raise PolicyError(
            f"{path} does not hold a policy that can be loaded ({type(error).__name__}: {error}); use an earlier copy"
        ) from error
    return policy


def kind_of_policy(path: Path) -> type[Any]:
    """The class of the policy in `path`. Raises as `load_policy` does."""
    return _kind(path, _read(path))


def _kind(path: Path, document: Mapping[str, Any]) -> type[Any]:
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise PolicyError(
            f"{path} holds a policy of kind {kind!r}; this version knows {', '.join(KINDS)}"
        )
    return KINDS[kind]


def read_provenance(path: Path) -> Mapping[str, Any]:
    """What `save_policy` was told of how the policy came to be. Raises as `load_policy` does."""
    provenance = _read(path).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _read(path: Path) -> Mapping[str, Any]:
    if not (path / "policy.json").is_file():
        raise PolicyError(
            f"{path} holds no policy.json: give a folder that `cuvee train` or `cuvee learn` wrote"
        )
    return load_state(path, stem="policy")
