"""Saves and loads policies.

A policy is a folder with `policy.safetensors` (arrays), `policy.json` (kind, settings, provenance,
state) and hashes of both. State is stored by domain name, so a policy file does not depend on the
order of a run's domains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError, CuveeError, PolicyError
from cuvee.core.files import sha256_of
from cuvee.core.protocols import Policy
from cuvee.core.registry import POLICIES
from cuvee.core.state import detached, load_state, save_state
from cuvee.policies.guard.guard import Guard

UNIVERSAL = Path(__file__).parent / "universal"
"""The policy that ships with the package. See docs/methods/data_mixing_agent.md."""


def save_policy(path: Path, policy: Policy, provenance: Mapping[str, Any] | None = None) -> None:
    """Save `policy` without its guard, because the guard's limits belong to the run.

    Raises `PolicyError` if its class is not registered or has no `settings()`.
    """
    document = {**document_of(policy), "provenance": dict(provenance or {})}
    save_state(path, document, stem="policy")


def load_policy(path: Path | str) -> Policy:
    """Load a policy from the folder `path`, or "universal", which ships with cuvee.

    >>> type(load_policy("universal")).__name__
    'HistoryPolicy'

    Raises `PolicyError` or `CheckpointError` unless `path` holds a complete, unaltered policy of a
    registered kind.
    """
    path = UNIVERSAL if path == UNIVERSAL.name else Path(path)
    document = _read(path)
    kind = _kind(path, document)
    try:
        policy: Policy = kind(**document["settings"])
        policy.load_state_dict(document["state"])
    except ConfigError as error:  # for example, an agent or a probe that is not registered
        raise PolicyError(f"the policy in {path} cannot be loaded: {error}") from error
    except CuveeError:
        raise
    except Exception as error:  # a file of another program can be wrong in any way
        raise PolicyError(
            f"{path} does not hold a policy that can be loaded "
            f"({type(error).__name__}: {error}); use an earlier copy"
        ) from error
    return policy


def load_requested(action: Mapping[str, Any]) -> Policy:
    """Load the policy of an operator's request. Raises `PolicyError` if it changed since."""
    folder = Path(action["policy"])
    if policy_sha256(folder) != action["sha256"]:
        raise PolicyError(f"{folder} has changed since the operator asked for it")
    return load_policy(folder)


def policy_sha256(folder: Path) -> str:
    """Return the sha256 that identifies a saved policy. Raises `PolicyError` if there is none."""
    if not (folder / "hashes.json").is_file():
        raise no_policy(folder)
    return sha256_of(folder / "hashes.json")


def no_policy(path: Path) -> PolicyError:
    """Return the error for a folder without a policy, or for one that does not exist."""
    if get_close_matches(str(path), [UNIVERSAL.name]):
        hint = f"did you mean {UNIVERSAL.name!r}?"
    else:
        hint = (
            "it has no policy.json; give a `policy` folder that `cuvee train`, `search` or `learn` "
            "wrote, or 'universal'"
        )
    return PolicyError(f"{path} holds no policy: {hint}")


def document_of(policy: Policy) -> dict[str, Any]:
    """Return kind, settings and state of `policy`, without its guard.

    Policy files and tasks for workers hold this document. Raises `PolicyError` for a policy whose
    class is not registered or has no `settings()`.
    """
    bare: Any = policy.policy if isinstance(policy, Guard) else policy
    kind = POLICIES.name_of(type(bare))
    if kind is None:
        raise PolicyError(
            f"{type(bare).__name__} cannot be saved: register its class with "
            '@register_policy("name")'
        )
    if not hasattr(bare, "settings"):
        raise PolicyError(
            f"{type(bare).__name__} cannot be saved: it needs settings(), which returns the "
            "arguments of its constructor as JSON"
        )
    return {"kind": kind, "settings": bare.settings(), "state": bare.state_dict()}


def check_can_be_saved(policy: Policy) -> None:
    """Save `policy` to memory and load it again. Call it before the first step of a run.

    Raises `PolicyError` for a policy that a file cannot hold: its class is not registered, or its
    settings or state cannot be saved and loaded.
    """
    document = document_of(policy)
    try:
        detached(document["state"])
        settings = json.loads(json.dumps(document["settings"], allow_nan=False))
        again = POLICIES.get(document["kind"])(**settings)
        again.load_state_dict(document["state"])
    except CuveeError:
        raise
    except Exception as error:
        raise PolicyError(
            f"a policy of kind {document['kind']!r} cannot be saved and loaded "
            f"({type(error).__name__}: {error}): settings() must be JSON that its constructor "
            "accepts, and state_dict() must hold arrays and JSON values only"
        ) from error


def kind_of_policy(path: Path) -> type[Any]:
    """Return the class of the policy in `path`. Raises the same errors as `load_policy`."""
    return _kind(path, _read(path))


def _kind(path: Path, document: Mapping[str, Any]) -> type[Any]:
    try:
        return POLICIES.get(str(document.get("kind")))
    except ConfigError as error:
        raise PolicyError(f"{path} holds a policy of an unknown kind: {error}") from error


def read_provenance(path: Path) -> Mapping[str, Any]:
    """Return the provenance that was passed to `save_policy`.

    Raises the same errors as `load_policy`, except for an unknown kind.
    """
    provenance = _read(path).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _read(path: Path) -> Mapping[str, Any]:
    if not (path / "policy.json").is_file():
        raise no_policy(path)
    return load_state(path, stem="policy")
