"""DoReMi: domain reweighting with minimax optimization (Xie et al. 2023, arXiv 2305.10429, NeurIPS 2023).

    propose   a reference run on the uniform mixture, then a proxy run under Group-DRO against the reference's final losses
    commit    the mean of the proxy's path, static

The formula, and where it deviates from the paper's, is in `policies.group_dro`. Any mixture may be the paper's reference; here
it is the uniform one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.fixed import Fixed
from cuvee.policies.group_dro import GroupDRO


@register_method("doremi")
@dataclass(frozen=True)
class DoReMi:
    step_size: float = 1.0
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        GroupDRO(
            {}, self.step_size, self.smoothing
        )  # refuses bad settings now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        reference, proxy = self._split(corpus, logged)
        if reference is None:
            return (Fixed(Mixture.uniform([domain.name for domain in corpus.domains])),)
        return (
            () if proxy else (GroupDRO(_final_losses(reference), self.step_size, self.smoothing),)
        )

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        _, proxy = self._split(corpus, logged)
        if proxy is None:
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        path = proxy.trajectory
        return Fixed(Mixture.normalise(path.names, path.weights_TK().mean(axis=0)))

    def _split(self, corpus: Domains, logged: Sequence[Run]) -> tuple[Run | None, Run | None]:
        """The reference, the first run that was uniform all along, and the first of the others."""
        uniform = Mixture.uniform([domain.name for domain in corpus.domains])
        begun = [run for run in logged if len(run.trajectory)]
        reference = next(
            (
                run
                for run in begun
                if all(
                    np.array_equal(m.weights_K, uniform.weights_K) for m in run.trajectory.mixtures
                )
            ),
            None,
        )
        others = [run for run in begun if run is not reference]
        return reference, others[0] if others else None


def _final_losses(reference: Run) -> dict[str, float]:
    last = reference.trajectory.last
    measured = last.probes.get("valid_loss")
    if measured is None or not measured.present.all():
        raise PolicyError(
            f"the reference run {reference.id} has no final validation loss of every domain: give each a `valid` split, and "
            "train.validation_tokens above 0"
        )
    return dict(zip(last.names, measured.values.tolist(), strict=True))
