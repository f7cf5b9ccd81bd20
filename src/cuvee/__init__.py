"""cuvee learns how to mix training-data domains and steers the mixture while a model trains.

Importing cuvee has no side effects and does not import torch. The names in `__all__` are loaded
when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Controller": "cuvee.integrations.controller",
    "Corpus": "cuvee.data.corpus.corpus",
    "CuveeError": "cuvee.core.errors",
    "Domain": "cuvee.core.domain",
    "Guard": "cuvee.policies.guard.guard",
    "LMTrainer": "cuvee.training.trainer",
    "Limits": "cuvee.policies.guard.limits",
    "LossSteering": "cuvee.policies.guard.loss_steering",
    "Measured": "cuvee.core.signals",
    "Method": "cuvee.core.protocols",
    "Mixture": "cuvee.core.mixture",
    "MixtureStream": "cuvee.data.stream.stream",
    "Policy": "cuvee.core.protocols",
    "Probe": "cuvee.core.protocols",
    "Run": "cuvee.core.trajectory",
    "Signals": "cuvee.core.signals",
    "StreamDataset": "cuvee.data.stream.loader",
    "StreamLoader": "cuvee.data.stream.loader",
    "Trainer": "cuvee.core.protocols",
    "Trajectory": "cuvee.core.trajectory",
    "compare": "cuvee.loop",
    "load_policy": "cuvee.policies.files",
    "open_store": "cuvee.recipes.stores",
    "register_agent": "cuvee.core.registry",
    "register_encoder": "cuvee.core.registry",
    "register_method": "cuvee.core.registry",
    "register_policy": "cuvee.core.registry",
    "register_probe": "cuvee.core.registry",
    "register_reward": "cuvee.core.registry",
    "register_trainer": "cuvee.core.registry",
    "run": "cuvee.loop",
    "save_policy": "cuvee.policies.files",
    "search": "cuvee.loop",
    "write_report": "cuvee.report.page",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cuvee' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
