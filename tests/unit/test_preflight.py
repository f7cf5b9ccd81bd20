"""What the end of a search or run needs is checked at its beginning."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import cuvee.recipes.train as train_module
from cuvee import loop
from cuvee.core.errors import ConfigError, CuveeError, PolicyError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.store.claim import ClaimLost
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import worker_name
from cuvee.policies.files import save_policy
from cuvee.policies.fixed import Fixed
from cuvee.probes.token_losses import ValidTokenLosses
from cuvee.recipes.build import record_of
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, TrainConfig, parse
from cuvee.recipes.preflight import check_same_search, check_writable
from cuvee.recipes.search import (
    SearchConfig,
    learn,
    logged_runs,
    plan,
    provenance_of,
    run_proxies,
    search,
)
from cuvee.recipes.train import refuse_changed, train
from cuvee.testing.runs import example_run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("web", "code"):
        lines = [json.dumps({"text": f"{name} {i} some words of text"}) for i in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def corpora(text: Path) -> dict[str, Path]:
    """One corpus with a validation split, one without."""
    made = {}
    for name, share in (("whole", 0.3), ("unvalidated", 0.0)):
        made[name] = text.parent / f"corpus-{name}"
        build([text], made[name], BuildSettings(vocab_size=300, valid_share=share), workers=1)
    return made


def config(corpus: Path, place: Path, method: dict[str, Any], **more: Any) -> SearchConfig:
    train = {
        "steps": 6,
        "batch_size": 2,
        "sequence_length": 16,
        "interval": 3,
        "validation_tokens": 64,
    }
    train |= more.pop("train", {})
    content = {"corpus": str(corpus), "model": "llama-0.1m", "train": train, "method": method,
               "store": str(place / "s.db"), "out": str(place / "out"), **more}  # fmt: skip
    return parse(SearchConfig, content, "here")


REGMIX = {"name": "regmix", "proxies": 8, "fit": "log_linear"}


@pytest.mark.parametrize(
    ("corpus", "method", "train"),
    [
        ("unvalidated", REGMIX, {}),
        ("whole", REGMIX, {"validation_tokens": 0}),
        ("unvalidated", {**REGMIX, "objective": {"code": 1.0}}, {}),
        ("whole", {**REGMIX, "objective": {"nowhere": 1.0}}, {}),
        ("whole", {**REGMIX, "objective": "source_target"}, {}),
        ("whole", {**REGMIX, "tokens": 10**12, "epoch_cap": 1.0}, {}),
        ("unvalidated", {"name": "doremi"}, {}),
        ("whole", {"name": "doremi"}, {"validation_tokens": 0}),
    ],
)
def test_a_search_that_could_not_commit_is_refused_before_its_first_proxy(
    corpora: dict[str, Path],
    tmp_path: Path,
    corpus: str,
    method: dict[str, Any],
    train: dict[str, Any],
) -> None:
    asked = config(corpora[corpus], tmp_path, method, train=train)
    for begin in (plan, search, run_proxies):
        with pytest.raises((PolicyError, ConfigError)):
            begin(asked)
    assert not (tmp_path / "s.db").exists()


GAINS = [
    {"name": "gain"},
    {"name": "agent"},
    {"name": "agent", "mode": "proxy"},
    {"name": "agent", "reward": "alignment", "mode": "proxy"},
    {"name": "hds"},
    {"name": "hds", "mode": "proxy"},
    {"name": "ac_odm"},
    {"name": "ac_odm", "mode": "proxy"},
    {"name": "agent", "mode": "proxy", "objective": {"code": 1.0}},
]


@pytest.mark.parametrize("method", GAINS)
@pytest.mark.parametrize("corpus", ["unvalidated", "short"])
def test_a_method_that_measures_on_validation_text_is_refused_without_it(
    corpora: dict[str, Path], tmp_path: Path, method: dict[str, Any], corpus: str
) -> None:
    """A row is longer than the validation text of any domain in the corpus `short`."""
    length = 1024 if corpus == "short" else 16
    place = corpora["whole" if corpus == "short" else corpus]
    model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 32, "max_position_embeddings": 2048}  # fmt: skip
    settings = {"sequence_length": length}
    asked = config(place, tmp_path, method, train=settings, model={"model_type": "llama", **model})
    for begin in (plan, search, run_proxies):
        with pytest.raises(ConfigError, match=f"row of {length} tokens of validation text"):
            begin(asked)
    if method.get("mode") != "proxy":
        content = asked.model_dump(mode="json", include=set(TrainConfig.model_fields))
        with pytest.raises(ConfigError, match=f"row of {length} tokens of validation text"):
            train(parse(TrainConfig, content, "here"))
    assert not (tmp_path / "s.db").exists()


def test_token_losses_are_refused_without_text_as_at_the_first_interval() -> None:
    probe = ValidTokenLosses()
    probe.check({"web": 2, "code": 0}, 16)
    with pytest.raises(ConfigError, match="no validation text of web, code"):
        probe.check({"web": 1, "code": 0}, 16)
    with pytest.raises(ConfigError, match="no validation text of code"):
        ValidTokenLosses(["code"]).check({"web": 2, "code": 1}, 16)


def test_a_plan_without_proxies_is_refused_as_the_search_would_be(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    for job in (plan, search):
        with pytest.raises(CuveeError, match="every weight is zero"):
            job(config(corpora["whole"], tmp_path, {"name": "given"}))
    assert plan(config(corpora["whole"], tmp_path, {"name": "natural"})).runs == 0


def test_out_that_cannot_be_written_is_refused_at_the_start(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(ConfigError, match="cannot write"):
            check_writable(out)
        with pytest.raises(ConfigError, match="cannot write"):
            plan(config(corpora["whole"], tmp_path, {"name": "doremi"}, out=str(out)))
    check_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_search_does_not_overwrite_the_policy_of_another_of_its_name(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    asked = config(corpora["whole"], tmp_path, {"name": "doremi"})
    other = {
        "method": {"name": "regmix"},
        "corpus": Corpus.open(asked.corpus).fingerprint,
        "seed": 0,
    }
    save_policy(asked.out / asked.name / "policy", Fixed(Mixture.uniform(("web", "code"))), other)
    for begin in (search, run_proxies, plan):
        with pytest.raises(ConfigError, match="policy of another search, with another method"):
            begin(asked)


RUNS = [[[0.0, {"web": 1.0}]], [[0.0, {"code": 1.0}]]]
EVALUATION = {"general": ["g.jsonl"], "target": ["t.jsonl"]}


@pytest.mark.parametrize(
    ("method", "grown", "other", "named"),
    [
        (REGMIX, {"proxies": 9}, {"fit": "gaussian_process"}, r"method\.fit"),
        (REGMIX, {"proxies": 64}, {"objective": {"web": 1.0}}, r"method\.objective"),
        ({"name": "designed", "runs": RUNS[:1]}, {"runs": RUNS}, {"label": "x"}, r"method\.label"),
        (
            {"name": "data_mixing_agent", "evaluation": EVALUATION},
            {"proxies": 80},
            {"weight": 0.25},
            r"method\.weight",
        ),
        ({"name": "doremi"}, {}, {"step_size": 2.0}, r"method\.step_size"),
        ({"name": "mixmin"}, {}, {"tokens": 64}, r"method\.tokens"),
    ],
)
def test_a_search_may_grow_and_not_change(
    corpora: dict[str, Path],
    tmp_path: Path,
    method: dict[str, Any],
    grown: dict[str, Any],
    other: dict[str, Any],
    named: str,
) -> None:
    asked = config(corpora["whole"], tmp_path, method)
    folder = asked.out / asked.name / "policy"
    save_policy(folder, Fixed(Mixture.uniform(("web", "code"))), provenance_of(asked, "f"))
    check_same_search(
        folder, provenance_of(config(asked.corpus, tmp_path, {**method, **grown}), "f")
    )
    with pytest.raises(ConfigError, match=f"another search, with another {named}:"):
        check_same_search(
            folder, provenance_of(config(asked.corpus, tmp_path, {**method, **other}), "f")
        )
    for key, more in (
        ("seed", {"seed": 1}),
        ("objective", {"objective": {"web": 1.0}}),
        ("model", {"model": "pythia-0.1m"}),
        (r"train\.batch_size, train\.steps", {"train": {"batch_size": 4, "steps": 9}}),
        (r"guard\.epochs", {"guard": {"epochs": 2.0}}),
    ):
        with pytest.raises(ConfigError, match=f"another search, with another {key}:"):
            check_same_search(
                folder, provenance_of(config(asked.corpus, tmp_path, method, **more), "f")
            )


def test_reading_runs_and_learning_elsewhere_overwrite_nothing(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    asked = config(corpora["whole"], tmp_path, REGMIX)
    policy = Fixed(Mixture.uniform(("web", "code")))
    save_policy(asked.out / asked.name / "policy", policy, {"seed": 1})
    assert logged_runs(asked) == []
    with pytest.raises(ConfigError, match="another search, with another seed"):
        learn(asked)
    with pytest.raises(StoreError, match="run the proxies first"):
        learn(asked, tmp_path / "elsewhere")


def test_equal_runs_of_two_groups_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        policy = Fixed(Mixture.uniform(("web", "code")))
        first, second = (
            LocalFleet(store, print, {"a": 1}, group=name)  # type: ignore[arg-type]
            for name in ("one", "two")
        )
        ids = [first.plan(policy), second.plan(policy), first.plan(policy), second.plan(policy)]
        assert ids[0] == ids[2] != ids[1] == ids[3]
        assert [store.tally(name).open for name in ("one", "two")] == [1, 1]


def test_resume_with_another_setting_names_it(corpora: dict[str, Path], tmp_path: Path) -> None:
    corpus = Corpus.open(corpora["whole"])
    old = parse(TrainConfig, {"corpus": str(corpora["whole"]), "train": {"batch_size": 4}}, "here")
    new = parse(
        TrainConfig,
        {"corpus": str(corpora["whole"]), "train": {"batch_size": 8}, "seed": 3},
        "here",
    )
    with Store.open(tmp_path / "s.db") as store:
        refuse_changed(new, corpus, store)  # nothing was interrupted
        old_id = old.run_id(corpus.fingerprint)
        run_id = store.create("x", 0, record_of(old, corpus), run_id=old_id)
        claim = store.claim_run(run_id, worker_name())
        run = example_run("x", intervals=3)
        for number, signals in enumerate(run.trajectory.signals[:3]):
            claim.append(number, run.trajectory.mixtures[number - 1] if number else None, signals)
        with pytest.raises(
            ConfigError, match=rf"{run_id} was interrupted.*seed, train\.batch_size"
        ):
            refuse_changed(new, corpus, store)
        refuse_changed(replace_name(new), corpus, store)


def replace_name(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"name": "another"})


@pytest.mark.parametrize("gone", [4, 2, 0])
def test_a_run_whose_last_rows_are_gone_does_not_load_shorter(tmp_path: Path, gone: int) -> None:
    run = example_run("x", intervals=4)
    with Store.open(tmp_path / "s.db") as store:
        store.add("x", run)
        assert len(store.load(run.id).trajectory) == len(run.trajectory)
        assert len(store.trajectory(run.id, last=2)) == 2
    with closing(sqlite3.connect(tmp_path / "s.db")) as other:
        other.execute("delete from intervals where number >= ?", (gone,))
        other.commit()
    with Store.open(tmp_path / "s.db") as store:
        for read in (store.load, store.trajectory, store.metrics, store.intervals):
            with pytest.raises(StoreError, match="rows were deleted"):
                read(run.id)


def interrupt(store: Store, config: TrainConfig, corpus: Corpus) -> str:
    """Records three intervals of the run of `config`."""
    record = record_of(config, corpus)
    run_id = config.run_id(corpus.fingerprint)
    store.create(config.label, config.seed, record, run_id=run_id)
    claim = store.claim_run(run_id, "elsewhere", lease_seconds=1e-3)
    trajectory = example_run("x", intervals=3).trajectory
    for number, signals in enumerate(trajectory.signals[:3]):
        claim.append(number, trajectory.mixtures[number - 1] if number else None, signals)
    return run_id


def test_a_comparison_resumed_with_another_setting_names_it(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    def asked(**changed: Any) -> CompareConfig:
        content = {"corpus": str(corpora["whole"]), "model": "llama-0.1m", "seeds": [0, 1],
                   "methods": ["natural", "odm"], "store": str(tmp_path / "s.db"),
                   "out": str(tmp_path / "out"), "name": "mine",
                   "train": {"steps": 6, "interval": 3}, **changed}  # fmt: skip
        return parse(CompareConfig, content, "here")

    corpus = Corpus.open(corpora["whole"])
    with Store.open(tmp_path / "s.db") as store:
        begun = interrupt(store, asked().runs()[0], corpus)
        ids = [one.run_id(corpus.fingerprint) for one in asked(seeds=[0, 1, 2]).runs()]
        for changed, named in (
            ({"train": {"steps": 9, "interval": 3}}, r"train\.steps"),
            ({"guard": {"floor": 0.1}}, r"guard\.floor"),
            ({"objective": {"web": 1.0}}, "objective"),
        ):
            with pytest.raises(ConfigError, match=rf"{begun} was interrupted.* another {named}"):
                compare(asked(**changed), resume=True)
        for other in (
            asked(seeds=[0, 1, 2]),
            asked(methods=["natural", "odm", "uniform"]),
            asked(model="pythia-0.1m"),
            asked(name="another", train={"steps": 9, "interval": 3}),
            asked(seeds=[5]),
        ):
            for run in other.runs():
                if run.run_id(corpus.fingerprint) != begun:
                    refuse_changed(run, corpus, store, beside=ids)


def test_a_process_that_slept_before_its_export_writes_no_model(
    corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(corpora["whole"], tmp_path, {"name": "natural"})
    content = asked.model_dump(mode="json", include=set(TrainConfig.model_fields))

    def slept(*parts: Any) -> Any:
        done = loop.run(*parts)
        with closing(sqlite3.connect(tmp_path / "s.db")) as other:
            other.execute("UPDATE runs SET lease_expires = 0, attempt = attempt + 1")
            other.commit()
        return done

    monkeypatch.setattr(train_module, "run", slept)
    with pytest.raises(ClaimLost):
        train(parse(TrainConfig, content, "here"))
    (place,) = (tmp_path / "out").iterdir()
    assert {path.name for path in place.iterdir()} <= {"checkpoints", "tensorboard"}
