"""Checks whether a proxy repeats its domains about as often as the target run.

With the same shares, the target run may read a scarce domain many times, and a small proxy less
than once. The best mixture of the proxy then differs from the target's (arXiv 2606.07597: an error
of 0.75 in a share, 0.05 with matched repetition). The remedy is a smaller part of each domain for
the proxy, in proportion to its budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture

_FACTOR = 2.0  # repetition that differs by less is matched
_HARMLESS = 1.0  # fewer epochs than this on both sides repeat nothing
_TOLERATED = 16.0  # epochs from which more repetition is known to hurt (arXiv 2605.12715)


def repetition_warnings(
    domains: Sequence[Domain], mixture: Mixture, proxy_tokens: int, target_tokens: int
) -> list[str]:
    """Return a warning for each domain whose repetition differs much from the target run's."""
    found = []
    for domain in domains:
        if domain.tokens <= 0 or mixture[domain.name] == 0:
            continue
        proxy, target = (
            mixture[domain.name] * tokens / domain.tokens
            for tokens in (proxy_tokens, target_tokens)
        )
        if max(proxy, target) <= _HARMLESS or max(proxy, target) <= _FACTOR * min(proxy, target):
            continue
        less = "less" if proxy < target else "more"
        matched = int(domain.tokens * proxy_tokens / target_tokens)
        found.append(
            f"a proxy reads {domain.name} {proxy:.3g} times and the target run {target:.3g} times, "
            f"which is far {less} often: "
            f"give the proxy {matched:,} of its {domain.tokens:,} tokens"
            if proxy < target
            else f"a proxy reads {domain.name} {proxy:.3g} times and the target run {target:.3g} "
            f"times, which is far {less} "
            "often: shorten the proxy"
        )
        if target > _TOLERATED:
            found[-1] += f"; {_TOLERATED:g} epochs and more are known to hurt"
    return found
