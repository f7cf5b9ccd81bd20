"""`cuvee recommend` and `cuvee order-test` as commands: files, the next search, the runs of a
search, and the page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import ConfigError
from cuvee.fleet.store.store import Store
from cuvee.recipes.config.schema import load
from cuvee.recipes.search import SearchConfig, repetition_checks
from cuvee.testing.runs import example_domains, example_run
from stdlib_corpus import stdlib_corpus

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BEST = np.array([0.5, 0.3, 0.2])


def cuvee(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    lines = ["run,mix_web,mix_code,mix_maths,loss,maths_loss"]
    for n, mixture in enumerate(rng.dirichlet(np.ones(3), 32)):
        loss = 3 + 4 * np.square(mixture - BEST).sum() + 0.005 * rng.normal()
        maths = 2 - 0.3 * np.log(mixture[2] + 0.02) + 0.005 * rng.normal()
        lines.append(",".join(map(str, [n, *mixture, loss, maths])))
    path.write_text("\n".join(lines) + "\nodd,0.9,0.9,0.9,1,1\n")
    return path


@pytest.fixture(scope="module")
def recommended(table: Path) -> tuple[Path, str]:
    (table.parent / "available.json").write_text('{"web": 900, "code": 500, "maths": 40}')
    output = table.parent / "out"
    said = cuvee(
        "recommend", table, "-o", output, "--objective", "loss=1", "--tokens", 1000,
        "--available", table.parent / "available.json", "--next", 3, "--pareto", "loss,maths_loss",
        "--write", "megatron", "--write", "schedule",
    )  # fmt: skip
    return output, said


def test_the_command_says_and_writes_what_was_asked(recommended: tuple[Path, str]) -> None:
    output, said = recommended
    assert "Tied: one mixture for the whole run." in said
    assert "rows set aside: 1" in said
    assert "Regret@1" in said
    assert "megatron: weights of sequences" in said
    content = json.loads((output / "recommendation.json").read_text())
    weights = content["plan"]["stages"][0]["weights"]
    assert weights["maths"] <= 0.16 + 1e-6, "four passes over 40 tokens in a run of 1,000"
    assert weights["web"] == pytest.approx(0.52, abs=0.05)
    assert content["quarantined"][0]["line"] == 34
    interval = content["predicted"]["objective"]
    assert interval["low"] < interval["mean"] < interval["high"]
    assert (output / "megatron.args").read_text().startswith("--data-path ")


def test_the_next_runs_are_a_search_that_can_be_loaded(
    recommended: tuple[Path, str], tmp_path: Path
) -> None:
    config = load(SearchConfig, recommended[0] / "next.yaml")
    assert config.method.name == "designed"
    assert len(config.method.options["runs"]) == 3


def test_mistakes_are_named_before_anything_is_fitted(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'megatron'"):
        cuvee("recommend", table, "-o", tmp_path / "x", "--write", "megatorn")
    with pytest.raises(ConfigError, match="give NAME=NUMBER"):
        cuvee("recommend", table, "--objective", "loss")
    with pytest.raises(ConfigError, match="'x' is not a number"):
        cuvee("recommend", table, "--cap", "web=x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"web": Infinity}', "web is 'inf', which is not a finite number"),
        ('{"web": -5}', "web is -5: give a count of 0 or more"),
        ('{"wbe": 5}', "names 'wbe'; did you mean 'web'"),
    ],
)
def test_numbers_by_domain_are_checked(
    table: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        cuvee("recommend", table, "-o", tmp_path / "x", "--samples", tmp_path / "samples.json")


def test_sources_and_outputs_that_are_something_else_are_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.tsv").write_text(table.read_text())
    with pytest.raises(ConfigError, match=r"runs\.tsv: not a table: give CSV"):
        cuvee("recommend", tmp_path / "runs.tsv")
    with pytest.raises(ConfigError, match="there is no file or folder nowhere"):
        cuvee("recommend", "nowhere", "--store", tmp_path / "no.db")
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        cuvee("recommend", table, "-o", tmp_path / "runs.tsv")
    with pytest.raises(ConfigError, match="--cap names web twice"):
        cuvee("recommend", table, "--cap", "web=0.1", "--cap", "web=0.2")


def test_a_group_of_the_store_is_a_source(tmp_path: Path) -> None:
    with Store.open(tmp_path / "runs.db") as store:
        for seed in range(16):
            run = example_run("odm", seed, domains=example_domains(2, 1))
            store.add(f"swarm/{seed}", run, group="swarm")
    said = cuvee("recommend", "swarm", "--store", tmp_path / "runs.db", "-o", tmp_path / "out")
    assert "runs that move are averaged over 3 equal phases" in said
    assert "16 runs; rows set aside: 0." in said
    with pytest.raises(ConfigError, match="did you mean 'swarm'"):
        cuvee("recommend", "swram", "--store", tmp_path / "runs.db")


def browse(
    page: Path, profile: Path, *extra: str, at: str = ""
) -> subprocess.CompletedProcess[str]:
    command = (
        f"{CHROMIUM} --headless --no-sandbox --disable-gpu --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--virtual-time-budget=8000 --enable-logging=stderr"
    )
    return subprocess.run(
        [*command.split(), f"--user-data-dir={profile}", *extra, page.as_uri() + at],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.skipif(
    not CHROMIUM and os.environ.get("CI") != "true", reason="needs Chromium, which is not installed"
)
def test_sliders_move_the_plan_in_a_browser(recommended: tuple[Path, str], tmp_path: Path) -> None:
    page = recommended[0] / "recommendation.html"
    still = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in still.stderr
    assert 'data-plan="0"' in still.stdout
    names = re.findall(r'<ul class="bars".*?</ul>', still.stdout, re.DOTALL)
    assert all(domain in names[0] for domain in ("web", "code", "maths"))
    plans = json.loads(re.findall(r'"plans":(\[\[\[.*?\]\]\])', page.read_text())[0])
    moved = browse(page, tmp_path / "profile-2", "--dump-dom", at="#weights=0,100")
    assert "CONSOLE" not in moved.stderr
    picked = re.search(r'data-plan="(\d+)"', moved.stdout)
    assert picked
    assert plans[int(picked[1])][0][2] > plans[0][0][2] - 1e-9, (
        "maths alone: as much as its cap allows"
    )
    assert int(picked[1]) > 0
    shot = tmp_path / "narrow.png"
    browse(page, tmp_path / "profile-3", f"--screenshot={shot}", "--window-size=390,2000")
    assert shot.stat().st_size > 20_000


@pytest.mark.training
def test_the_order_of_two_domains_is_tested_by_training(tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path / "text").folder
    train = {
        "steps": 8, "batch_size": 4, "sequence_length": 32, "learning_rate": 3e-3,
        "interval": 2, "validate_every": 0, "device": "cpu",
    }  # fmt: skip
    content = {
        "corpus": str(corpus),
        "train": train,
        "store": str(tmp_path / "runs.db"),
        "out": str(tmp_path / "runs"),
    }
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(content))
    domains = json.loads((corpus / "manifest.json").read_text())["domains"]
    names = [domain["name"] for domain in domains]
    said = cuvee(
        "order-test", config, "--between", f"{names[0]},{names[1]}", "--seeds", 2, "--quiet"
    )
    assert "Late less early:" in said
    assert "With fewer than 5 seeds" in said
    assert (tmp_path / "runs" / "small-order.html").is_file()
    search = tmp_path / "search.yaml"
    search.write_text(yaml.safe_dump({**content, "method": "natural", "target_tokens": 10**9}))
    assert any("far less often" in line for line in repetition_checks(load(SearchConfig, search)))
