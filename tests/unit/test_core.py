"""Mixture, signals, trajectory, state on disk and the loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, MixtureError, SignalError, pip_install
from cuvee.core.files import write_folder
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, State, Trainer
from cuvee.core.signals import Measured, Signals
from cuvee.core.state import load_state, save_state
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.loop import run, search
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.testing.policy import ScriptedTrainer, some_domains


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ([0.5, 0.6], "sum to 1.1"),
        ([1.5, -0.5], "-0.5"),
        ([float("nan"), 1.0], "nan"),
        ([float("inf"), 0.0], "inf"),
        ([1.0], "2 weights"),
    ],
)
def test_a_mixture_refuses_what_is_not_on_the_simplex(weights: list[float], named: str) -> None:
    with pytest.raises(MixtureError, match=named):
        Mixture(("web", "code"), np.array(weights))


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a b",), ("<script>",), ("x" * 65,), ("",)])
def test_a_mixture_refuses_bad_names(names: tuple[str, ...]) -> None:
    with pytest.raises(MixtureError):
        Mixture(names, np.full(len(names), 1 / max(len(names), 1)))


def test_a_mixture_cannot_be_changed() -> None:
    weights = np.array([0.5, 0.5])
    mixture = Mixture(("a", "b"), weights)
    weights[0] = 9.0
    assert mixture["a"] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        mixture.weights_K[0] = 1.0


def test_a_mixture_moves_to_other_domains_by_name() -> None:
    mixture = Mixture.of({"a": 0.25, "b": 0.75, "c": 0.0})
    assert mixture.to(("b", "d", "a")).as_dict() == {"b": 0.75, "d": 0.0, "a": 0.25}
    with pytest.raises(MixtureError, match="b has weight"):
        mixture.to(("a", "d"))
    with pytest.raises(MixtureError, match="latin"):
        mixture["latin"]


def test_a_misspelled_domain_gets_the_nearest_name() -> None:
    with pytest.raises(MixtureError, match="did you mean 'maths'"):
        Mixture.of({"mahts": 1.0}).to(["code", "maths"])


def test_normalise_needs_something_to_divide_by() -> None:
    with pytest.raises(MixtureError, match="every weight is zero"):
        Mixture.normalise(("a", "b"), [0.0, 0.0])
    assert Mixture.normalise(("a", "b"), [1e308, 1e308])["a"] == 0.5
    assert Mixture.normalise(("a", "b"), [5e-324, 0.0])["a"] == 1.0


def test_distances() -> None:
    a, b = Mixture.of({"x": 1.0, "y": 0.0}), Mixture.of({"x": 0.25, "y": 0.75})
    assert a.total_variation(b) == 0.75
    assert a.entropy() == 0.0
    assert Mixture.uniform(["x", "y"]).entropy() == pytest.approx(np.log(2))
    assert a.digest() != b.digest()


def test_what_was_not_measured_is_absent_and_not_zero() -> None:
    loss = Measured.mean([6.0, 0.0], [2, 0])
    assert loss.to_json() == [3.0, None]
    assert loss.filled(-1.0).tolist() == [3.0, -1.0]
    assert Measured.from_json([3.0, None]) == loss
    assert Measured.from_json(Measured.all(4.0).to_json()) == Measured.all(4.0)
    assert Measured.from_json([[None, 1.0], [2.0, None]]).present.sum() == 2
    with pytest.raises(SignalError, match="nan"):
        Measured.all([1.0, float("nan")])
    assert Measured(np.array([float("nan")]), np.array([False])).values.tolist() == [0.0]


@pytest.mark.parametrize(
    "change", [{"progress": float("nan")}, {"progress": 1.5}, {"step": -1}, {"tokens_K": [1]}]
)
def test_signals_refuse_what_cannot_be(change: dict[str, object]) -> None:
    good = {
        "domains": some_domains(2),
        "step": 0,
        "progress": 0.0,
        "tokens_K": [0, 0],
        "loss": Measured.absent(2),
    }
    Signals(**good)  # type: ignore[arg-type]
    with pytest.raises(SignalError):
        Signals(**{**good, **change})  # type: ignore[arg-type]


def test_the_natural_mixture() -> None:
    natural = Mixture.natural((Domain("a", 10), Domain("b", 30)))
    assert natural.as_dict() == {"a": 0.25, "b": 0.75}


def test_a_trajectory_is_append_only_even_when_it_branches() -> None:
    domains = some_domains(2)
    trainer = ScriptedTrainer(domains)
    start = Trajectory.start(trainer.start(()))
    uniform, first = Mixture.uniform(start.names), Mixture.of({"d0": 1.0, "d1": 0.0})
    one = start.append(uniform, trainer.advance(uniform))
    other = start.append(first, trainer.advance(first))
    assert (len(start), len(one), len(other)) == (0, 1, 1)
    assert (one.last_mixture, other.last_mixture) == (uniform, first)
    assert start.last_mixture is None
    longer = one.append(uniform, trainer.advance(uniform))
    assert one.append(first, other.last).mixtures == [uniform, first]
    assert longer.mixtures == [uniform, uniform]
    with pytest.raises(MixtureError):
        one.append(Mixture.uniform(["x", "y"]), one.last)


def test_a_trajectory_survives_json_bit_by_bit() -> None:
    so_far = run(ScriptedTrainer(some_domains(3)), Exp3())
    assert Trajectory.from_json(json.loads(json.dumps(so_far.to_json()))) == so_far


def test_a_trajectory_whose_domains_change_survives_json() -> None:
    two, three = some_domains(2), some_domains(3)
    start = Signals(two, 0, 0.0, np.array([0, 0]), Measured.absent(2))
    wider = Signals(three, 1, 0.5, np.array([1, 1, 1]), Measured.all([1.0, 2.0, 3.0]))
    so_far = Trajectory.start(start).append(Mixture.uniform(wider.names), wider)
    assert Trajectory.from_json(json.loads(json.dumps(so_far.to_json()))) == so_far
    assert so_far.weights_TK().shape == (1, 3)


def test_costs_add() -> None:
    assert Cost(1, 2.0, 3.0) + Cost(10, 20.0, 30.0) == Cost(11, 22.0, 33.0)


STATE = {
    "step": 3,
    "name": "x",
    "none": None,
    "nested": {
        "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
        "list": [1.5, np.array([True, False])],
    },
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
}


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def test_state_survives_the_disk(tmp_path: Path) -> None:
    save_state(tmp_path / "s", STATE)
    assert same(load_state(tmp_path / "s"), STATE)
    save_state(tmp_path / "s", {"step": 4})
    assert load_state(tmp_path / "s") == {"step": 4}
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"], "no temporary folder is left"


def test_state_that_was_altered_or_cut_is_refused(tmp_path: Path) -> None:
    for name in ("state.safetensors", "state.json", "hashes.json"):
        for damage in (
            lambda data: data[: len(data) // 2],
            lambda data: data[:-3] + b"\0\0\0",
            lambda data: None,
        ):
            save_state(tmp_path / "s", STATE)
            file = tmp_path / "s" / name
            damaged = damage(file.read_bytes())
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="earlier copy"):
                load_state(tmp_path / "s")


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    save_state(tmp_path / "s", STATE)

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "s", fill)
    assert same(load_state(tmp_path / "s"), STATE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


class MemoryJournal:
    """Keeps states in memory; `stop_after` breaks off as a kill would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.saved: tuple[Trajectory, State, State] | None = None

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        if self.saved is None:
            return None
        so_far, of_trainer, of_policy = self.saved
        trainer.restore(of_trainer, policy.probes)
        policy.load_state_dict(of_policy)
        return so_far

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        self.saved = (
            so_far,
            trainer.state_dict(),
            json.loads(json.dumps(policy.state_dict())),
        )
        if len(so_far) == self.stop_after:
            raise KeyboardInterrupt


def test_run_resumes_where_its_journal_stopped() -> None:
    domains = some_domains(3)
    whole = run(ScriptedTrainer(domains), Exp3())
    for stop in range(1, len(whole)):
        journal = MemoryJournal(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            run(ScriptedTrainer(domains), Exp3(), journal)
        assert run(ScriptedTrainer(domains), Exp3(), journal) == whole


def test_search_asks_until_the_method_has_enough() -> None:
    domains = some_domains(2)

    class ThreeProxies:
        def propose(self, corpus: Domains, logged: Sequence[Run]) -> list[Policy]:
            return [Fixed(Mixture.uniform(("d0", "d1")))] * min(2, 3 - len(logged))

        def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
            return Fixed(logged[-1].trajectory.mixtures[0])

    class InProcess:
        def __init__(self) -> None:
            self.done: list[Run] = [
                Run(
                    "old",
                    0,
                    {},
                    run(ScriptedTrainer(domains), Fixed(Mixture.uniform(["d0", "d1"]))),
                )
            ]
            self.batches: list[int] = []

        def load(self) -> list[Run]:
            return list(self.done)

        def run(self, policies: Sequence[Policy]) -> list[Run]:
            self.batches.append(len(policies))
            return [Run("new", 0, {}, run(ScriptedTrainer(domains), policy)) for policy in policies]

    fleet = InProcess()
    policy = search(ThreeProxies(), ScriptedTrainer(domains), fleet)
    assert fleet.batches == [2], "the run on disk counts and is not repeated"
    assert isinstance(policy, Fixed)


def test_importing_cuvee_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "transformers", "pyarrow", "sqlalchemy")
    check = f"import cuvee, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_core_needs_numpy_only() -> None:
    heavy = ("torch", "transformers", "pydantic")
    check = (
        f"import cuvee.loop, cuvee.core.state, sys; print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_command_for_an_extra_names_its_packages_and_those_of_the_extras_in_it() -> None:
    command = pip_install("trl")
    assert re.fullmatch(r"pip install 'accelerate>=[\d.]+' 'trl>=[\d.]+'", command)
    assert pip_install("no such extra") == "pip install -e '.[no such extra]'"
