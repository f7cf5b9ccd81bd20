"""Labelling that is killed anywhere and run again writes the same bytes as an undisturbed one,
and never shows partial output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labelled_text import read_text, write_text

# Dies before the first durable or visible call, then before a later one, each time in a new folder.
# The last attempt is not killed.
_EACH_ONCE = """
import hashlib, os, shutil, signal, sys
from pathlib import Path
import sklearn.cluster, sklearn.decomposition  # imported once for all attempts
import sklearn.feature_extraction.text, sklearn.metrics.cluster
from cuvee.data.label import labelers as label_ways
from cuvee.data.label import writing as label_writing
from cuvee.data.ingest import reading
from cuvee.data.label.labels import LabelSettings, label
from cuvee.data.label.topics import ByTopics

reading.BLOCK_ROWS = 12
label_ways.ByRandom.step_blocks = 3
ways = {
    "random": lambda: label_ways.ByRandom(3, 0),
    "cluster": lambda: ByTopics(4, 0, documents=60),
}
source, folder, kind, stride, fault = sys.argv[1:]
folder, stride = Path(folder), int(stride)
calls, die_before = 0, 0

def dying(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))

if fault == "append":  # as if what an interrupted step left were kept
    def append(path, offset, data):
        with open(path, "ab") as file:
            file.write(data)
            os.fsync(file.fileno())
    label_writing.append = append

def dies(call):
    global calls, die_before
    child = os.fork()
    if child == 0:
        calls, die_before = 0, call
        label([source], folder, ways[kind](), LabelSettings(by_role=True), workers=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0

def digest():
    sha = hashlib.sha256()
    for path in sorted(path for path in folder.parent.rglob("*") if path.is_file()):
        sha.update(str(path.relative_to(folder.parent)).encode() + path.read_bytes())
    return sha.hexdigest()

ends, kills = set(), 0
call = 1
while dies(call):
    kills, call = kills + 1, call + stride
    assert not folder.exists() or (folder / "labels.json").exists(), "half a folder"
    assert not dies(0)
    ends.add(digest())
    shutil.rmtree(folder)
print(kills, len(ends | {digest()}))  # the last life was not killed
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "raw", most=30)


def kill(text: Path, folder: Path, way: str, stride: int, fault: str = "none") -> tuple[int, int]:
    folder.parent.mkdir()
    command = [sys.executable, "-c", _EACH_ONCE, str(text), str(folder), way, str(stride), fault]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    kills, ends = map(int, done.stdout.split())
    return kills, ends


@pytest.mark.parametrize(("way", "stride", "least"), [("random", 3, 25), ("cluster", 12, 6)])
def test_killed_before_each_durable_call(
    way: str, stride: int, least: int, text: Path, tmp_path: Path
) -> None:
    kills, ends = kill(text, tmp_path / "killed" / "out", way, stride)
    assert kills >= least
    assert ends == 1
    other = (
        tmp_path / "other"
    )  # in blocks and steps of another size: the same documents with the same labels
    options = ["--by", way, "--roles", "--topics", "3" if way == "random" else "4"]
    options += ["--sample", "60"] if way == "cluster" else []
    code = "import sys; from cuvee.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "corpus",
        "label",
        str(text),
        "-o",
        str(other),
        *options,
        "--quiet",
    ]
    subprocess.run(command, check=True, timeout=280, capture_output=True)
    assert list(read_text(other)) == list(read_text(tmp_path / "killed" / "out"))
    assert (other / "labels.json").read_bytes() == (
        tmp_path / "killed" / "out" / "labels.json"
    ).read_bytes()


def test_a_planted_fault_is_caught(text: Path, tmp_path: Path) -> None:
    _, ends = kill(text, tmp_path / "killed" / "out", "random", 4, fault="append")
    assert ends > 1
