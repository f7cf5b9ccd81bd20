"""Experiment trackers: mixture, losses, rewards and the guard's verdicts of each interval.

    controller = Controller(..., record=Tracked(TensorBoard("runs/tensorboard")))
    controller = Controller(..., record=Tracked(MLflow("sqlite:///mlflow.db", "my run"), claim))

`cuvee train` has the key `trackers` instead, with names of `TRACKERS`.

Nothing is tracked unless you ask for it. Another tracker needs one class with the method `log`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from cuvee.core.errors import ConfigError, nearest, pip_install
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost
from cuvee.integrations.controller import Record
from cuvee.policies.guard.operator import Request, TakesRequests

_MLFLOW_BATCH = 1000  # metrics that its server accepts at once
_VERDICTS = ("accepted", "limited", "refused", "fallback", "shadow", "operator")


class Tracker(Protocol):
    """Receives named numbers."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log `figures` at optimizer step `step`."""
        ...


class Tolerant:
    """A tracker that warns once if it fails, and never ends a run.

    `open` returns the tracker. It is called before the first figures are logged, and again with
    later figures if it failed.
    """

    def __init__(self, name: str, open: Callable[[], Tracker]) -> None:
        self._name = name
        self._open = open
        self._tracker: Tracker | None = None
        self._warned = False

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        try:
            self._tracker = self._tracker or self._open()
            self._tracker.log(step, figures)
        except Exception as error:  # a tracker is foreign code and talks to a network
            if not self._warned:
                warnings.warn(
                    f"the tracker {self._name} failed at step {step} and will not be mentioned "
                    f"again; training continues ({type(error).__name__}: {error})",
                    stacklevel=2,
                )
            self._warned = True


class Tracked:
    """A record of intervals that also logs them to `tracker`; `record` may be a `Claim`."""

    def __init__(self, tracker: Tracker, record: Record | None = None) -> None:
        self._tracker = Tolerant(type(tracker).__name__, lambda: tracker)
        self._record = record

    def append(
        self,
        number: int,
        mixture: Mixture | None,
        signals: Signals,
        metrics: Metrics | None = None,
        cost: Cost | None = None,
    ) -> None:
        """Record interval `number` first, then log its figures."""
        if self._record is not None:
            self._record.append(number, mixture, signals, metrics, cost)
        self._tracker.log(signals.step, figures(mixture, signals, metrics or {}))

    def requests(self, number: int) -> Sequence[Request]:
        """Return the operators' requests to the run, if `record` receives any."""
        return self._record.requests(number) if isinstance(self._record, TakesRequests) else ()


def figures(mixture: Mixture | None, signals: Signals, metrics: Metrics) -> dict[str, float]:
    """Return the numbers of one interval.

    mixture/NAME        share under which the interval was trained
    loss/NAME           training loss, in nats per token; left out where nothing was read
    valid_loss/NAME     validation loss, where it was measured
    tokens/NAME         tokens read in the interval
    reward              if the policy reports one number, as agents do
    reward/NAME         if the policy reports one for each domain, as ODM does
    guard/VERDICT       1 for the verdict of the decision, 0 for the others
    guard/change        total variation from the mixture before
    guard/alarms        number of alarms that triggered
    """
    shares = mixture.as_dict() if mixture is not None else {}
    found = {f"mixture/{name}": share for name, share in shares.items()}
    found.update(_by_domain("loss", signals.names, signals.loss))
    if (valid := signals.probes.get("valid_loss")) is not None:
        found.update(_by_domain("valid_loss", signals.names, valid))
    tokens = zip(signals.names, signals.tokens_K.tolist(), strict=True)
    found.update({f"tokens/{name}": float(count) for name, count in tokens})
    found.update(_rewards(metrics.get("reward")))
    if guard := metrics.get("guard"):
        found.update({f"guard/{one}": float(guard["verdict"] == one) for one in _VERDICTS})
        found["guard/alarms"] = float(len(guard["alarms"]))
        if guard["change"] is not None:
            found["guard/change"] = float(guard["change"])
    return found


def _by_domain(kind: str, names: Sequence[str], measured: Measured) -> dict[str, float]:
    entries = zip(names, measured.values.tolist(), measured.present.tolist(), strict=True)
    return {f"{kind}/{name}": value for name, value, present in entries if present}


def _rewards(reward: object) -> dict[str, float]:
    by_name = reward if isinstance(reward, Mapping) else {"": reward}
    return {
        f"reward/{name}" if name else "reward": float(value)
        for name, value in by_name.items()
        if isinstance(value, (int, float)) and np.isfinite(value)
    }


class TensorBoard:
    """Writes event files to `folder`. Needs the extra `trackers`."""

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"TensorBoard needs `{pip_install('trackers')}`: {error}") from None
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class MLflow:
    """Logs to the run `name` of `experiment` at `address`: `sqlite:///…` or a server's URL.

    Needs the extra `trackers`, which installs `mlflow-skinny`.
    """

    def __init__(self, address: str, name: str, experiment: str = "cuvee") -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError(f"MLflow needs `{pip_install('trackers')}`: {error}") from None
        self._client = MlflowClient(tracking_uri=address)
        known = self._client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self._client.create_experiment(experiment)
        self.run_id: str = self._client.create_run(where, run_name=name).info.run_id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self.run_id, metrics[start : start + _MLFLOW_BATCH])


class WandB:
    """Logs to the run `name` of `project` in Weights & Biases. Needs `pip install wandb`.

    It writes to `folder`/wandb and sends nothing, unless $WANDB_MODE is set, as to `online`.
    `wandb sync` sends it later.
    """

    def __init__(self, folder: Path | str, name: str, project: str = "cuvee") -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"Weights & Biases needs `pip install wandb`: {error}") from None
        Path(folder).mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=project, name=name, dir=str(folder), mode=mode, reinit="create_new"
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)


class Trackio:
    """Logs to the run `name` of `project` in trackio's local database. Needs `pip install trackio`.

    The database is in $TRACKIO_DIR, else where trackio keeps it.
    """

    def __init__(self, name: str, project: str = "cuvee") -> None:
        try:
            import trackio
        except ImportError as error:
            raise ConfigError(f"trackio needs `pip install trackio`: {error}") from None
        self._run = trackio.init(project=project, name=name, resume="allow", embed=False)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)


@dataclass(frozen=True)
class Kind:
    """A tracker that a configuration can name."""

    package: str
    """What must be importable."""
    open: Callable[[Path], Tracker]
    """Returns the tracker of a run, by the run's folder."""
    extra: str | None = "trackers"
    """The extra of cuvee that has the package. None: the package is installed by itself."""


def _mlflow(folder: Path) -> MLflow:
    """The server is $MLFLOW_TRACKING_URI, as for MLflow's own programs."""
    own = f"sqlite:///{folder / 'mlflow.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    return MLflow(os.environ.get("MLFLOW_TRACKING_URI") or own, folder.name)


TRACKERS: Mapping[str, Kind] = {
    "mlflow": Kind("mlflow", _mlflow),
    "tensorboard": Kind("tensorboard", lambda folder: TensorBoard(folder / "tensorboard")),
    "trackio": Kind("trackio", lambda folder: Trackio(folder.name), extra=None),
    "wandb": Kind("wandb", lambda folder: WandB(folder, folder.name), extra=None),
}
"""Trackers by the names that the key `trackers` takes."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for an unknown or repeated name, and if a package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"trackers has no {name!r}{nearest(name, TRACKERS)}")
        kind = TRACKERS[name]
        if find_spec(kind.package) is None:
            install = pip_install(kind.extra) if kind.extra else f"pip install {kind.package}"
            raise ConfigError(
                f"trackers has {name}, which needs `{install}`: the package {kind.package} is not "
                "installed"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"trackers is {list(names)}: each may be given once")


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Return the trackers of the run whose checkpoints and model are in `folder`."""
    return [Tolerant(name, partial(TRACKERS[name].open, folder)) for name in names]
