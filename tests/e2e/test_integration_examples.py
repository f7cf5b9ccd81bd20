"""The examples of docs/integrations.md run at toy size and are short enough to copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training
EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stdlib_corpus(tmp_path_factory.mktemp("text")).folder)


def output(name: str, *arguments: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def run(name: str, *arguments: str) -> list[str]:
    lines = output(name, *arguments)
    return [line for line in lines if line.endswith("}") and line[0].isdigit()]


SHORT = sorted(
    path
    for folder in ("integrations", "torchtitan", "megatron")
    for path in (EXAMPLES.parent / folder).glob("*.py")
)


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_an_example_has_forty_lines_at_most(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


def test_the_plain_loop(corpus: str) -> None:
    lines = run("plain_pytorch.py", corpus, "12")
    assert [int(line.split()[0]) for line in lines] == [0, 5, 10]


def test_the_trainer_resumes_and_ends_as_if_it_had_not_stopped(corpus: str, tmp_path: Path) -> None:
    whole = run("huggingface_trainer.py", corpus, "10", str(tmp_path / "run"))
    assert [int(line.split()[0]) for line in whole] == [0, 4]
    assert (tmp_path / "run" / "checkpoint-5" / "cuvee-rank-0.safetensors").is_file()
    assert run("huggingface_trainer.py", corpus, "10", str(tmp_path / "run")) == whole


def test_trl_resumes_and_ends_as_if_it_had_not_stopped(corpus: str, tmp_path: Path) -> None:
    whole = run("trl_sft.py", corpus, "10", str(tmp_path / "run"))
    assert [int(line.split()[0]) for line in whole] == [0, 4]
    assert run("trl_sft.py", corpus, "10", str(tmp_path / "run")) == whole


def test_lightning_resumes_and_ends_as_if_it_had_not_stopped(corpus: str, tmp_path: Path) -> None:
    whole = run("lightning_trainer.py", corpus, "10", str(tmp_path / "run"))
    assert [int(line.split()[0]) for line in whole] == [0, 5]
    assert run("lightning_trainer.py", corpus, "10", str(tmp_path / "run")) == whole


def test_sac_of_stable_baselines3_trains_on_the_simulator() -> None:
    lines = output("stable_baselines3_sac.py", "150")
    returns = {line.split()[0]: float(line.split()[1]) for line in lines}
    assert returns["uniform"] > 0
    assert returns["SAC"] > 0
