"""A task: one proxy run as JSON in the store. Any worker can rebuild it; it contains no code.

The two keys of a task:

    {"proxy": …}     the trainer's configuration, for the driver's own `make_trainer`
    {"policy": …}    kind, settings and state of the policy, as in a policy file; arrays in base64
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cuvee.core.errors import CuveeError, StoreError
from cuvee.core.protocols import Policy, Trainer
from cuvee.core.registry import POLICIES
from cuvee.policies.files import check_can_be_saved, document_of

MakeTrainer = Callable[[Mapping[str, Any], int], Trainer]
"""(proxy configuration, seed) → a fresh trainer.

It must be a module-level function, because other processes import it."""

_DTYPES = frozenset({"<f4", "<f8", "<i4", "<i8", "|b1", "|u1", "<u2", "<u4", "<u8"})


def task_of(proxy: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Return the task of one policy. Raises `PolicyError` if the policy cannot be saved."""
    check_can_be_saved(policy)
    document = document_of(policy)
    return {
        "proxy": dict(proxy),
        "policy": {**document, "state": _pack(document["state"])},
    }


def build_task(
    task: Mapping[str, Any], seed: int, make_trainer: MakeTrainer
) -> tuple[Trainer, Policy]:
    """Return the trainer and the policy of a task.

    Raises `CuveeError` if this version cannot rebuild the task.
    """
    try:
        document = task["policy"]
        policy: Policy = POLICIES.get(document["kind"])(**document["settings"])
        policy.load_state_dict(_unpack(document["state"]))
        proxy = task["proxy"]
    except CuveeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the task cannot be rebuilt by this version: {type(error).__name__}: {error}"
        ) from error
    return make_trainer(proxy, seed), policy


def _pack(node: Any) -> Any:
    if isinstance(node, np.ndarray):
        array = np.ascontiguousarray(node).astype(node.dtype.newbyteorder("<"))
        data = base64.b64encode(array.tobytes()).decode()
        return {"$array": data, "dtype": array.dtype.str, "shape": list(node.shape)}
    if isinstance(node, Mapping):
        return {key: _pack(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_pack(value) for value in node]
    return node.item() if isinstance(node, np.generic) else node


def _unpack(node: Any) -> Any:
    if isinstance(node, Mapping):
        if "$array" in node:
            return _array(node["$array"], node["dtype"], node["shape"])
        return {key: _unpack(value) for key, value in node.items()}
    return [_unpack(value) for value in node] if isinstance(node, list) else node


def _array(data: str, dtype: str, shape: list[int]) -> np.ndarray[Any, Any]:
    if dtype not in _DTYPES:
        raise ValueError(f"an array of type {dtype!r}")
    try:
        raw = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"an array that is no base64: {error}") from error
    if not all(isinstance(size, int) and size >= 0 for size in shape) or math.prod(
        shape
    ) * np.dtype(dtype).itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} in {len(raw)} bytes")
    return np.frombuffer(raw, dtype=dtype).reshape(shape).copy()
