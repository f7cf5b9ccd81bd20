"""Colours of the reports: one per method and one per domain, the same in all figures.

Target domains have warm colours and source domains cool ones. Figures are built in the light theme.
`DARK` maps each of its colours to the dark theme; the page replaces them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from cuvee.core.domain import Domain

INK, FAINT, GRID, PAPER = "#1d2430", "#5b6472", "#e3e6ea", "#ffffff"
METHODS = (  # Okabe & Ito (2008), darkened to a contrast of 3:1 on white; the baseline is grey
    ("#6b7280", "#a6adb8"),
    ("#0067a5", "#5bb0f0"),
    ("#c2410c", "#ff9455"),
    ("#00795a", "#3ecf9e"),
    ("#a1307f", "#f08bcb"),
    ("#8a6d00", "#e0bf45"),
    ("#4b3fb0", "#a69bff"),
    ("#7a3b1d", "#d79a76"),
)
DASHES = ("dot", "solid", "dash", "dashdot", "longdash", "solid", "dash", "longdashdot")
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "bowtie")
OTHER = "#c3c9d2"
_REST = ("#c3c9d2", "#d6dae0", "#b3bac5")
DARK = {INK: "#e8eaee", FAINT: "#a3abb8", GRID: "#333a45", PAPER: "#14181f", **dict(METHODS)}
DARK |= dict(zip(_REST, ("#4b5360", "#3b424d", "#5a6371"), strict=True))


def method_colour(index: int) -> str:
    return METHODS[index % len(METHODS)][0]


def method_dash(index: int) -> str:
    """Return a dash that differs between methods of one colour."""
    return DASHES[(index + index // len(METHODS)) % len(DASHES)]


def method_marker(index: int) -> str:
    return MARKERS[(index + index // len(METHODS)) % len(MARKERS)]


def domain_colours(domains: Sequence[Domain]) -> dict[str, str]:
    """Return a colour for each domain, by name.

    Hues run from green to violet for source domains and from red to yellow for target domains.
    Without target domains all hues are used. Neighbours also differ in lightness, so that up to 26
    domains of a role can be distinguished.
    """
    targets = [domain.name for domain in domains if domain.is_target]
    sources = [domain.name for domain in domains if not domain.is_target]
    cool = (150.0, 310.0) if targets else (20.0, 340.0)
    return _spread(sources, *cool, chroma=0.085) | _spread(targets, 25.0, 100.0, chroma=0.15)


def focused_colours(domains: Sequence[Domain], top: Collection[str]) -> dict[str, str]:
    """Return a colour for each domain: those of `top` spread over all hues, the rest in greys."""
    rest = [domain.name for domain in domains if domain.name not in top]
    greys = {name: _REST[i % len(_REST)] for i, name in enumerate(rest)}
    return greys | domain_colours([domain for domain in domains if domain.name in top])


def _spread(names: Sequence[str], first: float, last: float, chroma: float) -> dict[str, str]:
    lightness = (0.62, 0.74, 0.52) if len(names) > 6 else (0.64, 0.74)
    step = (last - first) / max(len(names) - 1, 1)
    middle = (first + last) / 2
    return {
        name: _oklch(
            lightness[i % len(lightness)], chroma, first + i * step if len(names) > 1 else middle
        )
        for i, name in enumerate(names)
    }


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """Convert OKLCH (hue in degrees) to sRGB hex, clipped to the gamut (Ottosson 2020).

    Source: bottosson.github.io/posts/oklab.
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(
        f"{round(255 * _gamma(min(max(value, 0.0), 1.0))):02x}" for value in linear
    )


def _gamma(linear: float) -> float:
    return float(12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)
