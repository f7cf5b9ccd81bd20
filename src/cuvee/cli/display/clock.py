"""Formats durations, without heavy imports."""

from __future__ import annotations

_MOST_HOURS = 10**6


def time_of(seconds: float) -> str:
    """Format seconds as `1:02:03`, or `2:03` below one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > _MOST_HOURS:  # a store that others write may have any number
        return f"{seconds / 3600:.0e} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
