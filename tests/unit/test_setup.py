"""`doctor`, `init`, `validate`, `questions` and `--dry-run`: what comes before a run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cuvee.cli
from cuvee.core.errors import ConfigError, CorpusError, CuveeError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Cost
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.probes.questions import read_questions
from cuvee.recipes.config.schema import CompareConfig, load
from cuvee.recipes.config.yaml_file import parse_yaml, quoted
from cuvee.recipes.progress.timing import validated_seconds
from cuvee.recipes.setup.doctor import examine
from cuvee.recipes.setup.estimate import epochs_read, estimate
from cuvee.recipes.setup.init import choose_sizes, read_budget, write_config
from cuvee.recipes.setup.questions import write_questions
from cuvee.recipes.setup.validate import validate
from stdlib_corpus import stdlib_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("setup"), targets=("mail",))


@pytest.fixture
def written(corpus: Corpus, tmp_path: Path) -> Path:
    write_config(corpus.folder, tmp_path / "mine.yaml", "90s")
    return tmp_path / "mine.yaml"


# init


def test_init_writes_a_configuration_that_validates(written: Path) -> None:
    valid = validate(written, ["train.tokens=20_000"])
    assert valid.command == "compare"
    assert [method.label for method in load(CompareConfig, written).methods] == [
        "natural", "uniform", "gain"
    ]  # fmt: skip
    assert load(CompareConfig, written).objective == {"mail": 1.0}


def test_init_proposes_methods_for_a_scarce_target_and_none_without_a_target(
    corpus: Corpus, tmp_path: Path
) -> None:
    def proposed(targets: tuple[str, ...], texts: dict[str, int], times: int = 1) -> list[str]:
        (raw := tmp_path / "-".join([*targets, "raw", str(times)])).mkdir()
        for name, documents in texts.items():
            rows = (
                json.dumps({"text": f"{name} has a document {i} " * times})
                for i in range(documents)
            )
            (raw / f"{name}.jsonl").write_text("\n".join(rows))
        settings = BuildSettings(vocab_size=300, targets=targets, valid_share=0.2)
        build([raw], raw / "corpus", settings, workers=1)
        sizes = write_config(raw / "corpus", raw / "c.yaml")
        methods = [choice.label for choice in load(CompareConfig, raw / "c.yaml").methods]
        assert sizes.runs == len(methods)
        assert validate(raw / "c.yaml").remarks == ()
        return methods

    little = {"law": 40, "web": 1000, "code": 1000}
    assert proposed(("law",), little, times=20) == ["natural", "uniform", "even", "gain"]
    # Less validation text than a row: `gain` could not measure on it.
    assert proposed(("law",), little) == ["natural", "uniform", "even", "late"]
    assert proposed((), little) == ["natural", "uniform", "odm"]


def test_init_keeps_an_existing_file(corpus: Corpus, written: Path) -> None:
    before = written.read_text()
    with pytest.raises(ConfigError, match="exists"):
        write_config(corpus.folder, written)
    assert written.read_text() == before


def test_a_larger_budget_never_gives_fewer_tokens_or_a_smaller_model(corpus: Corpus) -> None:
    sizes = [choose_sizes(corpus, seconds) for seconds in (10, 60, 600, 6000)]
    assert [one.tokens for one in sizes] == sorted(one.tokens for one in sizes)
    read = sum(domain.tokens for domain in corpus.domains)
    assert max(one.tokens for one in sizes) <= 4 * read


@pytest.mark.parametrize("text", ["10", "m", "0m", "-3s", "1d", "ten minutes", ""])
def test_a_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write a time"):
        read_budget(text)


def test_budgets_are_read_in_seconds() -> None:
    assert [read_budget(text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]


@pytest.mark.parametrize(
    "name", ["web", "no", "2019", "1e5", "on", "null", "a: b", "naïve", "[x]", "~", "a#b", "x y"]
)
def test_quoted_names_read_as_the_same_text(name: str) -> None:
    assert parse_yaml(f"{quoted(name)}: 1", "here") == {name: 1}


# validate


def test_a_run_of_four_epochs_is_no_remark_because_its_last_batch_is_whole(
    corpus: Corpus, written: Path
) -> None:
    most = 4 * sum(domain.tokens for domain in corpus.domains)
    sizes = ["train.batch_size=16", "train.sequence_length=256"]
    said = [
        "\n".join(validate(written, [*sizes, f"train.tokens={tokens}"]).remarks)
        for tokens in (most, most + 3 * 16 * 256)
    ]
    assert "read the whole corpus" not in said[0]
    assert "read the whole corpus" in said[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("methods=[natrual]", "natural"),
        ("guard.floor=0.9", "floor"),
        ("objective={web: 1}", "objective names web"),
        ("corpus=nowhere", "no corpus folder"),
        ("model=someone/tiny", "hf download someone/tiny --local-dir FOLDER"),
        ("model=gpt2", "the presets, which are untrained, are llama-0.1m"),
        ("train.steps=few", r"mine.yaml with train.steps=few: train.steps is 'few'"),
        ("train.tokns=3", "tokens"),
    ],
)
def test_validate_raises_what_the_command_would_raise(
    written: Path, override: str, said: str
) -> None:
    with pytest.raises(CuveeError, match=said):
        validate(written, [override])


@pytest.mark.parametrize(
    ("lines", "command"),
    [
        ("method: odm", "train"),
        ("method: {name: ac_odm, mode: proxy}\nobjective: {mail: 1}", "search"),
        ("method: {name: regmix, proxies: 8, fit: log_linear}", "search"),
        ("method: odm\nmax_attempts: 2", "search"),
        ("methods: [natural, odm]", "compare"),
    ],
)
def test_validate_finds_the_command(
    corpus: Corpus, tmp_path: Path, lines: str, command: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"corpus: {corpus.folder}\ntrain: {{steps: 40}}\n{lines}\n")
    valid = validate(path)
    assert (valid.command, valid.remarks) == (command, ())


def test_validate_remarks_on_what_is_probably_not_meant(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"text": f"number {i} of some text"}) for i in range(40))
    (tmp_path / "only.jsonl").write_text(rows)
    settings = BuildSettings(vocab_size=300, valid_share=0, test_share=0)
    build([tmp_path / "only.jsonl"], tmp_path / "corpus", settings, workers=1)
    (tmp_path / "c.yaml").write_text(f"corpus: {tmp_path / 'corpus'}\ntrain: {{steps: 50}}\n")
    one_domain, unvalidated, repeated = validate(tmp_path / "c.yaml").remarks
    assert "nothing to mix" in one_domain
    assert "no validation text" in unvalidated
    assert re.search(r"204,800 training tokens read the whole corpus \d", repeated)


@pytest.mark.parametrize("targets", [(), ("mail",)])
def test_validate_remarks_on_a_method_for_a_target_without_an_objective(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    corpus = stdlib_corpus(tmp_path, targets=targets)
    (tmp_path / "c.yaml").write_text(f"corpus: {corpus.folder}\ntrain: {{steps: 40}}\n")
    (remark,) = validate(tmp_path / "c.yaml", ["method=gain"]).remarks
    assert "all validated domains count alike" in remark
    assert ("has no target domain" in remark) is (not targets)
    example = "mail" if targets else corpus.names[0]
    assert f"'objective={{{example}: 1}}'" in remark
    assert validate(tmp_path / "c.yaml", ["method=gain", "objective={mail: 1}"]).remarks == ()
    assert validate(tmp_path / "c.yaml", ["method=natural"]).remarks == ()


def test_validate_remarks_on_odm_that_only_explores(written: Path) -> None:
    wanted = ["methods=[odm, natural]", "train.interval=1", "train.tokens=null"]
    (remark,) = validate(written, [*wanted, "train.steps=3"]).remarks
    assert "odm mixes 3 domains uniformly for its first 4 steps, and the run has 3" in remark
    assert validate(written, [*wanted, "train.steps=4"]).remarks == ()


# --dry-run


def test_epochs_are_shares_of_tokens_over_what_there_is(corpus: Corpus) -> None:
    mixture = Mixture.of({"algorithms": 0.5, "mail": 0.5, "network": 0.0})
    epochs = epochs_read(corpus.domains, mixture, 1000)
    sizes = {domain.name: domain.tokens for domain in corpus.domains}
    assert epochs == {
        "algorithms": 500 / sizes["algorithms"], "mail": 500 / sizes["mail"], "network": 0.0
    }  # fmt: skip


@pytest.mark.training
def test_an_estimate_counts_all_runs_and_stores_nothing(written: Path, tmp_path: Path) -> None:
    overrides = ["model=llama-0.1m", "seeds=[0, 1]", "train={tokens: 4_096, batch_size: 4, "
                 "sequence_length: 32, interval: 4}", f"out={tmp_path / 'runs'}"]  # fmt: skip
    found = estimate(load(CompareConfig, written, overrides))
    assert (found.runs, found.each.tokens, found.total.tokens) == (6, 4096, 6 * 4096)
    assert found.each.seconds > 0
    assert found.memory > 1 << 20
    assert validated_seconds(10.0, Cost(flops=12.0), Cost(flops=8.0)) == 15.0
    assert not (tmp_path / "runs").exists()


# questions


@pytest.mark.parametrize("kind", ["choice", "cloze"])
def test_questions_are_of_validation_text_and_equal_for_equal_seeds(
    corpus: Corpus, tmp_path: Path, kind: str
) -> None:
    made, again, other = (
        write_questions(corpus, tmp_path / name, kind, most=20, seed=seed)  # type: ignore[arg-type]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [path.name for path in made.files["target"]] == ["mail.jsonl"]
    texts = {}
    for path in [*made.files["general"], *made.files["target"]]:
        questions = read_questions(path)
        assert 1 <= len(questions) <= 20
        assert all(
            len(question.answers) == (4 if kind == "choice" else 1) for question in questions
        )
        assert path.read_bytes() == (again.folder / path.name).read_bytes()
        texts[path.stem] = questions
    assert any(
        (made.folder / f"{name}.jsonl").read_bytes()
        != (other.folder / f"{name}.jsonl").read_bytes()
        for name in texts
    )
    for name, questions in texts.items():
        valid = corpus.tokenizer().decode(corpus.pool(name, "valid").tokens.tolist())
        for question in questions:
            assert question.prompt + question.answers[question.reference] in valid


def test_questions_keep_an_existing_folder_and_need_validation_text(
    corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="exists"):
        write_questions(corpus, tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n')
    settings = BuildSettings(vocab_size=300, valid_share=0, test_share=0)
    bare = build([tmp_path / "a.jsonl"], tmp_path / "bare", settings, workers=1)
    with pytest.raises(CorpusError, match="valid-share"):
        write_questions(bare, tmp_path / "q")


# doctor and the commands


def test_doctor_examines_every_part_and_changes_nothing(tmp_path: Path) -> None:
    findings = examine(str(tmp_path / "none.db"), tmp_path / "runs")
    parts = {finding.part for finding in findings}
    assert {"python", "torch", "gpu", "processor", "disk", "store", "extra ray"} <= parts
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("no database, and longer than a header of SQLite " * 10)
    store = next(one for one in examine(str(tmp_path / "s.db")) if one.part == "store")
    assert store.status == "problem"


@pytest.mark.parametrize(
    "arguments",
    [
        ("questions", "CORPUS", "-o", "FILE/questions"),
        ("init", "CORPUS", "-o", "FILE/mine.yaml"),
        ("compare", "CONFIG", "-o", "FILE/report.html"),
        ("compare", "CONFIG", "out=FILE/runs", "--dry-run"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_the_reason(
    corpus: Corpus,
    written: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    places = {"CORPUS": corpus.folder, "CONFIG": written, "FILE": tmp_path / "file"}
    line = " ".join(arguments)
    for name, place in places.items():
        line = line.replace(name, str(place))
    monkeypatch.setattr(sys, "argv", ["cuvee", *line.split()])
    with pytest.raises(SystemExit) as ended:
        cuvee.cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(rf"error: .*{re.escape(str(tmp_path / 'file'))}.*(choose another|check)", said)
    assert ".tmp" not in said


def test_no_command_prints_the_help_and_succeeds() -> None:
    done = CliRunner().invoke(cuvee.cli.app, [])
    assert (done.exit_code, "Usage:" in done.output) == (0, True)


def test_commands_print_json(written: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    found = CliRunner().invoke(cuvee.cli.app, ["doctor", "--json", "--out", out])
    assert {"part", "status", "found", "remedy"} == set(json.loads(found.output)[0])
    valid = CliRunner().invoke(cuvee.cli.app, ["validate", str(written), "--json"])
    assert json.loads(valid.output)["command"] == "compare"
