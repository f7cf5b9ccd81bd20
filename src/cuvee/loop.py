"""The core loops. Target runs and proxy runs use the same code.

`run`: a policy chooses a mixture, the trainer trains one interval under it, and the policy learns
from the measurements. `search`: a method asks for proxy runs until it can commit to a policy for
the target run. `explore` is the first half of `search`.
"""

from __future__ import annotations

from cuvee.core.protocols import Domains, Fleet, Journal, Method, Policy, Trainer
from cuvee.core.trajectory import Run, Trajectory


def run(trainer: Trainer, policy: Policy, journal: Journal | None = None) -> Trajectory:
    """Train to the end under `policy` and return the trajectory.

    With a journal that has a record, the run resumes from it.
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
