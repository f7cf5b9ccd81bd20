"""`cuvee train` on real text, killed, interrupted, continued and run on two ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cuvee.core.errors import ConfigError, CuveeError, ShardError, TrainingError
from cuvee.core.trajectory import Run
from cuvee.fleet.store.store import Store
from cuvee.policies.files import load_policy
from cuvee.recipes.config.schema import TrainConfig, load
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.progress.watch import Observer, Progress, Unobserved
from cuvee.recipes.train import train
from registered import methods_that_steer_alone
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_corpus(tmp_path_factory.mktemp("text")).folder


@pytest.fixture
def place(tmp_path: Path, corpus: Path) -> Path:
    """A working directory with a configuration."""
    return prepared(tmp_path, corpus)


def prepared(place: Path, corpus: Path) -> Path:
    settings = {
        "steps": 60,
        "batch_size": 8,
        "sequence_length": 64,
        "learning_rate": 3e-3,
        "interval": 2,
    }
    config = {
        "corpus": str(corpus),
        "method": "odm",
        "guard": {"floor": 0.05, "max_change": 0.1},
        "train": {**settings, "validate_every": 1, "validation_tokens": 512, "device": "cpu"},
        "checkpoint_every": 7,
        "store": str(place / "runs.db"),
        "out": str(place / "runs"),
    }
    (place / "mine.yaml").write_text(yaml.safe_dump(config))
    return place


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cuvee.cli", "train", "mine.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def here(
    place: Path, *overrides: str, resume: bool = False, observer: Observer | None = None
) -> Run:
    """The same in this process."""
    return train(
        load(TrainConfig, place / "mine.yaml", overrides), resume=resume, observer=observer
    )


def wait_for_interval(place: Path, number: int) -> None:
    """Returns as soon as the only run of the store has recorded so many intervals."""
    path, patience = place / "runs.db", time.monotonic() + 100
    while not path.exists():
        time.sleep(0.05)
        assert time.monotonic() < patience, "the run never began"
    with Store.open(path) as store:
        while not any(run.intervals >= number for run in store.runs()):
            time.sleep(0.05)
            assert time.monotonic() < patience, "the run never came that far"


def only_run(place: Path) -> Run:
    with Store.open(place / "runs.db") as store:
        (summary,) = store.runs()
        assert summary.status == "done"
        return store.load(summary.id)


def model(run: Run) -> Path:
    return Path(run.policy or "").parent / "model"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Run:
    return here(prepared(tmp_path_factory.mktemp("unbroken"), corpus))


def test_a_run_leaves_a_model_a_policy_and_its_record(unbroken: Run) -> None:
    losses = [signals.probes["valid_loss"].values.mean() for signals in unbroken.trajectory.signals]
    assert losses[-1] < losses[0] - 0.5
    assert len(unbroken.trajectory) == 30
    assert unbroken.cost.tokens == sum(
        int(signals.tokens_K.sum()) for signals in unbroken.trajectory.signals
    )
    assert unbroken.config["method"] == {"name": "odm", "label": "odm"}

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model(unbroken)
    text = AutoTokenizer.from_pretrained(folder)("def main(", return_tensors="pt")
    assert AutoModelForCausalLM.from_pretrained(folder)(text["input_ids"]).logits.isfinite().all()

    card = (folder / "README.md").read_text()
    assert f"cost: {unbroken.cost.tokens:,} tokens" in card
    rows = [line.split("|")[1:-1] for line in card.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == list(unbroken.trajectory.names)
    assert sum(int(row[2].replace(",", "")) for row in rows) == unbroken.cost.tokens


def test_a_killed_run_resumes_exactly(place: Path, unbroken: Run) -> None:
    for number, arguments in (
        (3, []),
        (18, ["--resume"]),
    ):  # before the first checkpoint, and between later ones
        process = start(place, *arguments)
        wait_for_interval(place, number)
        with pytest.raises(ConfigError, match="wait for that process, or stop it"):
            here(place)
        process.send_signal(signal.SIGKILL)
        finish(process)
    with pytest.raises(ConfigError, match=r"was interrupted at \d+% of its budget.* --resume"):
        here(place)
    status, output = finish(start(place, "--resume"))
    assert status == 0, output
    run = only_run(place)
    assert run.trajectory == unbroken.trajectory, "every loss, weight and token count, bit by bit"
    assert (model(run) / "model.safetensors").read_bytes() == (
        model(unbroken) / "model.safetensors"
    ).read_bytes()


class Asks(Unobserved):
    """Sends this process a signal after so many intervals, as a terminal or a scheduler would."""

    def __init__(self, number: signal.Signals, after: int) -> None:
        self._number, self._left = number, after

    def interval(self, progress: Progress) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_resumes(
    place: Path, unbroken: Run, number: signal.Signals
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(
        Stopped, match=r"stopped after step 10 \(17%\); everything is saved"
    ) as stopped:
        here(place, observer=Asks(number, after=5))
    assert stopped.value.signal == number
    assert signal.getsignal(number) is handler
    with Store.open(place / "runs.db") as store:
        (summary,) = store.runs()
    assert (summary.status, summary.intervals) == ("waiting", 5)
    assert [path.name for path in (place / "runs" / summary.id / "checkpoints").iterdir()] == [
        "step-000000005"
    ]
    assert here(place, resume=True).trajectory == unbroken.trajectory


_AS_NATURAL = {"source_only", "target_only"}


@pytest.mark.parametrize("method", sorted({*methods_that_steer_alone()} - _AS_NATURAL - {"odm"}))
def test_every_method_resumes_exactly(place: Path, method: str) -> None:
    soon = {"agent": {"learning_starts": 2}} if method in ("ac_odm", "hds") else {}
    options = {"name": method, **soon}
    overrides = (
        f"method={json.dumps(options)}",
        "train.steps=16",
        "train.batch_size=4",
        "train.validation_tokens=128",
    )
    whole = here(place, *overrides)
    with pytest.raises(Stopped):
        here(place, *overrides, "name=parts", observer=Asks(signal.SIGINT, after=5))
    assert here(place, *overrides, "name=parts", resume=True).trajectory == whole.trajectory


class Notes(Unobserved):
    def __init__(self) -> None:
        self.taken: list[str] = []

    def end(self, run_id: str, note: str) -> None:
        self.taken.append(note)


def test_a_finished_run_is_not_repeated(place: Path) -> None:
    first = here(place, "train.steps=4")
    for resume in (False, True):
        notes = Notes()
        assert here(place, "train.steps=4", resume=resume, observer=notes) == first
        assert "is finished already" in notes.taken[0]
    assert here(place, "train.steps=6").id != first.id


def test_two_ranks_go_on_with_what_one_began(place: Path, unbroken: Run) -> None:
    with pytest.raises(Stopped):
        here(place, observer=Asks(signal.SIGINT, after=5))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "cuvee.cli", "train", "mine.yaml", "--resume"]
    ranks = subprocess.Popen(
        command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    status, output = finish(ranks)
    assert status == 0, output
    assert output.count("continues after step 10") == 1, "rank 0 alone speaks"
    for mine, other in zip(
        only_run(place).trajectory.signals, unbroken.trajectory.signals, strict=True
    ):
        np.testing.assert_allclose(mine.loss.values, other.loss.values, rtol=2e-3)


def test_a_policy_file_steers_another_run(place: Path, unbroken: Run) -> None:
    config = yaml.safe_load((place / "mine.yaml").read_text())
    del config["method"]
    (place / "mine.yaml").write_text(yaml.safe_dump(config))
    run = here(place, f"policy={unbroken.policy}", "train.steps=4")
    assert run.config["policy"] == unbroken.id, "it is called by the run that it came from"
    assert "method" not in run.config
    learned = load_policy(Path(unbroken.policy or "")).mixture(run.trajectory)
    assert run.trajectory.mixtures[0].total_variation(learned) < 0.05, (
        "it begins with what it had learned"
    )


def test_what_went_wrong_is_said_in_one_line(place: Path) -> None:
    status, output = finish(start(place, "train.leaning_rate=1"))
    assert status == 2
    assert output == (
        "error: mine.yaml with train.leaning_rate=1: unknown key 'leaning_rate' in train; "
        "did you mean 'learning_rate'?\n"
    )
    for override, said in (
        ("corpus=nowhere", "there is no corpus folder nowhere"),
        ("model=lama-1m", "no model 'lama-1m'; did you mean 'llama-1m'?"),
        ("policy=nowhere", "nowhere holds no policy"),
        ("guard.floor=0.6", "the floors of 3 domains sum to 1.8"),
    ):
        with pytest.raises(CuveeError, match=re.escape(said)):
            here(place, override)


def test_a_shard_that_was_cut_short_is_named(place: Path, corpus: Path) -> None:
    shutil.copytree(corpus, place / "cut")
    shard = next((place / "cut" / "train").glob("*.bin"))
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(ShardError, match=re.escape(str(shard))):
        here(place, f"corpus={place / 'cut'}")


def test_a_loss_that_is_not_finite_fails_the_run_and_nothing_else(place: Path) -> None:
    with pytest.raises(TrainingError, match="is not finite"):
        here(place, "train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.precision=fp32")
    with Store.open(place / "runs.db") as store:
        (summary,) = store.runs()
    assert summary.status == "waiting"
    assert "is not finite" in str(summary.reason)
