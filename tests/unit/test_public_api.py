"""What `cuvee` exports: names and signatures as promised, and examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cuvee
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.policies.exp3 import Exp3
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.testing.runs import example_run
from cuvee.testing.toy import ToyTrainer

GOLDEN = Path(__file__).parents[1] / "golden" / "public_api.txt"
EXAMPLES = sorted(
    {cuvee._HOMES[name] for name in cuvee.__all__ if name in cuvee._HOMES} | {"cuvee.core.errors"}
)


def lines() -> Iterator[str]:
    """Each public name with its parameters, and each public method of a class, a line each."""
    for name in cuvee.__all__:
        part = getattr(cuvee, name)
        yield f"{name}{_parameters(part)}"
        if inspect.isclass(part):
            for member in sorted(vars(part)):
                if not member.startswith("_"):
                    yield f"{name}.{member}{_parameters(inspect.getattr_static(part, member))}"


def _parameters(part: Any) -> str:
    """The parameters without types; nothing for a value or a property."""
    part = part.__func__ if isinstance(part, (classmethod, staticmethod)) else part
    if not callable(part) or (inspect.isclass(part) and issubclass(part, Exception)):
        return ""
    shown = []
    keyword_only = False
    for one in inspect.signature(part).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            shown.append("*")
        if one.name not in ("self", "cls"):
            shown.append(one.name if one.default is one.empty else f"{one.name}=")
    return f"({', '.join(shown)})"


def test_public_names_are_those_that_were_promised() -> None:
    """Programs of users depend on these names and parameters.

    If a change is intended: python tests/unit/test_public_api.py > tests/golden/public_api.txt
    """
    assert list(lines()) == GOLDEN.read_text().splitlines()
    with pytest.raises(AttributeError, match="has no attribute 'Corpse'"):
        _ = cuvee.Corpse


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_a_batch_becomes_tensors() -> None:
    tokens = np.arange(110) % 50
    corpus = MemoryCorpus({"web": TokenPool("web", tokens, np.arange(0, 110, 30))})
    settings: dict[str, Any] = {"batch_size": 2, "sequence_length": 64, "seed": 0}
    batch = next(cuvee.MixtureStream(corpus, {"web": 1.0}, **settings))
    tensors = batch.to("cpu")
    assert tensors.tokens_BL.dtype == torch.int64
    assert (tensors.tokens_BL.numpy() == batch.tokens_BL).all()
    assert ((tensors.labels_BL == -100).numpy() == ~batch.counted_BL).all()
    assert (tensors.labels_BL == -100).sum() == 18, "the second window is padded"
    assert (tensors.position_BL.numpy() == batch.position_BL).all()
    assert repr(batch) == "Batch(step 0, 2 × 64 tokens: web 110)"


def test_a_trajectory_as_a_frame() -> None:
    trajectory = example_run("odm", intervals=4).trajectory
    frame = trajectory.to_frame()
    assert frame.shape == (5 * 8, 9)
    weights = frame[frame.interval > 0].pivot(index="interval", columns="domain", values="weight")
    assert (weights[list(trajectory.names)].to_numpy() == trajectory.weights_TK()).all()


def test_steering_refuses_what_it_cannot_do() -> None:
    domains = {"web": 1000, "code": 1000}
    with pytest.raises(cuvee.CuveeError, match="reads more than losses"):
        cuvee.LossSteering("doge", domains, tokens=100)
    with pytest.raises(cuvee.CuveeError, match="regmix learns from proxy runs"):
        cuvee.LossSteering("regmix", domains, tokens=100)
    steering = cuvee.LossSteering("odm", domains, tokens=100)
    with pytest.raises(cuvee.CuveeError, match="no domain 'wbe'; did you mean 'web'"):
        steering.learn({"wbe": 1.0}, {"web": 10})
    with pytest.raises(cuvee.CuveeError, match="domains without training tokens: code"):
        cuvee.LossSteering("odm", {"web": 1000, "code": 0}, tokens=100)
    with pytest.raises(cuvee.CuveeError, match="steps is 0"):
        steering.learn({"web": 1.0}, {"web": 10}, steps=0)
    guarded = Guard(Exp3(), Limits(floor=0.1))
    with pytest.raises(cuvee.CuveeError, match="has a guard already"):
        cuvee.LossSteering(guarded, domains, tokens=100, limits=Limits(floor=0.2))
    assert cuvee.LossSteering(guarded, domains, tokens=100).mixture["web"] == 0.5


def test_a_refused_report_changes_nothing() -> None:
    steering = cuvee.LossSteering("odm", {"web": 1000, "code": 1000}, tokens=100)
    with pytest.raises(cuvee.CuveeError, match="counts"):
        steering.learn({"web": 1.0}, {"web": -50})
    steering.learn({"web": 1.0}, {"web": 50})
    assert steering.trajectory.last.progress == 0.5


def test_steering_decides_as_the_loop_does() -> None:
    trainer = ToyTrainer(intervals=6)
    expected = cuvee.run(trainer, Guard(Exp3()))
    sizes = {domain.name: domain.tokens for domain in trainer.domains}
    steering = cuvee.LossSteering(Exp3(), sizes, tokens=6000)
    for before, after in zip(expected.mixtures, expected.signals[1:], strict=True):
        assert steering.mixture.weights_K == pytest.approx(before.weights_K, abs=1e-12)
        drawn = dict(zip(after.names, after.tokens_K.tolist(), strict=True))
        loss = dict(zip(after.names, after.loss.to_json(), strict=True))
        steering.learn({name: value for name, value in loss.items() if value is not None}, drawn)
    assert steering.done


def test_two_policies_with_one_label_need_other_labels() -> None:
    toy = ToyTrainer()
    with pytest.raises(cuvee.CuveeError, match="several policies are called exp3"):
        cuvee.compare([Exp3(), Exp3(smoothing=0.5)], toy, lambda seed: ToyTrainer(seed=seed))


def test_a_misspelled_universal_policy_is_recognised() -> None:
    with pytest.raises(
        cuvee.CuveeError, match="univeral holds no policy: did you mean 'universal'"
    ):
        cuvee.load_policy("univeral")


def test_a_report_of_a_trajectory(tmp_path: Path) -> None:
    trajectory = example_run("odm", intervals=4).trajectory
    assert "source-0" in cuvee.write_report(trajectory, tmp_path / "one.html").read_text()


if __name__ == "__main__":
    print("\n".join(lines()))
