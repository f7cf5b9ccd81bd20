"""Tests 22 to 24: damaged, fuzzed and hostile files."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cuvee.core import state as states
from cuvee.core.errors import CuveeError
from cuvee.core.mixture import Mixture
from cuvee.core.state import digest, load_state, save_state, verify_folder
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.fleet.store.store import Store
from cuvee.policies.files import document_of, load_policy, save_policy
from cuvee.policies.fixed import Fixed
from cuvee.testing.runs import example_run
from reliability import fuzz
from reliability.measure import Result, measured

MOST_MIB = 512
MOST_SECONDS = 2.0  # CPU time of one input


# ------------------------------------------------------------------------------------- 22: bit rot


def whole_folder(folder: Path) -> Path:
    """A corpus of two domains, a checkpoint, a policy and a store."""
    for name in ("law", "mail"):
        rows = (json.dumps({"text": f"{name} {i} is short. " * (1 + i % 4)}) for i in range(30))
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    places = [folder / "law.jsonl", folder / "mail.jsonl"]
    build(places, folder / "whole" / "corpus", BuildSettings(vocab_size=280), workers=1)
    state = {"step": 3, "w": np.arange(2000.0), "b": {"c": [1.5, None, "x"]}}
    save_state(folder / "whole" / "state", state)
    save_policy(folder / "whole" / "policy", Fixed(Mixture.of({"a": 0.25, "b": 0.75})))
    with Store.open(folder / "whole" / "store.db") as store:
        store.add("odm", example_run("odm", intervals=8))
    return folder / "whole"


def _corpus(place: Path) -> str:
    corpus = Corpus.open(place)
    corpus.verify()
    return corpus.manifest.model_dump_json() + corpus.tokenizer().to_str()


def _policy(place: Path) -> str:
    policy = load_policy(place)
    return digest({"state": policy.state_dict(), "settings": document_of(policy)["settings"]})


def _stored(place: Path) -> str:
    with Store.open(place, patience=0.1) as store:
        [summary] = store.runs()
        run = store.load(summary.id)
        return repr((run.trajectory.to_json(), run.cost, run.seed, run.config, summary.status))


READERS: dict[str, Callable[[Path], str]] = {
    "corpus": _corpus,
    "state": lambda place: digest(load_state(place)),
    "policy": _policy,
    "store.db": _stored,
}
"""What is read from each part. Damage must raise a `CuveeError` or change nothing."""


def damages(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    if rng.random() < 0.25:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice([1, 1, 1, 3])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def rot(times: int) -> Counter[str]:
    """Flip bits or cut a file, then read: an error with a name, or the same content."""
    found: Counter[str] = Counter()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        whole = whole_folder(Path(name))
        right = {part: read(whole / part) for part, read in READERS.items()}
        files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
        files = [path for path in files if not path.name.startswith("store.db-")]
        for number in range(times):
            path = files[number % len(files)]
            part = path.relative_to(whole).parts[0]
            content = path.read_bytes()
            changed = damages(rng, content)
            if changed == content:
                continue
            path.write_bytes(changed)
            found["damages"] += 1
            _count(found, READERS[part], whole / part, right[part])
            path.write_bytes(content)
            for left in whole.glob("store.db-*"):
                left.unlink()
        shards = sorted((whole / "corpus").rglob("*.idx"))
        for one, other in zip(shards, reversed(shards), strict=True):
            if one != other:
                kept = one.read_bytes()
                shutil.copy(other, one)
                found["damages"] += 1
                _count(found, _corpus, whole / "corpus", "")
                one.write_bytes(kept)
    return found


def _count(found: Counter[str], read: Callable[[Path], str], place: Path, right: str) -> None:
    try:
        found["accepted with other content"] += read(place) != right
    except CuveeError:
        found["refused"] += 1
    except Exception as error:
        found["unnamed"] += 1
        print(f"unnamed: {error!r}", file=sys.stderr)


def seconds_per_gb(megabytes: int = 128) -> float:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "state"
        save_state(place, {"w": np.zeros(megabytes * 125_000)})
        begun = time.process_time()
        verify_folder(place)
        return (time.process_time() - begun) * 1000 / megabytes


@measured(22, "bit rot and truncation")
def bit_rot(full: bool) -> Result:
    found = rot(10_000 if full else 1000)
    with mock.patch.object(states, "verify_folder", lambda path: {p.name for p in path.iterdir()}):
        unhashed = rot(120)
    return Result(
        f"{found['damages']} flips, cuts and exchanged files",
        f"{found['accepted with other content']} accepted, {found['unnamed']} unnamed; "
        f"verified at {seconds_per_gb():.1f} s a GB",
        "0, 0",
        found["accepted with other content"] == found["unnamed"] == 0,
        {"no hashes": unhashed["accepted with other content"] + unhashed["unnamed"] > 0},
    )


# ----------------------------------------------------------------------------------------- 23: fuzz


def child(*arguments: str, seconds: float = 3600.0) -> dict[str, Any]:
    """The JSON object that a module prints in a process of its own; an audit hook cannot end."""
    command = [sys.executable, "-B", "-m", *arguments]  # compiled modules are no writes elsewhere
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {"crashed": 1, "inputs": 0, "said": done.stderr[-500:]}
    return dict(json.loads(lines[-1]))


@measured(23, "fuzzed files")
def fuzzed(full: bool) -> Result:
    """Coverage-guided: by libFuzzer (atheris) if it is installed, else by the lines reached."""
    each = 100_000 if full else 10_000
    guide = ["--atheris"] if importlib.util.find_spec("atheris") else []
    with tempfile.TemporaryDirectory() as name:
        names = list(fuzz.formats(Path(name)))
    with ThreadPoolExecutor(2) as pool:
        figures = pool.map(lambda name: child("reliability.fuzz", name, str(each), *guide), names)
        found = dict(zip(names, figures, strict=True))
    for name, one in found.items():
        print(name, one, file=sys.stderr)
    total = Counter[str]()
    for one in found.values():
        total.update(
            {key: one.get(key, 0) for key in ("inputs", "unnamed", "executions", "crashed")}
        )
    peak = max(one.get("peak_mib", 0) for one in found.values())
    slowest = max(one.get("slowest_s", 0.0) for one in found.values())
    planted = child("reliability.fuzz", "index", "3000", "--plant")
    return Result(
        f"{total['inputs']} inputs, {min(one['inputs'] for one in found.values())} or more in each "
        f"of {len(found)} formats, guided by {'libFuzzer' if guide else 'lines'}",
        f"{total['unnamed']} unnamed, {total['crashed']} crashes, {total['executions']} executions, "
        f"peak {peak} MiB, slowest {slowest:.2f} s",
        f"0, 0, 0, ≤ {MOST_MIB} MiB, ≤ {MOST_SECONDS:.0f} s",
        total["unnamed"] == total["crashed"] == total["executions"] == 0
        and min(one["inputs"] for one in found.values()) >= each
        and peak <= MOST_MIB
        and slowest <= MOST_SECONDS,
        {"an index is not checked": planted.get("unnamed", 0) + planted.get("crashed", 0) > 0},
    )


# ------------------------------------------------------------------------------------- 24: exploits

EFFECTS = ("executions", "connections", "writes elsewhere", "live markup")


def effects(found: dict[str, Any]) -> Iterator[int]:
    for name in EFFECTS:
        yield int(found.get(name, 0))


@measured(24, "exploits")
def exploits(full: bool) -> Result:
    found = child("reliability.exploits")
    planted = child("reliability.exploits", "--plant")
    told = ", ".join(f"{found.get(name, 0)} {name}" for name in EFFECTS)
    unnamed = found.get("unnamed", {"crash": found.get("said")})
    print(f"exploits: {found}", file=sys.stderr)
    return Result(
        f"{found.get('files', 0)} files",
        f"{told}, {len(unnamed)} unnamed errors",
        "0, 0, 0, 0, 0",
        found.get("files", 0) >= 80 and not any(effects(found)) and not unnamed,
        {
            "torch.load and yaml.load as they come": planted.get("executions", 0) > 0
            and planted.get("connections", 0) > 0
        },
    )
