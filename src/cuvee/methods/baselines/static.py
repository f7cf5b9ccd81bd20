"""Static mixtures: chosen before the run and never changed. Every method should beat them.

natural       α_i = n_i / Σn                    all tokens are read equally often
uniform       α_i = 1/K
temperature   α_i ∝ (n_i / Σn)^(1/τ)            τ = 1 is natural, τ → ∞ uniform
                                                (Devlin et al. 2019; Xue et al. 2021)
source_only   natural over the source domains   the data of the base model
target_only   natural over the target domains   naive continual pre-training
given         what the user gives
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cuvee.core.domain import Domain, Role, natural_K
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.fixed import Fixed


class Static:
    """Base class: no proxy runs; commits to `Fixed(self.mixture_for(domains))`."""

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        """Return the mixture for these domains."""
        return Mixture.normalise([domain.name for domain in domains], natural_K(domains))

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return Fixed(self.mixture_for(corpus.domains))


@register_method("natural")
@dataclass(frozen=True)
class Natural(Static):
    """Each domain in proportion to its tokens."""


@register_method("uniform")
@dataclass(frozen=True)
class Uniform(Static):
    """The same weight for every domain."""

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        return Mixture.uniform([domain.name for domain in domains])


@register_method("temperature")
@dataclass(frozen=True)
class Temperature(Static):
    """Natural shares, flattened by τ > 0."""

    tau: float = 2.0

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(f"tau is {self.tau}: the temperature must be above 0")

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        log_K = np.log(natural_K(domains)) / self.tau
        return Mixture.normalise([domain.name for domain in domains], np.exp(log_K - log_K.max()))


@register_method("source_only")
@dataclass(frozen=True)
class SourceOnly(Static):
    """The source domains in proportion to their tokens; target domains have weight 0."""

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        if all(domain.is_target for domain in domains):
            raise ConfigError(
                "source_only needs a source domain: do not name all domains with --target"
            )
        return _field(domains, "source")


@register_method("target_only")
@dataclass(frozen=True)
class TargetOnly(Static):
    """The target domains in proportion to their tokens; source domains have weight 0."""

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        if not any(domain.is_target for domain in domains):
            raise ConfigError(
                "target_only needs a target domain: build the corpus with --target NAME"
            )
        return _field(domains, "target")


def _field(domains: tuple[Domain, ...], role: Role) -> Mixture:
    names = [domain.name for domain in domains]
    return Mixture.normalise(
        names, [domain.tokens if domain.role == role else 0 for domain in domains]
    )


@register_method("given")
@dataclass(frozen=True)
class Given(Static):
    """Shares by name. They need not sum to 1; a domain that is not named has weight 0."""

    weights: Mapping[str, float] = field(default_factory=dict)

    def mixture_for(self, domains: tuple[Domain, ...]) -> Mixture:
        names = [domain.name for domain in domains]
        unknown = sorted(set(self.weights) - set(names))
        if unknown:
            raise ConfigError(
                f"weights name {', '.join(unknown)}, but the corpus has {', '.join(names)}"
            )
        return Mixture.normalise(names, [self.weights.get(name, 0.0) for name in names])
