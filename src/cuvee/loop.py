"""The core loops. Target runs and proxy runs use the same code.

`run`: a policy chooses a mixture, the trainer trains one interval under it, and the policy learns
from the measurements. `search`: a method asks for proxy runs until it can commit to a policy for
the target run. `explore` is the first half of `search`. `compare` runs several policies in this
process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Domains, Fleet, Journal, Method, Policy, Trainer
from cuvee.core.registry import POLICIES, policy_without_proxies
from cuvee.core.trajectory import Run, Trajectory


def run(trainer: Trainer, policy: Policy, journal: Journal | None = None) -> Trajectory:
    """Train to the end under `policy` and return the trajectory.

    With a journal that has a record, the run resumes from it.

    >>> from cuvee.policies.exp3 import Exp3
    >>> from cuvee.testing.toy import ToyTrainer
    >>> run(ToyTrainer(intervals=8), Exp3())
    Trajectory(8 intervals, 3 domains, step 8, 100% of the budget)
    """
    so_far = journal.resume(trainer, policy) if journal else None
    if so_far is None:
        so_far = Trajectory.start(trainer.start(policy.probes))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        metrics = policy.learn(so_far)
        if journal:
            journal.record(so_far, trainer, policy, metrics)
    return so_far


def search(method: Method, corpus: Domains, fleet: Fleet) -> Policy:
    """Run the proxies that `method` asks for, each once, and return its policy for the target."""
    return method.commit(corpus, explore(method, corpus, fleet))


def explore(method: Method, corpus: Domains, fleet: Fleet) -> list[Run]:
    """Run the proxies that `method` asks for, each once, and return all finished runs.

    A fleet may give up on proxies that fail. If only those are left, the search ends without them.
    """
    logged = fleet.load()
    while policies := method.propose(corpus, logged):
        finished = fleet.run(policies)
        if not finished:
            break
        logged += finished
    return logged


def compare(
    policies: Sequence[Policy | str] | Mapping[str, Policy | str],
    corpus: Domains,
    make_trainer: Callable[[int], Trainer],
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Run]:
    """Run each policy with each seed in this process and return the runs, for `write_report`.

    A policy is an object, of which every run gets a copy, or the name of a method that needs no
    proxy runs. A mapping gives them other labels. `make_trainer(seed)` returns a new trainer over
    `corpus`. `cuvee compare` also stores and resumes runs.

    >>> from cuvee.policies.fixed import Fixed
    >>> from cuvee.testing.toy import ToyTrainer
    >>> even = Fixed({"web": 0.4, "code": 0.3, "maths": 0.3})
    >>> runs = compare(["natural", even], ToyTrainer(), lambda seed: ToyTrainer(seed=seed), [0, 1])
    >>> [run.id for run in runs]
    ['natural-s0', 'fixed-s0', 'natural-s1', 'fixed-s1']

    Raises `ConfigError` for two policies with one label, or a method that needs proxy runs.
    """
    if not isinstance(policies, Mapping):
        labels = [_label(policy) for policy in policies]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(
                f"several policies are called {', '.join(repeated)}: give a mapping from labels "
                "to policies"
            )
        policies = dict(zip(labels, policies, strict=True))
    runs = []
    for seed in seeds:
        for label, given in policies.items():
            found = policy_without_proxies(given, corpus) if isinstance(given, str) else given
            trainer = make_trainer(seed)
            trajectory = run(trainer, copy.deepcopy(found))
            config = {"method": {"name": label, "label": label}}
            runs.append(Run(f"{label}-s{seed}", seed, config, trajectory, trainer.cost))
    return runs


def _label(policy: Policy | str) -> str:
    if isinstance(policy, str):
        return policy
    return POLICIES.name_of(type(policy)) or type(policy).__name__
