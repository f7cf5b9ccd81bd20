"""Power and sharpness are learned from the ends of proxy runs, and kept where those tell nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee import loop
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Probe
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Run
from cuvee.fleet.task import task_of
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.baselines.paced import Gain
from cuvee.methods.hds import HDS
from cuvee.methods.pace import Episode, best_pace, pairs
from cuvee.policies.files import save_policy
from cuvee.policies.paced import ReadsCaps
from cuvee.probes.target_gain import NAME, ROWS, SQUARE

DEFAULT = (4.0, 1.0)
K, INTERVALS, TOKENS = 12, 30, 1280


def episodes(late: float, gains: float, noise: float, seed: int) -> list[Episode]:
    """Six episodes whose loss changes by `late` from power 0 to 4 and by `gains` for each κ."""
    rng = np.random.default_rng(seed)
    return [
        Episode((n, k), 4.4 + late * n / (n + 1) / 0.8 + gains * k + noise * rng.normal())
        for n, k in pairs(DEFAULT)[:6]
    ]


@pytest.mark.parametrize(
    ("late", "gains", "power", "sharpness"),
    [(-0.15, -0.05, 4, 2), (0.1, -0.05, 0, 2), (0.1, 0.05, 0, 0), (-0.15, 0.05, 4, 0)],
)
def test_what_is_beyond_the_noise_is_learned(
    late: float, gains: float, power: float, sharpness: float
) -> None:
    chosen = [best_pace(episodes(late, gains, 0.01, seed), DEFAULT).pair for seed in range(20)]
    assert chosen.count((power, sharpness)) >= 18


def test_noise_keeps_the_default() -> None:
    chosen = [best_pace(episodes(0, 0, 0.02, seed), DEFAULT).pair for seed in range(100)]
    assert chosen.count(DEFAULT) >= 90
    assert best_pace(episodes(0.2, 0.2, 0.0, 0)[:3], DEFAULT).pair == DEFAULT, "three are too few"


@dataclass
class Late:
    """A run whose final loss rises, by `late` a unit of progress, the later d0 is read.

    The other domains' order of gains is their order.
    """

    late: float = 0.5
    step: int = 0
    seen: float = 0.0
    read: float = 0.0

    domains = tuple(Domain(f"d{k}", 500 if k == 0 else 100_000) for k in range(K))

    @property
    def done(self) -> bool:
        return self.step == INTERVALS

    def start(self, probes: Any) -> Signals:
        return self._signals(np.zeros(K))

    def advance(self, mixture: Mixture) -> Signals:
        self.step += 1
        self.read += mixture["d0"]
        self.seen += mixture["d0"] * self.step / INTERVALS
        return self._signals(mixture.weights_K)

    def _signals(self, weights_K: np.ndarray) -> Signals:
        loss = 5.0 + self.late * self.seen / max(self.read, 1e-9)
        rng = np.random.default_rng(self.step)
        mean_K = np.arange(K) - 6.0 + rng.normal(size=K)
        probes = {
            "valid_loss": Measured(np.full(K, loss), np.arange(K) == 0),
            NAME: Measured(mean_K, weights_K > 0),
            SQUARE: Measured(mean_K**2 + 1.0, weights_K > 0),
            ROWS: Measured.all(np.where(weights_K > 0, 10.0, 0.0)),
        }
        tokens_K = np.rint(TOKENS * weights_K).astype(np.int64)
        losses = Measured.all(np.ones(K))
        return Signals(self.domains, self.step, self.step / INTERVALS, tokens_K, losses, probes)


class Proxies:
    """Runs every policy in this process, with caps, and saves it."""

    domains = Late.domains

    def __init__(self, folder: Path, late: float) -> None:
        self.folder, self.late, self.runs = folder, late, list[Run]()

    def load(self) -> list[Run]:
        return list(self.runs)

    def run(self, policies: Any) -> list[Run]:
        for policy in policies:
            assert isinstance(policy, ReadsCaps)
            capped = policy.capped({"d0": 4.0}, INTERVALS * TOKENS)
            config = task_of({}, capped)
            so_far = loop.run(Late(self.late), capped)  # type: ignore[arg-type]
            place = self.folder / str(len(self.runs))
            save_policy(place, capped, {})
            self.runs.append(Run(str(len(self.runs)), 0, config, so_far, Cost(), None, str(place)))
        return self.runs[-len(policies) :]


SMALL = {"architecture": {"hidden": 8, "layers": 1, "heads": 2}, "learning_starts": 2}


@pytest.mark.parametrize(("late", "power"), [(0.5, 0.0), (-0.5, 4.0)])
@pytest.mark.parametrize("kind", ["gain", "ac_odm", "hds"])
def test_a_method_learns_the_pace_and_its_target_run_measures_no_gain(
    kind: str, late: float, power: float, tmp_path: Path
) -> None:
    methods: dict[str, Any] = {
        "gain": Gain(mode="proxy", proxies=6),
        "ac_odm": ACODM(mode="proxy", proxies=6, agent=SMALL),
        "hds": HDS(mode="proxy", proxies=6, agent=SMALL, quality={f"d{k}": 1.0 for k in range(K)}),
    }
    proxies = Proxies(tmp_path, late)
    policy: Any = loop.search(methods[kind], proxies, proxies)
    assert len(proxies.runs) == 6
    settings = policy.settings() if kind == "gain" else policy.settings()["reference"]
    assert settings["power"] == power
    assert f"power {power:g}" in policy.evidence["summary"]
    assert not {NAME, "alignment"} & {probe.name for probe in _probes(policy)}
    target = policy.capped({"d0": 4.0}, INTERVALS * TOKENS)
    weights_TK = loop.run(Late(), target).weights_TK()  # type: ignore[arg-type]
    assert weights_TK[0, 11] > weights_TK[0, 1], "it knows who helps from the first interval on"
    assert (weights_TK[-1, 0] > 3 * weights_TK[0, 0]) == (power == 4.0)


def _probes(policy: Policy) -> list[Probe]:
    return list(policy.probes)


def test_one_proxy_has_the_default_and_only_missing_runs_are_asked_for(tmp_path: Path) -> None:
    method = Gain(mode="proxy", proxies=5)
    proxies = Proxies(tmp_path, 0.5)
    wanted: list[Any] = list(method.propose(proxies, ()))
    first, *rest = wanted
    assert (first.settings()["power"], first.settings()["sharpness"]) == DEFAULT
    assert len(rest) == 4
    one = proxies.run([first])
    assert len(method.propose(proxies, one)) == 4
    only: Any = method.commit(proxies, one)
    assert (only.settings()["power"], only.settings()["sharpness"]) == DEFAULT


def test_bad_numbers_and_runs_without_the_loss_are_refused(tmp_path: Path) -> None:
    for build in (Gain, ACODM):
        with pytest.raises(ConfigError, match="proxies is 10: mode proxy needs 1 to 9"):
            build(mode="proxy", proxies=10)
    with pytest.raises(ConfigError, match="mode is 'often': use online or proxy"):
        Gain(mode="often")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="no proxy run is logged yet"):
        Gain(mode="proxy").commit(Proxies(tmp_path, 0.5), ())
    proxies = Proxies(tmp_path, 0.5)
    method = Gain(mode="proxy", objective={"d1": 1.0})
    (run,) = proxies.run(method.propose(proxies, ())[:1])
    with pytest.raises(PolicyError, match="no validation loss of the objective at its end"):
        method.commit(proxies, [replace(run)])
