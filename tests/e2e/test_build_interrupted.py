"""A build that is killed anywhere and run again ends in the same bytes as one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.build_folder import BUILD

# Small blocks and steps, so that a small corpus passes through every state that a large one does.
_PRELUDE = """
import os, signal, sys
from pathlib import Path
import tokenizers
from cuvee.data.ingest import tokenize as encoding
from cuvee.data.ingest import reading
from cuvee.data.ingest.build import BuildSettings, build
reading.BLOCK_ROWS, encoding.STEP_BLOCKS = 25, 2
settings = BuildSettings(vocab_size=300)
"""

# Each call that makes something durable or visible is a place to die at.
_DYING = (
    _PRELUDE
    + """
import hashlib, shutil
calls, die_before = 0, 0
def dying(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call
os.fsync, os.replace, os.unlink = dying(os.fsync), dying(os.replace), dying(os.unlink)
os.rmdir, os.mkdir = dying(os.rmdir), dying(os.mkdir)

def dies(call):
    global calls, die_before
    child = os.fork()
    if child == 0:
        calls, die_before = 0, call
        build([sys.argv[1]], folder, settings, workers=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0

def digest():
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        sha.update(str(path.relative_to(folder)).encode() + content)
    return sha.hexdigest()

folder = Path(sys.argv[2])
"""
)

# Dies once in each life, a little later every time, until a life reaches the end.
_AGAIN_AND_AGAIN = (
    _DYING
    + """
kills = 0
while dies(2 + 7 * kills):
    kills += 1
print(kills, digest())
"""
)

# For each place to die at, a new folder, one death there, and one life to the end.
_EACH_ONCE = (
    _DYING
    + """
kills, ends = 0, set()
while dies(kills + 1):
    kills += 1
    assert not dies(0)
    ends.add(digest())
    shutil.rmtree(folder)
print(kills, *ends)
"""
)

_AT_ONCE = (
    _PRELUDE + "if __name__ == '__main__': build([sys.argv[1]], sys.argv[2], settings, workers=2)\n"
)


def content(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for topic in ("law", "mail"):
        rows = (
            json.dumps({"text": f"Document {i} about {topic}. " * (1 + i % 5)}) for i in range(60)
        )
        (folder / f"{topic}.jsonl").write_text("\n".join(rows) + "\nnonsense\n")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    build([source], folder, BuildSettings(vocab_size=300), workers=1)
    return content(folder)


@pytest.mark.parametrize(("program", "least"), [(_AGAIN_AND_AGAIN, 5), (_EACH_ONCE, 60)])
def test_killed_before_each_durable_call(
    source: Path, whole: Mapping[str, bytes], tmp_path: Path, program: str, least: int
) -> None:
    folder = tmp_path / "corpus"
    done = subprocess.run(
        [sys.executable, "-c", program, source, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kills, *ends = done.stdout.split()
    assert int(kills) >= least
    assert len(ends) == 1
    assert (
        content(folder) == whole
    )  # the last life was not killed, and what it left is what the others left
    Corpus.open(folder).verify()


def test_killed_at_random_with_its_workers(
    source: Path, whole: Mapping[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(0)
    folder = tmp_path / "corpus"
    command = [sys.executable, "-c", _AT_ONCE, str(source), str(folder)]
    for _ in range(6):
        process = subprocess.Popen(command, start_new_session=True)
        try:
            process.wait(timeout=draw.uniform(0.2, 2.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            _wait_for_the_end(process.pid)
    subprocess.run(command, check=True, timeout=120)
    assert content(folder) == whole


def test_ctrl_c_leaves_a_build_that_can_be_resumed(
    source: Path, whole: Mapping[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    process = subprocess.Popen(
        [sys.executable, "-c", _AT_ONCE, source, folder],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / BUILD / "survey.json").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    _wait_for_the_end(process.pid)
    subprocess.run([sys.executable, "-c", _AT_ONCE, source, folder], check=True, timeout=120)
    assert content(folder) == whole


def _wait_for_the_end(group: int) -> None:
    deadline = time.monotonic() + 20
    while _members(group):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    """Processes of a process group that are alive."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, found = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except (OSError, IndexError):
            continue
        if int(found) == group and state != "Z":
            members.append(int(entry.name))
    return members
