"""`ValidTokenLosses`: the loss of each token of the validation text, at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import FORWARD_SHARE, Context, Meter, TokenLosses, ValidText

NAME = "valid_token_losses"


@register_probe("valid_token_losses")
@dataclass(frozen=True)
class ValidTokenLosses:
    """Signal "valid_token_losses" (D, N): −ln p(token | tokens before it) in nats.

    It is measured in the last interval only. Row d is the d-th of `domains`, or of the run's
    domains if none are given. Entries beyond the end of a domain's text are absent. Runs with the
    same corpus and sequence length read the same tokens, so they can be compared token by token.
    """

    domains: Sequence[str] = ()
    tokens: int = 4096
    """The most tokens of each domain's `valid` split that are read."""
    name: str = NAME

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        if self.tokens < 2:
            raise ConfigError(f"tokens is {self.tokens}: it must be at least 2")

    def check(self, valid_tokens: Mapping[str, int], row_tokens: int) -> None:
        """Raise `ConfigError` if there is no text to measure on, of tokens by domain."""
        names = self.domains or tuple(valid_tokens)
        self.check_text(names, {name for name in names if valid_tokens.get(name, 0) >= 2})

    def check_text(self, names: Sequence[str], with_text: Set[str]) -> None:
        """Raise `ConfigError` if a domain asked for, or every one, is not among `with_text`."""
        without = [name for name in names if name not in with_text]
        if without and (self.domains or len(without) == len(names)):
            raise ConfigError(
                f"no validation text of {', '.join(without)}: build the corpus with a valid split "
                "of it"
            )

    def attach(self, context: Context) -> TokenLossMeter:
        """Return the meter. Raises `ConfigError` if the training loop has no validation text."""
        if context.valid_text is None:
            raise ConfigError(
                f"the probe {self.name!r} needs a training loop with validation text: "
                "set Context.valid_text"
            )
        return TokenLossMeter(self, context, context.valid_text)


class TokenLossMeter(Meter):
    def __init__(self, probe: ValidTokenLosses, context: Context, text: ValidText) -> None:
        self._probe = probe
        self._context = context
        self._text = text
        self._names: tuple[str, ...] = ()
        self._found: TokenLosses | None = None

    def begin_interval(self, domains: tuple[Domain, ...]) -> None:
        """Raise `ConfigError` before training if there is no text to measure on."""
        self._names = tuple(self._probe.domains) or tuple(domain.name for domain in domains)
        with_text = {name for name in self._names if self._text.has_valid_text(name)}
        self._probe.check_text(self._names, with_text)

    def end_run(self) -> None:
        self._found = self._text.valid_token_losses(self._names, self._probe.tokens)

    def sums(self) -> Tensor:
        """This rank's losses, with 0 for tokens that other ranks read."""
        return torch.zeros(0) if self._found is None else self._found.losses_DN.flatten()

    def flops(self) -> float:
        read = 0 if self._found is None else self._found.read
        return read * FORWARD_SHARE * self._context.flops_per_token

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        if self._found is None:
            return {}
        counted_DN = self._found.counted_DN.cpu().numpy()
        losses_DN = sums.view(counted_DN.shape).cpu().numpy()
        return {self._probe.name: Measured(losses_DN, counted_DN)}
