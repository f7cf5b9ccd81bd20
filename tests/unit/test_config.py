"""Configurations: what is right becomes settings, what is wrong is named with its remedy."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Cost
from cuvee.policies.files import save_policy
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Limits
from cuvee.recipes.config.schema import (
    CompareConfig,
    PolicyChoice,
    RunConfig,
    TrainConfig,
    _sections_by_name,
    load,
    parse,
)
from cuvee.recipes.config.yaml_file import MAX_BYTES, override, parse_yaml, read_yaml
from cuvee.recipes.search import SearchConfig
from cuvee.training.settings import TrainerSettings

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def complaint(content: dict[str, Any], kind: type[RunConfig] = TrainConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(kind, {"corpus": "corpus", **content}, "mine.yaml")
    return str(caught.value)


def test_a_file_with_overrides_becomes_settings(tmp_path: Path) -> None:
    text = (
        "corpus: corpora/mine\nmethod: {name: odm, smoothing: 0.8}\n"
        "train: {tokens: 2_000_000, learning_rate: 1e-3}\n"
    )
    overrides = [
        "train.learning_rate=3e-3",
        "seed=4",
        "guard.floor=0.01",
        "train.betas=[0.9, 0.99]",
    ]
    config = load(TrainConfig, written(tmp_path, text), overrides)
    assert config.corpus == Path("corpora/mine")
    assert config.train.tokens == 2_000_000
    assert config.train.learning_rate == 0.003
    assert config.train.betas == (0.9, 0.99)
    assert (config.seed, config.guard.floor, config.name, config.label) == (4, 0.01, "mine", "odm")
    assert config.method.options == {"smoothing": 0.8}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
        (
            {"train": {"leaning_rate": 1}},
            "unknown key 'leaning_rate' in train; did you mean 'learning_rate'?",
        ),
        ({"guard": {"flor": 0.1}}, "unknown key 'flor' in guard; did you mean 'floor'?"),
        ({"method": "omd"}, "no method 'omd'; did you mean 'odm'?"),
        (
            {"method": {"name": "odm", "smothing": 1}},
            "unknown key 'smothing' in odm; did you mean 'smoothing'?",
        ),
        (
            {"method": {"name": "odm", "smoothing": 2}},
            "smoothing is 2.0: it must be at least 0 and below 1",
        ),
        ({"method": {"smoothing": 0.1}}, "method.name is missing"),
        ({"method": {"name": "given", "weights": {"web": "much"}}}, "given.weights.web is 'much'"),
        ({"train": {"learning_rate": -1}}, "learning_rate is -1.0: it must be greater than 0"),
        ({"train": {"steps": 3.5}}, "train.steps is 3.5: it must be a valid integer"),
        ({"train": {"schedule": "cos"}}, "train.schedule is 'cos': it must be 'cosine' or 'wsd'"),
        ({"train": 7}, "train is 7: it must be a section"),
        (
            {"train": {"seed": 1}},
            "unknown key 'seed' in train; the seed of a run is `seed`, beside `train`",
        ),
        ({"seed": -1}, "seed is -1: it must be greater than or equal to 0"),
        ({"name": "a b"}, "name is 'a b': it must be 1 to 64 letters"),
        ({"corpus": None}, "corpus is None: it must be a path"),
        (
            {"method": "odm", "policy": "policy"},
            "both method (odm) and policy (policy) are given; keep one",
        ),
        ({"policy": 7}, "policy is 7: it must be a policy's folder"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(content: dict[str, Any], said: str) -> None:
    assert f"mine.yaml: {said}" in complaint(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "methods is missing"),
        ({"methods": []}, "methods is []: it must have at least 1"),
        ({"methods": "odm"}, "methods is 'odm': it must be a list"),
        (
            {"methods": ["odm", "odm"]},
            "two methods are called 'odm'; tell them apart with `label: …`",
        ),
        ({"methods": ["odm", {"name": "omd"}]}, "no method 'omd'; did you mean 'odm'?"),
        (
            {"methods": ["odm"], "baseline": "natural"},
            "baseline is 'natural', which is not in methods",
        ),
        ({"methods": ["odm"], "seeds": [1, 1]}, "seeds are [1, 1]: each may be given once"),
        ({"methods": ["odm"], "seed": 1}, "unknown key 'seed'; did you mean 'seeds'?"),
        (
            {"methods": [7]},
            "methods.0 is 7: it must be the name of a method or a section with `name: …`",
        ),
        ({"methods": [{"smoothing": 1}]}, "methods.0.name is missing"),
        ({"methods": ["odm", {"policy": 7}]}, "methods.1.policy is 7: it must be a path"),
        (
            {"methods": [{"policy": "p", "lable": "x"}]},
            "unknown key 'lable' in methods.0; did you mean 'label'?",
        ),
        (
            {"methods": [{"policy": "p", "name": "odm"}]},
            "both a method (odm) and a policy (p) are given; keep one",
        ),
        (
            {"methods": ["odm", {"policy": "odm/policy"}]},
            "two methods are called 'odm'; tell them apart",
        ),
    ],
)
def test_what_is_wrong_with_a_comparison_is_named(content: dict[str, Any], said: str) -> None:
    assert f"mine.yaml: {said}" in complaint(content, CompareConfig)


def test_every_wrong_key_is_named_at_once() -> None:
    said = complaint({"train": {"steps": "x", "warmpu": 1}, "seed": "y"})
    assert all(word in said for word in ("train.steps is 'x'", "'warmpu'", "seed is 'y'"))


def test_a_comparison_is_methods_by_seeds_over_the_same_settings() -> None:
    fast = {"name": "odm", "smoothing": 0.5, "label": "odm-fast"}
    content = {
        "corpus": "c",
        "methods": ["natural", "odm", fast],
        "seeds": [3, 5],
        "train": {"steps": 7},
        "name": "mine",
    }
    comparison = parse(CompareConfig, content, "mine.yaml")
    runs = comparison.runs()
    assert [(run.seed, run.label) for run in runs] == [
        (seed, label) for seed in (3, 5) for label in ("natural", "odm", "odm-fast")
    ]
    assert {run.train for run in runs} == {comparison.train}
    assert comparison.baseline_label == "natural"


def test_the_run_id_follows_what_is_computed_and_nothing_else() -> None:
    def run_id(fingerprint: str = "f" * 64, **content: Any) -> str:
        return parse(TrainConfig, {"corpus": "c", "name": "mine", **content}, "").run_id(
            fingerprint
        )

    same = run_id()
    assert same.startswith("mine-natural-s0-")
    assert run_id(corpus="elsewhere", out="there", store="other.db", method="natural") == same
    assert run_id(trackers=["tensorboard"]) == same
    assert run_id(train={"steps": 1000}) == same, "a default that is written out changes nothing"
    different = {
        run_id("e" * 64),
        run_id(seed=1),
        run_id(train={"steps": 999}),
        run_id(method="odm"),
        run_id(model="llama-1m"),
    }
    assert len(different | {same}) == 6
    assert len(run_id(name="n" * 64)) <= 64


def test_trackers_are_known_installed_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no 'tensorbord'; did you mean 'tensorboard'?" in complaint({"trackers": ["tensorbord"]})
    assert "each may be given once" in complaint({"trackers": ["tensorboard", "tensorboard"]})
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install 'mlflow-skinny" in complaint({"trackers": ["tensorboard"]})


def test_the_run_id_follows_what_is_in_a_policy_and_not_where_it_lies(tmp_path: Path) -> None:
    def steered_by(folder: Path, content: str) -> TrainConfig:
        folder.mkdir(parents=True)
        (folder / "hashes.json").write_text(content)
        return parse(TrainConfig, {"corpus": "c", "policy": str(folder)}, "mine.yaml")

    first = steered_by(tmp_path / "a" / "learned" / "policy", "one")
    assert first.label == "learned"
    assert steered_by(tmp_path / "b" / "learned", "one").run_id("f") == first.run_id("f")
    assert steered_by(tmp_path / "c" / "learned", "two").run_id("f") != first.run_id("f")
    with pytest.raises(PolicyError, match="holds no policy"):
        parse(TrainConfig, {"corpus": "c", "policy": str(tmp_path)}, "mine.yaml").run_id("f")


def test_the_run_id_follows_what_is_in_a_base_model_and_not_where_it_lies(tmp_path: Path) -> None:
    def continued_from(folder: Path, weights: str) -> TrainConfig:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(weights)
        return parse(TrainConfig, {"corpus": "c", "model": str(folder)}, "mine.yaml")

    first = continued_from(tmp_path / "a" / "base" / "model", "one")
    assert first.identity("f")["model"] == "base"
    assert continued_from(tmp_path / "b" / "base", "one").run_id("f") == first.run_id("f")
    assert continued_from(tmp_path / "c" / "base", "two").run_id("f") != first.run_id("f")
    before = first.run_id("f")
    (tmp_path / "a" / "base" / "model" / "model.safetensors").write_text("three")
    assert first.run_id("f") != before, "trained again in the same place"


def test_a_proxy_is_bound_to_the_content_of_its_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file({"w": np.zeros(2)}, tmp_path / "base" / "model.safetensors")
    search = parse(SearchConfig, {"corpus": "c", "model": "base", "method": "natural"}, "mine.yaml")
    first = search.proxy("f")
    assert first["model"] == str(tmp_path / "base"), (
        "a worker elsewhere has another working directory"
    )
    save_file({"w": np.ones(2)}, tmp_path / "base" / "model.safetensors")
    assert search.proxy("f")["model_sha256"] != first["model_sha256"]
    assert "model_sha256" not in parse(
        SearchConfig, {"corpus": "c", "method": "natural"}, ""
    ).proxy("f")


def test_proxies_that_differ_in_their_policies_alone_are_one_group() -> None:
    content = {"corpus": "c", "method": "natural", "name": "mine"}

    def group(fingerprint: str = "f", **changed: Any) -> str:
        return parse(SearchConfig, {**content, **changed}, "").group(fingerprint)

    same = [
        group(guard={"floor": 0.1}),
        group(max_failed_ratio=0.5),
        group(method={"name": "natural"}),
        group(out="there"),
    ]
    assert set(same) == {group()}
    others = [
        group("g"),
        group(seed=1),
        group(train={"steps": 7}),
        group(model="llama-1m"),
        group(method="uniform"),
    ]
    assert len({group(), *others}) == 6
    long = group(name="n" * 64, method={"name": "natural", "label": "m" * 64}, seed=2**63 - 1)
    assert len(long) + len("/scoring_sampler") <= 200, "what a store takes as a name"


def saved(folder: Path, provenance: dict[str, Any]) -> Path:
    save_policy(folder, Fixed(Mixture.uniform(["a", "b"])), provenance)
    return folder


def test_a_saved_policy_is_compared_like_a_method(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "search" / "policy", {"proxies": {"tokens": 5, "flops": 1e9, "seconds": 2.5}}
    )
    chosen = {"policy": str(folder), "label": "learned"}
    content = {
        "corpus": "c",
        "name": "mine",
        "methods": ["odm", chosen],
        "seeds": [3, 4],
        "baseline": "odm",
    }
    runs = parse(CompareConfig, content, "").runs()
    assert [run.label for run in runs] == ["odm", "learned"] * 2
    assert [run.policy and run.policy.proxies for run in runs[:2]] == [None, Cost(5, 1e9, 2.5)]
    alone = parse(TrainConfig, {"corpus": "c", "name": "mine", "seed": 4, "policy": chosen}, "")
    assert alone.run_id("f") == runs[3].run_id("f") != runs[1].run_id("f")
    assert parse(TrainConfig, {"corpus": "c", "policy": str(folder)}, "").label == "search"


def test_what_a_policy_cost_is_read_from_its_file_if_that_says_it(tmp_path: Path) -> None:
    def proxies(**provenance: Any) -> Cost | None:
        return PolicyChoice(policy=saved(tmp_path / "policy", provenance)).proxies

    assert proxies() is None
    with pytest.raises(PolicyError, match=r"has the cost .* not valid"):
        proxies(proxies={"tokens": 3})


def test_yaml_reads_numbers_as_everybody_writes_them() -> None:
    assert parse_yaml("[1e-3, 1.5e3, -2E+2, 2_000, 1e6, 0.5, e3, 1e, 1e5a]", "") == [
        0.001,
        1500.0,
        -200.0,
        2000,
        1e6,
        0.5,
        "e3",
        "1e",
        "1e5a",
    ]


def test_overrides_make_the_sections_they_need() -> None:
    content: dict[str, Any] = {"guard": None}
    override(content, ["guard.floor=0.1", "train.steps=5", "method={name: odm}", "policy="])
    assert content == {
        "guard": {"floor": 0.1},
        "train": {"steps": 5},
        "method": {"name": "odm"},
        "policy": None,
    }


WORDS = ("no", "on", "off", "yes", "y", "2019", "1e5", "1.50", "0x1f", "007", "2019-01-01")


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_yaml_is_a_name_where_a_name_is_meant(word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    method = f"{{name: given, label: {word}, weights: {{{word}: 0.5, web: 0.5}}}}"
    path.write_text(f"corpus: c\nname: {word}\nobjective: {{{word}: 1}}\nmethod: {method}\n")
    written = load(TrainConfig, path)
    path.write_text("corpus: c\nmethod: {name: given, weights: {web: 0.5}}\n")
    typed = [f"name={word}", f"objective={{{word}: 1}}", f"method.label={word}"]
    by_hand = load(TrainConfig, path, [*typed, f'method.weights."{word}"=0.5'])
    for config in (written, by_hand):
        assert config.name == config.method.label == word
        assert config.objective == {word: 1.0}
        assert set(config.method.options["weights"]) == {word, "web"}
        assert config.run_id("f").startswith(f"{word}-{word}-s0-")


def test_words_that_stand_for_true_and_false_still_do() -> None:
    for word, value in (("true", True), ("False", False), ("on", True), ("no", False)):
        guard = parse(TrainConfig, {"corpus": "c", "guard": parse_yaml(f"shadow: {word}", "")}, "")
        assert guard.guard.shadow is value
    assert parse_yaml("[true, False, no]", "") == [True, False, "no"]


@pytest.mark.parametrize(
    "assignment",
    ["objective.law.v1=2", "guard.floor.law.v1=2", "method.weights.law.v1=2", "model.a.b=2",
     'objective."law.v1"=2', "guard.fallback.'law.v1'=2", "train.known.v1=2"],
)  # fmt: skip
def test_names_with_dots_are_keys_on_the_command_line(assignment: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"method": {"name": "given"}, "train": {"known.v1": 1}}
    override(content, [assignment], _sections_by_name(TrainConfig, content))
    path = re.sub("[\"']", "", assignment.partition("=")[0]).split(".")
    found: Any = content
    for key in path if path[0] == "model" else [*path[:-2], ".".join(path[-2:])]:
        found = found[key]
    assert found == 2


def test_a_name_with_dots_that_was_split_is_named_with_the_remedy() -> None:
    content = {"method": {"name": "given", "weights": {"law": {"v1": 1}}}}
    with pytest.raises(ConfigError, match=r'write a name with dots in quotes: "law\.v1"'):
        parse(TrainConfig, {"corpus": "c", **content}, "here")


@pytest.mark.parametrize(
    "assignment", ["train", "=3", "train..steps=3", "method.smoothing=0.5", "seed=[1"]
)
def test_a_wrong_override_is_named(assignment: str) -> None:
    with pytest.raises(ConfigError):
        override({"method": "odm"}, [assignment])


def bomb() -> str:
    return "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(), "expands to more than"),
        ("a: &a [*a]", "points to something that contains it"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("seed: 1\nseed: 2", "line 2: the key 'seed' is given twice"),
        ("a: [1", "line 1, column"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: \0", "not readable as YAML"),
        ("a: 1" + ":59" * 100_000, "has a value of 300,001 characters"),
        ("- 1", "contains a list"),
        ("word", "contains text"),
        ('out: "a\\0b"', r"line 1: 'a\x00b' contains NUL or half of a character"),
        ('seed: 1\n"a\\ud800b": 1', r"line 2: 'a\ud800b' contains NUL or half of a character"),
        (" " * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        read_yaml(written(tmp_path, text))
    assert said in str(caught.value)


def test_a_character_that_json_writes_as_two_escapes_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, r'{"name": "\ud83d\ude80", "\ud83d\ude80": 1}')
    assert read_yaml(path) == {"name": "\U0001f680", "\U0001f680": 1}


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot read the configuration .*none\.yaml: No such file"
    ):
        read_yaml(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_yaml(binary)


def test_the_documentation_names_every_key_and_no_other() -> None:
    sections = (ROOT / "docs" / "configuration.md").read_text().split("\n## ")
    documented = {
        text.splitlines()[0].strip("`"): re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
        for text in sections
    }
    common = list(RunConfig.model_fields)
    assert sorted(documented["Every command"]) == sorted(common)
    assert documented["cuvee train"] == [
        name for name in TrainConfig.model_fields if name not in common
    ]
    assert documented["cuvee compare"] == [
        name for name in CompareConfig.model_fields if name not in common
    ]
    assert documented["cuvee search"] == [
        name for name in SearchConfig.model_fields if name not in common
    ]
    assert documented["evaluation"] == ["general", "share"], "general and target share a row"
    assert documented["train"] == [
        field.name
        for field in dataclasses.fields(TrainerSettings)
        if field.name not in ("seed", "order_seed")
    ]
    assert documented["guard"] == [field.name for field in dataclasses.fields(Limits)]


def test_a_file_for_another_command_says_which(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("corpus: nowhere\nmethods: [natural, odm]\n")
    with pytest.raises(ConfigError, match="lists `methods`, so it is for `cuvee compare"):
        load(TrainConfig, path)
    path.write_text("corpus: nowhere\nmethod: odm\n")
    with pytest.raises(ConfigError, match="one method or policy, so it is for `cuvee train"):
        load(CompareConfig, path)


def test_a_policy_of_the_command_line_replaces_the_method_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("corpus: nowhere\nmethod: odm\n")
    assert load(TrainConfig, path, ["policy=universal"]).policy is not None
    path.write_text("corpus: nowhere\npolicy: universal\n")
    assert load(TrainConfig, path, ["method=odm"]).policy is None
    with pytest.raises(ConfigError, match="both method"):
        load(TrainConfig, path, ["method=odm", "policy=universal"])


def test_crossed_seeds_are_all_combinations_numbered_so_that_methods_pair() -> None:
    content = {"corpus": "c", "methods": ["natural", "odm"], "seeds": [3, 5]}
    config = parse(CompareConfig, {**content, "crossed": ["weights", "agent"]}, "mine.yaml")
    runs = config.runs()
    assert [run.seed for run in runs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [run.part_seeds for run in runs[::2]] == [
        {"weights": 3, "order": 3, "agent": 3},
        {"weights": 3, "order": 3, "agent": 5},
        {"weights": 5, "order": 3, "agent": 3},
        {"weights": 5, "order": 3, "agent": 5},
    ]
    assert runs[2].seed_of("agent") == 5
    assert len({run.run_id("f") for run in runs}) == 8
    plain = parse(CompareConfig, content, "mine.yaml")
    assert plain.group("f") != config.group("f")
    assert "part_seeds" not in plain.runs()[0].identity("f"), "ids of other runs stay"


def test_crossed_seeds_that_cannot_be_meant_are_refused() -> None:
    common = {"methods": ["natural"], "crossed": ["order"]}
    assert "one seed, 0: give two or more" in complaint(common, CompareConfig)
    assert "crossed" in complaint({**common, "seeds": [0, 1], "crossed": ["luck"]}, CompareConfig)
    twice = {**common, "seeds": [0, 1], "crossed": ["order", "order"]}
    assert "each part may be given once" in complaint(twice, CompareConfig)
    assert "part_seeds" in complaint({"train": {"order_seed": 1}})


@pytest.mark.parametrize(
    ("text", "value"),
    [("0100", 100), ("010", 10), ("089", 89), ("1_000", 1000), ("0x10", 16), ("0o17", 15),
     ("0b101", 5), ("-07", -7), ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("0", 0), ("0x_", "0x_"), ("0b_", "0b_")],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """YAML 1.1 reads 0100 as 64 and 1:30 as 90: a run would have other steps without a word."""
    found = parse_yaml(f"steps: {text}", "here")["steps"]
    assert found == value
    assert str(found) == text
