"""Tasks that ship with lm-evaluation-harness, as far as they are plain settings.

A task is read from its YAML file by a loader that builds plain values only. Tasks that name code are
refused, so nothing but the harness's own functions ever runs. Their data must be on this machine:
the hub is never asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from cuvee.core.errors import ConfigError, nearest

_NAME = re.compile(rb"^task:\s*[\"']?([\w.\-+]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
_CODE = {
    "class": "is a class of Python code",
    "unsafe_code": "runs code that the model writes",
    "use_prompt": "takes its prompt from another package",
    "custom_dataset": "makes its data with code",
}
_INCLUDES = 8


class _Plain(yaml.SafeLoader):
    """Builds plain values. Every other tag, `!function` among them, is an error."""


def published_task(name: str, folder: Path | None = None) -> Any:
    """Return the harness's task `name`, with its data from the local cache.

    Raises `ConfigError` for an unknown task, for one that would run code, and if its data are not
    on this machine.
    """
    settings = read_settings(name, folder)
    from lm_eval.api.task import ConfigurableTask

    with offline():
        try:
            task = ConfigurableTask(config=settings)
        except Exception as error:  # the data sets library raises many types
            raise ConfigError(
                f"the data of task {name} ({settings.get('dataset_path')}) cannot be read from "
                f"this machine ({type(error).__name__}: {_first_line(error)}): download them "
                "with the datasets library first, since cuvee evaluates offline"
            ) from error
    task.set_fewshot_seed(seed=1234)
    return task


def read_settings(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the settings of task `name` from the YAML files in `folder`, by default the harness's.

    Raises `ConfigError` for an unknown task and for one that would run code.
    """
    if folder is None:
        import lm_eval.tasks

        folder = Path(lm_eval.tasks.__path__[0])
    files = _files(folder)
    if name not in files:
        hint = nearest(name, files) if len(files) < 20 else _closest(name, files)
        raise ConfigError(
            f"lm-evaluation-harness has no task {name!r}{hint} (groups are not accepted: name "
            "their tasks)"
        )
    settings = _resolve(name, files[name], _INCLUDES)
    _refuse_code(name, settings)
    return settings


def _files(folder: Path) -> dict[str, Path]:
    """The file of each task. There are thousands, so they are searched as bytes."""
    files: dict[str, Path] = {}
    for path in sorted(glob("**/*.yaml", root_dir=folder, recursive=True)):
        with open(folder / path, "rb") as file:
            for found in _NAME.findall(file.read()):
                files.setdefault(found.decode(), folder / path)
    return files


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's libraries from using the network inside the block."""
    import datasets.config
    import huggingface_hub.constants as hub

    before = (hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    hub.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _resolve(name: str, path: Path, depth: int) -> dict[str, Any]:
    """Return the settings in `path` over those of the file that it includes."""
    if depth == 0:
        raise ConfigError(f"task {name} includes more than {_INCLUDES} files")
    try:
        own = yaml.load(path.read_text(), Loader=_Plain)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        why = "names a function of Python code" if "!function" in str(error) else "cannot be read"
        raise ConfigError(
            f"task {name} {why} ({path.name}), and cuvee runs no code of tasks: choose another, or "
            "write its questions into a JSONL file for --questions"
        ) from None
    if not isinstance(own, dict):
        raise ConfigError(f"task {name}: {path.name} holds no settings")
    included = own.pop("include", None)
    if included is None:
        return own
    return _resolve(name, path.parent / str(included), depth - 1) | own


def _refuse_code(name: str, settings: Mapping[str, Any]) -> None:
    why = next((reason for key, reason in _CODE.items() if settings.get(key)), None)
    if (settings.get("dataset_kwargs") or {}).get("trust_remote_code"):
        why = "has a data set that is Python code"
    if not isinstance(settings.get("task"), str):
        why = "is a group"
    for metric in settings.get("metric_list") or ():
        why = why or _foreign_metric(metric)
    if why:
        raise ConfigError(
            f"task {name} {why}, and cuvee runs no code of tasks: choose another, or write its "
            "questions into a JSONL file for --questions"
        )


def _foreign_metric(metric: Mapping[str, Any]) -> str | None:
    """Say why a metric is not one of the harness's own; the others are downloaded as code."""
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    known = metric.get("metric") in METRIC_REGISTRY and not metric.get("hf_evaluate")
    return None if known else f"uses the metric {metric.get('metric')!r}, which is downloaded code"


def _closest(name: str, files: Mapping[str, Path]) -> str:
    hint = nearest(name, files)
    return hint if hint.startswith("; did") else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
