"""The whole system in a page. A target and a proxy run through the same code.

`run` asks a policy for a mixture, trains one interval under it, and lets the policy learn from what was measured.
`search` lets a method ask for proxy runs until it knows enough to commit to a policy for the target; `explore` is its first half.
"""

from __future__ import annotations

from cuvee.core.protocols import Domains, Fleet, Journal, Method, Policy, Trainer
from cuvee.core.trajectory import Run, Trajectory


def run(trainer: Trainer, policy: Policy, journal: Journal | None = None) -> Trajectory:
    """Trains to the end under `policy` and returns what happened; with a journal, from where the last run stopped."""
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
    """Runs the proxies that `method` asks for, none twice, and returns its policy for the target."""
    return method.commit(corpus, explore(method, corpus, fleet))


def explore(method: Method, corpus: Domains, fleet: Fleet) -> list[Run]:
    """Runs the proxies that `method` asks for, none twice, and returns all there are.

    A fleet may give up on some of them; when nothing but those is left to run, the method has to do with the others.
    """
    logged = fleet.load()
    while policies := method.propose(corpus, logged):
        finished = fleet.run(policies)
        if not finished:
            break
        logged += finished
    return logged
