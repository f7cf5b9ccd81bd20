"""Draws the README's picture from finished runs with one target domain and several methods.

    cuvee compare compare.yaml
    python benchmarks/picture.py runs/cuvee.db -o docs/images/path.svg --method gain
    python benchmarks/picture.py runs/online/runs.db -o docs/images/path.svg --target medicine \
        --group online-scarce-medicine --methods gain ac_odm late even uniform natural

Left: the shares of the domains in the run of one method and seed. Right: the training loss of the
target under each method with that seed, as a moving mean. The names carry the test loss at the end.
The last line is one JSON object: these test losses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Run
from cuvee.fleet.store.store import Store
from cuvee.report.summary import method_label
from cuvee.report.views import held_out_loss

TARGET = "#e4572e"
SOURCES = ("#cfd8e3", "#b5c4d6", "#9db1c9", "#869fbc", "#dfe5ec", "#c2ceda", "#a9b9c9", "#93a7bb")
LINES = (TARGET, "#17415f", "#3a7d44", "#8a5fb0", "#5b8db8", "#8a8f98")
LEFT, RIGHT, TOP, BOTTOM = 44.0, 402.0, 44.0, 264.0
"""Left edges of the two panels, and the top and bottom of both, in pixels."""
WIDTH = 300.0
SMOOTH = 10
"""Intervals of a moving mean."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", default="gain")
    parser.add_argument("--methods", nargs="+", help="which runs to draw, by label; all by default")
    parser.add_argument("--group", default="", help="only groups whose name begins like this")
    parser.add_argument(
        "--target", help="the domain to draw; the one with the role target by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with Store.open(options.store) as store:
        found = [
            one for one in store.runs(status="done") if (one.group or "").startswith(options.group)
        ]
        runs = [store.load(one.id) for one in found if one.seed == options.seed]
    labels = {method_label(run.config): run for run in runs}
    by_label = {label: labels[label] for label in options.methods or labels}
    target = options.target or target_of(runs[0])
    ends = {label: test_loss(run, target) for label, run in by_label.items()}
    ranked = {label: by_label[label] for label in sorted(ends, key=ends.__getitem__)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, picture(ranked, options.method, target, ends))
    print(json.dumps({label: round(ends[label], 4) for label in ranked}))


def target_of(run: Run) -> str:
    return next(domain.name for domain in run.trajectory.domains if domain.is_target)


def test_loss(run: Run, target: str) -> float:
    """The test loss of the target in nats per token."""
    return held_out_loss(run, len(run.trajectory), "test")[target]


def training_loss(run: Run, target: str) -> tuple[FloatArray, FloatArray]:
    """Return (P,) million tokens and (P,) training loss of the target, a mean over its tokens.

    The mean is over `SMOOTH` intervals.
    """
    k = run.trajectory.names.index(target)
    signals = run.trajectory.signals[1:]
    loss_T = np.array([one.loss.filled(0.0)[k] for one in signals])
    tokens_T = np.array([float(one.tokens_K[k]) for one in signals])
    ones = np.ones(SMOOTH)
    sum_P = np.convolve(loss_T * tokens_T, ones, "valid")
    read_P = np.convolve(tokens_T, ones, "valid")
    seen_P = read_P > 0  # a late plan reads none of the target at the beginning
    all_T = np.cumsum([one.tokens_K.sum() for one in signals]) / 1e6
    return all_T[SMOOTH - 1 :][seen_P], sum_P[seen_P] / read_P[seen_P]


def picture(runs: dict[str, Run], method: str, target: str, ends: dict[str, float]) -> str:
    shown = runs[method]
    parts = [
        f'<text x="{LEFT}" y="24" class="h">mixture under {method}</text>',
        f'<text x="{RIGHT}" y="24" class="h">training loss of {target}, nats a token</text>',
        *shares(shown, target),
        *curves({label: training_loss(run, target) for label, run in runs.items()}, ends),
    ]
    style = (
        "text{font:14px system-ui,sans-serif;fill:#333}.h{font-weight:600;font-size:16px}"
        ".t{fill:#fff;font-weight:600}"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 830 300" role="img">'
        f"<title>The mixture of a run and the loss of its target</title><style>{style}</style>"
        '<rect width="830" height="300" rx="8" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )


def shares(run: Run, target: str) -> list[str]:
    """The shares of the domains over time as stacked bands, the target at the bottom."""
    domains = sorted(run.trajectory.domains, key=lambda domain: domain.name != target)
    weights_TK = np.array(
        [[mixture[domain.name] for domain in domains] for _, mixture, _ in run.trajectory]
    )
    edges_TK = np.hstack([np.zeros((len(weights_TK), 1)), np.cumsum(weights_TK, axis=1)])
    x_T = np.linspace(LEFT, LEFT + WIDTH, len(weights_TK))
    bands = []
    names = []
    for k, domain in enumerate(domains):
        low_T, high_T = height(edges_TK[:, k]), height(edges_TK[:, k + 1])
        colour = TARGET if domain.name == target else SOURCES[k % len(SOURCES)]
        outline = [*zip(x_T, low_T, strict=True), *zip(x_T[::-1], high_T[::-1], strict=True)]
        bands.append(f'<polygon points="{points(outline)}" fill="{colour}"/>')
        if low_T[-1] - high_T[-1] > 15:
            middle = float(low_T[-1] + high_T[-1]) / 2 + 5
            style = ' class="t"' if domain.name == target else ""
            names.append(
                f'<text x="{LEFT + WIDTH - 6}" y="{middle:.0f}" text-anchor="end"{style}>'
                f"{domain.name}</text>"
            )
    return [*bands, *names, *ticks_left(), axis(LEFT, "progress of the run")]


def height(share_T: FloatArray) -> FloatArray:
    """Pixels from the top for shares from 0 to 1."""
    return BOTTOM - (BOTTOM - TOP) * share_T


def ticks_left() -> list[str]:
    return [
        f'<text x="{LEFT - 6}" y="{float(height(np.array(share))) + 4:.0f}" text-anchor="end">'
        f"{share:.0%}</text>"
        for share in (0.0, 0.5, 1.0)
    ]


def curves(losses: dict[str, tuple[FloatArray, FloatArray]], ends: dict[str, float]) -> list[str]:
    """The losses as lines, with each method's name and test loss at the right."""
    low = min(float(loss_P.min()) for _, loss_P in losses.values()) - 0.05
    high = min(7.0, max(float(loss_P.max()) for _, loss_P in losses.values()))
    most = max(float(tokens_P[-1]) for tokens_P, _ in losses.values())

    def y(loss: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (min(loss, high) - low) / (high - low)

    parts = [
        f'<path d="M{RIGHT} {y(float(loss)):.0f}h{WIDTH}" stroke="#0002"/>'
        f'<text x="{RIGHT - 6}" y="{y(float(loss)) + 4:.0f}" text-anchor="end">{loss:.1f}</text>'
        for loss in np.arange(np.ceil(low * 2) / 2, high, 0.5)
    ]
    labels = spread([y(float(loss_P[-1])) for _, loss_P in losses.values()])
    for (label, (tokens_P, loss_P)), colour, at in zip(losses.items(), LINES, labels, strict=False):
        x_P = RIGHT + WIDTH * tokens_P / most
        line = points([(x, y(float(loss))) for x, loss in zip(x_P, loss_P, strict=True)])
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            f'<text x="{RIGHT + WIDTH + 8}" y="{at + 4:.0f}" style="fill:{colour}">{label} '
            f"{ends[label]:.2f}</text>"
        )
    return [*parts, axis(RIGHT, f"0 to {most:.2f} million tokens; right: test loss")]


def spread(at: Sequence[float], apart: float = 16.0) -> list[float]:
    """Heights of labels at least `apart` pixels from each other, from the bottom upwards."""
    placed: list[float] = []
    for wanted in at:
        placed.append(min(wanted, placed[-1] - apart) if placed else wanted)
    return placed


def axis(left: float, text: str) -> str:
    return (
        f'<path d="M{left} {BOTTOM}h{WIDTH}" stroke="#888"/>'
        f'<text x="{left + WIDTH / 2}" y="286" text-anchor="middle">{text}</text>'
    )


def points(outline: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)


if __name__ == "__main__":
    main()
