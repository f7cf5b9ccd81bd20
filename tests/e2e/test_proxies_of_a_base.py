"""Data Mixing Agent's proxies on real text: a base model of the source field, and proxies that
start from it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cuvee.cli import main
from cuvee.fleet.store.store import Store
from cuvee.policies.feedback import Feedback
from cuvee.recipes.config.schema import TrainConfig, parse
from cuvee.recipes.search import SearchConfig, logged_runs, plan, run_proxies
from cuvee.recipes.train import train
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

TRAIN = {
    "steps": 6,
    "batch_size": 4,
    "sequence_length": 64,
    "interval": 2,
    "device": "cpu",
    "validation_tokens": 512,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose target is `network`, questions for both fields, and a base model trained
    on the source domains."""
    folder = tmp_path_factory.mktemp("dma")
    stdlib_corpus(folder, targets=("network",))
    for field, source in (("general", "mail"), ("target", "network")):
        texts = [
            json.loads(row)["text"]
            for row in (folder / "sources" / f"{source}.jsonl").read_text().splitlines()
        ]
        rows = [
            {"prompt": text[:100], "answer": text[100:160]} for text in texts if len(text) > 160
        ]
        (folder / f"{field}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    weights = {"algorithms": 1.0, "mail": 1.0}
    base = {
        "method": {"name": "given", "weights": weights},
        "name": "base",
        "model": "llama-0.1m",
        "train": TRAIN,
    }
    train(parse(TrainConfig, {**common(folder), **base}, "base"))
    return folder


def common(folder: Path) -> dict[str, Any]:
    return {
        "corpus": str(folder / "corpus"),
        "out": str(folder / "runs"),
        "store": str(folder / "runs.db"),
    }


def content_of(folder: Path, **changed: Any) -> dict[str, Any]:
    (model,) = (folder / "runs").glob("base-*/model")
    questions = {field: [str(folder / f"{field}.jsonl")] for field in ("general", "target")}
    method = {
        "name": "data_mixing_agent",
        "evaluation": questions,
        "proxies": 3,
        "share": 0.2,
        **changed,
    }
    return {**common(folder), "model": str(model), "method": method, "train": TRAIN, "name": "dma"}


def search_of(folder: Path, **changed: Any) -> SearchConfig:
    return parse(SearchConfig, content_of(folder, **changed), "dma.yaml")


def test_proxies_start_from_the_base_model_and_differ_in_their_mixtures_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = search_of(place)
    planned = plan(wanted)
    assert (planned.runs, planned.logged, planned.each.tokens) == (3, 0, 6 * 4 * 64)
    runs = run_proxies(wanted, workers=1)
    assert len({run.id for run in runs}) == 3
    first = runs[0].trajectory.signals[0]
    assert set(first.probes) >= {"evaluation", "valid_loss"}
    assert first.probes["evaluation"].present.all()
    assert all(run.trajectory.signals[0] == first for run in runs), (
        "one base model, one order of the data"
    )
    with Store.open(place / "runs.db") as store:
        (base,) = (store.load(run.id) for run in store.runs() if run.id.startswith("base-"))
    assert first.probes["valid_loss"].values == pytest.approx(
        base.trajectory.last.probes["valid_loss"].values, rel=1e-5
    )
    found = np.array([Feedback()(run.trajectory).values for run in runs])
    assert (found[:, 0] == 0).all()
    assert len(set(found[:, -1])) == 3
    assert all(Feedback()(run.trajectory).present.all() for run in runs)

    assert plan(wanted).runs == 0
    assert [run.id for run in run_proxies(wanted)] == [run.id for run in runs]
    more = search_of(place, proxies=4)
    file = place / "dma.yaml"
    assert plan(more).runs == 1
    file.write_text(yaml.safe_dump(content_of(place)))
    address = str(place / "runs.db")
    four = "method.proxies=4"
    monkeypatch.setattr(
        sys,
        "argv",
        ["cuvee", "search", str(file), four, "--store", address, "--runs-only", "--quiet"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    what = f"`cuvee learn {file} {four} --store {address} -o policy/`"
    assert capsys.readouterr().out == f"4 runs are done; {what} learns from them\n"
    assert not (place / "runs" / "dma" / "policy").exists()
    assert len(logged_runs(more)) == 4
    longer = more.model_copy(update={"train": dataclasses.replace(more.train, steps=8)})
    assert (plan(longer).runs, plan(longer).logged) == (4, 0), "another budget, other proxies"
