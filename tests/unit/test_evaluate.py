"""lm-evaluation-harness on question files: figures, agreement with our probe, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.data.corpus.tokenizer import END_OF_TEXT, train_tokenizer
from cuvee.evaluation.harness import evaluate
from cuvee.evaluation.items import Item, TaskScore, paired
from cuvee.evaluation.published_tasks import read_settings
from cuvee.fleet.store.store import Store
from cuvee.probes.base import Context
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.recipes import evaluate as recipe
from cuvee.training.export import export_model

CHOICES: list[dict[str, Any]] = [
    {"question": f"{a} plus {b}?", "choices": [str(a + b), f"{a * b} or so", "nought"], "answer": k}
    for k, (a, b) in enumerate([(2, 3), (4, 5), (7, 12)])
]
SHORT = [{"question": f"What follows {n}?", "choices": None, "answer": str(n + 1)} for n in (3, 11)]
LONG = [{"prompt": "Say it:", "answer": " a long answer, of more than thirty-two characters"}]


def toy() -> tuple[LlamaForCausalLM, Tokenizer]:
    texts = [json.dumps(row) for row in (*CHOICES, *SHORT, *LONG)]
    tokenizer = Tokenizer.from_str(train_tokenizer(texts, 300))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config), tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores_of(file: Path, **options: Any) -> dict[str, TaskScore]:
    model, tokenizer = toy()
    return {one.task: one for one in evaluate(model, wrapped(tokenizer), [file], **options)}


def probed(row: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Our own evaluation of one question: log-probability per token, and accuracy per token."""
    model, tokenizer = toy()
    files = {"one": [write(folder / "one.jsonl", [row])]}
    context = Context(model, torch.device("cpu"), tokenizer=tokenizer)
    found = []
    for accuracy in (False, True):
        meter = EvaluationSet(files, accuracy=accuracy).attach(context)
        found.append(meter.read(meter.sums()))
    measured = found[1].get("evaluation_accuracy")
    right = float(measured.values[0]) if measured is not None else 0.0
    return float(found[0]["evaluation"].values[0]), right


def test_the_harness_and_our_probe_agree_on_every_question(tmp_path: Path) -> None:
    for row in (*CHOICES, *SHORT, *LONG):
        found = scores_of(write(tmp_path / "quiz.jsonl", [row]))
        logprob, right = probed(row, tmp_path)
        if row.get("choices"):
            assert found["quiz.choices"].mean("accuracy_per_token") == right
        else:
            assert found["quiz.reference"].mean("logprob_per_token") == pytest.approx(
                logprob, abs=1e-5
            )


def test_a_file_becomes_one_task_per_kind_with_named_figures(tmp_path: Path) -> None:
    file = write(tmp_path / "quiz.jsonl", [*CHOICES, *SHORT, *LONG])
    found = scores_of(file)
    assert {name: len(one.items) for name, one in found.items()} == {
        "quiz.choices": 3,
        "quiz.reference": 3,
        "quiz.short": 2,
    }
    assert found["quiz.choices"].names == (
        "accuracy_summed",
        "accuracy_per_byte",
        "accuracy_per_token",
    )
    assert found["quiz.short"].names == ("exact_match",)
    assert len(found["quiz.choices"].source["sha256"]) == 64
    limited = scores_of(file, limit=1)["quiz.reference"]
    first = found["quiz.reference"].items[0]
    assert limited.items[0].id == first.id
    # Other rows in the batch change the last bits of a sum on some processors.
    assert limited.items[0].figures == pytest.approx(first.figures, rel=1e-6)


def test_a_question_that_does_not_fit_is_counted(tmp_path: Path) -> None:
    huge = {"prompt": "x", "answer": " 1, 2" * 200}
    found = scores_of(write(tmp_path / "quiz.jsonl", [*LONG, huge]))
    assert (len(found["quiz.reference"].items), found["quiz.reference"].left_out) == (1, 1)


def test_paired_differences_use_shared_questions() -> None:
    def score(*values: float) -> TaskScore:
        items = tuple(Item(str(n), {"exact_match": value}) for n, value in enumerate(values))
        return TaskScore("t", "short", {}, items)

    difference = paired([score(1, 1, 0, 1)], [score(1, 0, 0)], "exact_match")
    assert difference is not None
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(1 / 3)
    assert TaskScore.from_json(json.loads(json.dumps(score(1, 0).to_json()))) == score(1, 0)


def test_a_folder_is_evaluated_and_recorded_once(tmp_path: Path) -> None:
    export_model(*toy(), 0, tmp_path / "model")
    file = write(tmp_path / "quiz.jsonl", CHOICES)
    store = str(tmp_path / "store.sqlite")
    for _ in range(2):
        name, scores = recipe.evaluate(str(tmp_path / "model"), [file], store=store)
    with Store.open(store) as opened:
        assert opened.evaluations(name) == scores
    assert name.startswith("sha256:")


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    good = write(tmp_path / "quiz.jsonl", CHOICES)
    store = str(tmp_path / "store.sqlite")
    Store.open(store).close()
    with pytest.raises(ConfigError, match="--questions FILE or --tasks"):
        recipe.evaluate("run", store=store)
    bad = write(tmp_path / "bad.jsonl", [*CHOICES, {"question": "x", "answer": None}])
    with pytest.raises(CorpusError, match=r"bad.jsonl:4: .*answer"):
        recipe.evaluate("run", [bad], store=store)
    with pytest.raises(CorpusError, match=r"none.jsonl cannot be read .*`cuvee questions`"):
        recipe.evaluate("run", [tmp_path / "none.jsonl"], store=store)
    with pytest.raises(Exception, match="no model folder either"):
        recipe.evaluate("run", [good], store=store)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task: t\nprocess_docs: !function utils.f\n", "names a function"),
        ("task: t\nclass: c\n", "is a class"),
        ("task: t\nunsafe_code: true\n", "runs code that the model writes"),
        ("task: t\ndataset_kwargs: {trust_remote_code: true}\n", "is Python code"),
        ("task: t\nmetric_list: [{metric: acc, hf_evaluate: true}]\n", "downloaded code"),
        ("task: t\ninclude: base\n", "names a function"),
        ("task: other\n", "has no task 't'"),
    ],
)
def test_a_task_with_code_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    (tmp_path / "base").write_text("doc_to_text: !function utils.f\n")
    with pytest.raises(ConfigError, match=why):
        read_settings("t", tmp_path)


def test_an_unknown_task_is_answered_with_a_near_one(tmp_path: Path) -> None:
    for name in ("arc_easy", "piqa"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n")
    with pytest.raises(ConfigError, match=r"no task 'arc_eazy'; did you mean 'arc_easy'\?"):
        read_settings("arc_eazy", tmp_path)
