"""Formats durations, without heavy imports."""

from __future__ import annotations

import time


def time_of(seconds: float) -> str:
    """Format seconds as `1:02:03`, or `2:03` below one hour."""
    clock = time.gmtime(round(seconds))
    hours = int(round(seconds) // 3600)
    return (
        f"{hours}:{clock.tm_min:02}:{clock.tm_sec:02}"
        if hours
        else f"{clock.tm_min}:{clock.tm_sec:02}"
    )
