"""`doctor`: examines the machine, the installation, the store and the disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cuvee.core.errors import CuveeError, packages_of, pip_install
from cuvee.fleet.store.rows import Tally
from cuvee.recipes.preflight import check_writable
from cuvee.recipes.stores import DEFAULT_STORE, open_store

Status = Literal["ok", "note", "problem"]
LOW_DISK = 2 << 30
"""Bytes. Checkpoints and exported models of a few small runs take about this much."""


@dataclass(frozen=True)
class Finding:
    """One examined part: what was found and, unless it is `ok`, the remedy.

    With a `problem` no run can start. A `note` limits what can be done.
    """

    part: str
    status: Status
    found: str
    remedy: str = ""


def examine(store: str | None = None, out: Path = Path("runs")) -> list[Finding]:
    """Examine everything that a run on this machine needs. Changes nothing and raises nothing."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": _python,
        "torch": _torch,
        "processor": _processor,
        "disk": lambda: _disk(out),
        "store": lambda: _store(store),
        "extras": _extras,
    }
    return [finding for part, look in parts.items() for finding in _safely(part, look)]


def _safely(part: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except Exception as error:  # a broken installation may fail anywhere, and doctor must say so
        remedy = "install cuvee again in a new virtual environment"
        return [Finding(part, "problem", f"{type(error).__name__}: {error}", remedy)]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("cuvee", "ok", metadata.version("cuvee"))


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding("torch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        remedy = (
            "if this machine has an NVIDIA GPU, install a CUDA build of torch (https://pytorch.org)"
        )
        yield Finding("gpu", "note", "none; models up to about 5M parameters are practical", remedy)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding("gpu", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {bf16}")


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{cores} cores, {_memory() / 2**30:.0f} GiB of memory"
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked and asked.isdigit() and cores and int(asked) > cores:
        remedy = f"set OMP_NUM_THREADS to at most {cores}; more threads than cores are slower"
        yield Finding("processor", "note", f"{found}; OMP_NUM_THREADS is {asked}", remedy)
    else:
        yield Finding("processor", "ok", found)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk(out: Path) -> Iterator[Finding]:
    try:
        check_writable(out)
    except CuveeError as error:
        yield Finding("disk", "problem", str(error), "choose another folder with out=FOLDER")
        return
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free at {place}"
    if free < LOW_DISK:
        yield Finding("disk", "note", found, "free some space, or choose another out=FOLDER")
    else:
        yield Finding("disk", "ok", found)


def _store(given: str | None) -> Iterator[Finding]:
    place = given or os.environ.get("CUVEE_STORE") or DEFAULT_STORE
    is_file = "://" not in place and not place.startswith("@")
    if is_file and not Path(place).exists():
        yield Finding("store", "ok", f"{place} will be created by the first run")
        return
    try:
        with open_store(given, must_exist=True) as store:
            yield Finding("store", "ok", f"{store.address.shown}: {_counted(store.tally())}")
    except CuveeError as error:
        yield Finding("store", "problem", str(error), "name another store with --store")


def _counted(tally: Tally) -> str:
    runs = tally.waiting + tally.running + tally.done + tally.failed
    return f"{runs} runs, {tally.done} of them done"


def _extras() -> Iterator[Finding]:
    extras = set(metadata.metadata("cuvee").get_all("Provides-Extra") or ()) - {"dev"}
    for extra in sorted(extras):
        needed = {Requirement(one).name for one in packages_of(extra)}
        missing = sorted(name for name in needed if not _is_installed(name))
        if missing:
            remedy = f"{pip_install(extra)} if you need it"
            yield Finding(f"extra {extra}", "note", f"without {', '.join(missing)}", remedy)
        else:
            yield Finding(f"extra {extra}", "ok", "installed")


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(package.replace("-", "_")) is not None
    return True
