"""Files for trainers: each is read by the package that it is for, or checked against its
documented schema."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import numpy as np
import pytest
import yaml

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.methods.baselines.designed import Designed
from cuvee.methods.baselines.schedule import Schedule
from cuvee.policies.fixed import Fixed, Scheduled
from cuvee.recommend.plan import Plan, Stage
from cuvee.recommend.writers import FORMATS
from cuvee.recommend.writers.base import Target
from cuvee.recommend.writers.schedule import method
from cuvee.testing.runs import example_domains, example_run

FIRST, SECOND = (
    Mixture.of({"web": 0.7, "code": 0.3, "old": 0.0}),
    Mixture.of({"web": 0.2, "code": 0.75, "old": 0.05}),
)
ONE = Plan((Stage(0.0, 1.0, FIRST),), 10**9, {"web": 10**9, "code": 10**8, "old": 10**7})
TWO = Plan((Stage(0.0, 0.8, FIRST), Stage(0.8, 1.0, SECOND)), 10**9, ONE.available)
TARGET = Target(
    steps=1000,
    sequence_length=1024,
    paths={"web": "/data/web", "code": "/data/my code"},
    lengths={"web": 500.0, "code": 2000.0, "old": 500.0},
    samples={"web": 10_000, "code": 1_000, "old": 100},
)


def written(name: str, plan: Plan = TWO, target: Target = TARGET) -> dict[str, str]:
    return FORMATS[name].write(plan, target)


def by_samples(mixture: Mixture) -> list[float]:
    counts = {n: w / TARGET.lengths[n] for n, w in mixture.as_dict().items() if w > 0}
    return [count / sum(counts.values()) for count in counts.values()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["megatron", "nemo"])
def test_megatron_core_reads_the_blend(name: str) -> None:
    from megatron.core.datasets.utils import get_blend_from_list, normalize

    files = written(name)
    suffix = "json" if name == "megatron" else "yaml"
    text = files[f"{name}_stage2.{suffix}"]
    blend = (
        json.loads(text)["train"] if name == "megatron" else yaml.safe_load(text)["data"]["paths"]
    )
    paths, weights = get_blend_from_list(blend)
    assert paths == ["/data/web", "/data/my code", "old"]
    assert normalize(weights) == pytest.approx([0.2, 0.75, 0.05])
    first = json.loads(written("megatron")["megatron_stage1.json"])["train"]
    assert get_blend_from_list(first)[0] == ["/data/web", "/data/my code"]


def test_megatron_arguments_survive_a_shell() -> None:
    import shlex

    words = shlex.split(written("megatron", ONE)["megatron.args"])
    assert words == ["--data-path", "0.7", "/data/web", "0.3", "/data/my code"]


def test_torchtitan_stages_follow_its_documented_schema() -> None:
    stages = tomllib.loads(written("torchtitan")["torchtitan.toml"])["training"]["data_stages"]
    assert [stage["start_step"] for stage in stages] == [0, 800]
    assert stages[0]["end_step"] == stages[1]["start_step"]
    assert "end_step" not in stages[1]
    assert stages[1]["dataset_weights"] == [0.2, 0.75, 0.05]
    assert stages[1]["dataset_folders"] == ["/data/web", "/data/my code", "old"]
    with pytest.raises(ConfigError, match="give the run's --steps"):
        written("torchtitan", TWO, Target())


def test_torchtitan_paths_may_have_any_letter() -> None:
    text = written("torchtitan", ONE, Target(steps=10, paths={"web": '/data/😀 "web"'}))
    stage = tomllib.loads(text["torchtitan.toml"])["training"]["data_stages"][0]
    assert stage["dataset_folders"] == ['/data/😀 "web"', "code"]


def test_levanter_gets_stages_by_step_and_refuses_what_a_block_loses() -> None:
    data = yaml.safe_load(written("levanter")["levanter.yaml"])["data"]
    assert data["train_weights"] == [[0, FIRST.as_dict()], [800, SECOND.as_dict()]]
    one = yaml.safe_load(written("levanter", ONE)["levanter.yaml"])["data"]
    assert one["train_weights"] == FIRST.as_dict()
    tiny = Plan((Stage(0.0, 1.0, Mixture.of({"web": 0.9999, "code": 0.0001})),))
    with pytest.raises(
        ConfigError, match=r"0\.0001, is 0\.205 of the 2,048 samples of a mixture block"
    ):
        written("levanter", tiny, Target())


def test_olmo_core_sources_are_valid() -> None:
    content = yaml.safe_load(written("olmo_core")["olmo_core_stage2.yaml"])
    ratios = [source["target_ratio"] for source in content["sources"]]
    assert sum(ratios) == pytest.approx(1.0)
    assert all(source["paths"] and 0 < source["target_ratio"] <= 1 for source in content["sources"])
    # 0.75 of a fifth of 10⁹ tokens out of 10⁸: one and a half epochs.
    assert [source["max_repetition_ratio"] for source in content["sources"]] == [1.0, 1.5, 1.0]
    source_mixture = pytest.importorskip("olmo_core.data.source_mixture")
    found = [source_mixture.SourceMixtureConfig(**source) for source in content["sources"]]
    source_mixture.SourceMixtureList(found).validate()


def test_axolotl_fractions_give_the_mixture_without_repetition() -> None:
    content = yaml.safe_load(written("axolotl", ONE)["axolotl.yaml"])
    fractions = [entry["weight"] for entry in content["datasets"]]
    assert max(fractions) <= 1.0
    kept = np.array(fractions) * [10_000, 1_000]
    assert kept / kept.sum() == pytest.approx(by_samples(FIRST))
    with pytest.raises(ConfigError, match="give --samples"):
        written("axolotl", ONE, Target())


def test_llama_factory_reads_the_probabilities() -> None:
    content = yaml.safe_load(written("llama_factory")["llama_factory_stage1.yaml"])
    assert content["dataset"] == "/data/web,/data/my code"
    assert content["mix_strategy"] in ("interleave_under", "interleave_over", "interleave_once")
    probabilities = [float(part) for part in content["interleave_probs"].split(",")]
    assert probabilities == pytest.approx(by_samples(FIRST))
    with pytest.raises(ConfigError, match="splits datasets at commas"):
        written("llama_factory", ONE, Target(paths={"web": "a,b"}))


def test_trl_reads_the_fractions() -> None:
    content = yaml.safe_load(written("trl", ONE)["trl.yaml"])
    assert [entry["path"] for entry in content["datasets"]] == ["/data/web", "/data/my code"]
    assert [entry["fraction"] for entry in content["datasets"]] == pytest.approx(by_samples(FIRST))


def test_datasets_interleaves_in_these_proportions() -> None:
    datasets = pytest.importorskip("datasets")
    content = json.loads(written("hf_datasets", ONE)["hf_datasets.json"])
    assert content["datasets"] == ["/data/web", "/data/my code"]
    parts = [datasets.Dataset.from_dict({"of": [name] * 4000}) for name in content["datasets"]]
    drawn = datasets.interleave_datasets(parts, **content["arguments"])["of"][:4000]
    assert drawn.count("/data/web") / 4000 == pytest.approx(by_samples(FIRST)[0], abs=0.02)


def test_cuvee_trains_the_schedule() -> None:
    content = yaml.safe_load(written("schedule")["schedule.yaml"])["method"]
    assert content.pop("name") == "schedule"

    class Space:
        domains = tuple(Domain(name, 1) for name in TWO.domains)

    policy = Schedule(**content).commit(Space(), ())
    assert isinstance(policy, Scheduled)
    assert policy.at(0.79, TWO.domains).as_dict() == pytest.approx(FIRST.as_dict())
    assert policy.at(0.8, TWO.domains).as_dict() == pytest.approx(SECOND.as_dict())
    assert method(ONE) == {"name": "given", "weights": FIRST.as_dict()}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_writes_one_stage_and_two(name: str) -> None:
    assert written(name, ONE)
    assert all(text.endswith("\n") for text in written(name, TWO).values())


@pytest.mark.parametrize("name", ["megatron", "nemo", "trl", "hf_datasets", "olmo_core"])
def test_a_weight_that_rounds_to_no_sample_is_refused_with_the_number(name: str) -> None:
    tiny = Plan((Stage(0.0, 1.0, Mixture.of({"web": 0.99999, "code": 0.00001})),), 10**7)
    target = Target(sequence_length=1000, lengths={"web": 1000.0, "code": 1000.0})
    if FORMATS[name].unit == "tokens":
        target = Target(sequence_length=1000)
    with pytest.raises(ConfigError, match=r"code, 1e-05, is 0\.1 of the .* rounds to none"):
        written(name, tiny, target)
    few = Plan(ONE.stages, 1500)
    with pytest.raises(ConfigError, match="1 samples for 2 domains"):
        written(name, few, target)


def test_designed_runs_are_proposed_until_they_are_done() -> None:
    domains = example_domains(2, 0)
    run = example_run("odm", domains=domains, intervals=1)
    names = tuple(domain.name for domain in domains)
    done = run.trajectory.mixtures[0].as_dict()
    method_ = Designed([[(0.0, done)], [(0.0, {names[0]: 1.0})]])

    class Space:
        pass

    space: Any = Space()
    space.domains = domains
    assert len(method_.propose(space, ())) == 2
    assert len(method_.propose(space, [run])) == 1
    assert isinstance(method_.commit(space, [run]), Fixed)
    with pytest.raises(ConfigError, match="runs name wiki"):
        Designed([[(0.0, {"wiki": 1.0})]]).propose(space, ())
    with pytest.raises(ConfigError, match="runs is empty"):
        Designed([])
