"""Old names of keys, by section: `old → new`.

`new_name` serves error messages: a configuration with an old key is refused, and the message names
the new key. `upgrade` serves files: policies and checkpoints of earlier formats are read and their
keys renamed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

TRAIN = {
    "clip": "max_grad_norm",
    "decay_share": "decay_ratio",
    "warmup": "warmup_ratio",
}
AGENT = {
    "actor_rate": "actor_lr",
    "average": "ema_rate",
    "caution": "kl_coef",
    "cloning": "bc_coef",
    "conservatism": "cql_alpha",
    "critic_rate": "critic_lr",
    "spread": "std",
    "temperature_rate": "temperature_lr",
    "warmup": "learning_starts",
}
LEARN = {
    "actor_rate": "actor_lr",
    "batch": "batch_size",
    "clones": "bc_updates",
    "cloning": "bc_coef",
    "conservatism": "cql_ratio",
    "cql_alpha": "cql_ratio",
    "critic_rate": "critic_lr",
    "judge_every": "eval_every",
    "settle": "critic_warmup_steps",
    "spread": "std",
    "temperature_rate": "temperature_lr",
    "trace": "td_lambda",
}
POLICY = {"told": "observe_reward", "warm_up": "warmup_intervals"}
GROUP_DRO = {"rate": "step_size"}
SEARCH = {"most_failed": "max_failed_ratio"}
METHOD = {"values": "objective"}

_SECTIONS = (TRAIN, AGENT, LEARN, POLICY, GROUP_DRO, SEARCH, METHOD)

_FORMAT_1: tuple[tuple[frozenset[str], Mapping[str, str]], ...] = (
    (frozenset({"clip", "decay_share", "warmup"}), TRAIN),
    (frozenset({"judge_every", "settle", "trace"}), LEARN),
    (frozenset({"agent_settings", "told", "warm_up"}), POLICY),
    (frozenset({"rate", "reference", "smoothing"}), GROUP_DRO),
    (frozenset({"agent", "rewards", "warm_up"}), {"warm_up": "warmup"}),
    (frozenset({"generator", "learners"}), {"learners": "train_states"}),
    (frozenset({"best", "learner", "trace"}), {"trace": "evaluations"}),
    (frozenset({"judged", "update", "worst"}), {"judged": "estimates"}),
)
"""A section of a format 1 file is recognised by keys that it always contains."""


def new_name(key: str, known: Collection[str]) -> str | None:
    """Return the current name of `key`, if it is an old name of one of the `known` keys.

    >>> new_name("warmup", ["steps", "warmup_ratio"])
    'warmup_ratio'
    """
    return next((names[key] for names in _SECTIONS if names.get(key) in known), None)


def unknown_settings(owner: str, unknown: Collection[str], known: Collection[str]) -> str:
    """Return the message about `unknown` settings of `owner`, with the new names of old ones.

    >>> unknown_settings("the agent", ["average"], ["ema_rate", "tau"])
    'the agent has no average (it is called ema_rate now); it has ema_rate, tau'
    """
    named = [
        f"{key} (it is called {new} now)" if (new := new_name(key, known)) else key
        for key in unknown
    ]
    return f"{owner} has no {', '.join(named)}; it has {', '.join(sorted(known))}"


def upgrade(node: Any) -> Any:
    """Return a tree of format 1 with the names of format 2.

    Provenance is a record and stays unchanged.
    """
    if isinstance(node, list):
        return [upgrade(value) for value in node]
    if not isinstance(node, dict):
        return node
    names = next((names for marks, names in _FORMAT_1 if marks <= node.keys()), {})
    return {names.get(key, key): _upgrade_entry(key, value) for key, value in node.items()}


def _upgrade_entry(key: str, value: Any) -> Any:
    if key == "provenance":
        return value
    if key == "agent_settings":
        return {AGENT.get(name, name): setting for name, setting in value.items()}
    return upgrade(value)
