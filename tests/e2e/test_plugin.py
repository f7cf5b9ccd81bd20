"""examples/plugin: an external package's method, policy and reward in every cuvee process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
SMALL = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 2,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the plugin is installed, without a network."""
    source = tmp_path_factory.mktemp("source")
    for file in PLUGIN.iterdir():
        if file.is_file():
            (source / file.name).write_text(file.read_text())
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target)]
    subprocess.run([*command, str(source)], check=True, timeout=200)
    return target


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    train = {"steps": 6, "batch_size": 4, "sequence_length": 32, "interval": 1, "device": "cpu"}
    document = {
        "corpus": str(stdlib_corpus(place / "text").folder),
        "train": {**train, "validate_every": 0, "validation_tokens": 128},
        "store": str(place / "runs.db"),
        "out": str(place / "runs"),
    }
    (place / "mine.yaml").write_text(yaml.safe_dump(document))
    return place


ONE_AFTER_ANOTHER = """
import json, sys
from cuvee.cli import main
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        print("[status", ended.code, "]", file=sys.stderr, flush=True)
"""


def cuvee(place: Path, path: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    return python(place, path, "-m", "cuvee.cli", *words)


def python(place: Path, path: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    found = [str(path)] if path else []
    paths = os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_the_plugin_has_at_most_60_lines() -> None:
    files = [*PLUGIN.glob("*.py"), PLUGIN / "pyproject.toml"]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 60


def test_the_plugin_is_used_by_train_compare_and_search_saved_and_loaded(
    site: Path, place: Path
) -> None:
    searched = "method={name: staircase, proxies: 2}"
    policy = place / "runs" / "s" / "policy"
    learned = {"name": "agent", "reward": "progress", "agent_settings": SMALL}
    methods = yaml.safe_dump(["natural", "staircase", learned], default_flow_style=True).strip()
    commands = [
        ["search", "mine.yaml", searched, "name=s", "--workers", "1", "-q"],
        ["train", "mine.yaml", f"policy={policy}", "name=t", "-q"],
        ["compare", "mine.yaml", f"methods={methods}", "name=c", "--workers", "2", "-q"],
    ]
    done = python(place, site, "-c", ONE_AFTER_ANOTHER, json.dumps(commands))
    assert done.stderr.count("[status 0 ]") == 3, done.stderr
    assert '"kind": "staircase"' in (policy / "policy.json").read_text()
    print(done.stdout)
    assert "staircase" in done.stdout

    done = cuvee(place, None, "train", "mine.yaml", f"policy={policy}", "name=u", "-q")
    assert done.returncode == 2, "without the package, the file is refused and imports nothing"
    assert "no policy 'staircase'" in done.stderr


def test_a_module_that_plugins_names_registers_parts_in_workers_too(place: Path) -> None:
    folder = place / "modules"
    folder.mkdir()
    source = (PLUGIN / "cuvee_staircase.py").read_text()
    (folder / "cuvee_own.py").write_text(
        source
        + "\n\nfrom cuvee.core.registry import register_method, register_policy\n"
        + 'register_policy("own")(Staircase)\nregister_method("own")(StaircaseMethod)\n'
    )
    method = "method={name: own, proxies: 2}"
    words = ["search", "mine.yaml", method, "name=p", "--workers", "1", "-q"]
    commands = [words, [*words, "plugins=[cuvee_own]"]]
    done = python(place, folder, "-c", ONE_AFTER_ANOTHER, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    refusal, rest = done.stderr.split("[status 2 ]")
    assert "no method 'own'" in refusal, "nothing is imported that the configuration does not name"
    assert "[status 0 ]" in rest, rest
    assert '"kind": "own"' in (place / "runs" / "p" / "policy" / "policy.json").read_text()


def test_a_policy_that_cannot_be_saved_is_refused_before_the_first_step(place: Path) -> None:
    folder = place / "unsaved"
    folder.mkdir()
    source = (PLUGIN / "cuvee_staircase.py").read_text()
    (folder / "cuvee_unsaved.py").write_text(
        source
        + "\n\nfrom cuvee.core.registry import register_method\n"
        + 'register_method("unsaved")(StaircaseMethod)\n'
    )
    commands = [
        [command, "mine.yaml", steering, "plugins=[cuvee_unsaved]", f"name=n-{command}", "-q"]
        for command, steering in (
            ("train", "method=unsaved"),
            ("compare", "methods=[unsaved]"),
            ("search", "method={name: unsaved, proxies: 1}"),
        )
    ]
    done = python(place, folder, "-c", ONE_AFTER_ANOTHER, json.dumps(commands))
    *refusals, rest = done.stderr.split("[status 2 ]")
    assert (len(refusals), rest.strip()) == (3, ""), done.stderr
    assert all("Staircase cannot be saved" in refusal for refusal in refusals)
    assert not list((place / "runs").glob("n-*/checkpoints"))
