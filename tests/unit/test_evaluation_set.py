"""EvaluationSet against a model with known log-probabilities, and its errors for bad files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.probes.base import Context, Place
from cuvee.probes.evaluation_set import EvaluationMeter, EvaluationSet
from cuvee.probes.questions import Question, read_questions

VOCAB = 128


class Bigram(nn.Module):
    """log p(next | token) = table[token, next], whatever came before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.log_softmax(torch.randn(VOCAB, VOCAB), -1))
        self.rows: list[int] = []

    def forward(self, input_ids: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.rows.append(len(input_ids))
        return self.table[input_ids]


def letters() -> Tokenizer:
    """One token an ASCII character."""
    tokenizer = Tokenizer(
        models.WordLevel({chr(code): code for code in range(VOCAB)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n"
    )
    return path


def plain(count: int, prompt: str = "prompt") -> list[object]:
    return [
        {"prompt": f"{prompt} {number}", "answer": "yes" if number % 2 else "no"}
        for number in range(count)
    ]


def attach(
    files: dict[str, list[Path]], model: nn.Module | None = None, **options: Any
) -> EvaluationMeter:
    context = {key: options.pop(key) for key in ("place", "interval_tokens") if key in options}
    model = Bigram() if model is None else model
    return EvaluationSet(files, **options).attach(
        Context(model, torch.device("cpu"), tokenizer=letters(), **context)
    )


def logprobs(prompt: str, answer: str) -> np.ndarray:
    table, text = Bigram().table.detach().numpy(), f"{prompt[-1]}{answer}"
    return np.array([table[ord(a), ord(b)] for a, b in pairwise(text)])


def test_mean_log_probability_of_answer_tokens_by_field(tmp_path: Path) -> None:
    rows = [
        ("a longer prompt", "yes"),
        ("2+2=", "4"),
        ("b", " a much longer answer than the others"),
    ]
    general = write(
        tmp_path / "g.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in rows]
    )
    target = write(tmp_path / "t.jsonl", [{"question": "Why?", "choices": None, "answer": 7}])
    meter = attach({"general": [general], "target": [target]})
    found = meter.read(meter.sums())
    expected = [
        np.concatenate([logprobs(*row) for row in rows]).mean(),
        logprobs("Question: Why?\nAnswer:", " 7").mean(),
    ]
    np.testing.assert_allclose(found["evaluation"].values, expected, rtol=1e-5)
    tokens = sum(len(prompt + answer) for prompt, answer in rows) + len("Question: Why?\nAnswer: 7")
    assert found["evaluation_tokens"].values == tokens
    assert set(found) == {"evaluation", "evaluation_tokens"}


def test_files_of_a_field_count_alike_whatever_their_length(tmp_path: Path) -> None:
    long, short = ("q", "a very long answer, of many more tokens than the other's"), ("p", "yes")
    files = [
        write(tmp_path / f"{row[0]}.jsonl", [{"prompt": row[0], "answer": row[1]}] * 3)
        for row in (long, short)
    ]
    meter = attach({"f": files})
    expected = (logprobs(*long).mean() + logprobs(*short).mean()) / 2
    assert meter.read(meter.sums())["evaluation"].values == pytest.approx([expected], rel=1e-5)


def test_files_of_a_field_share_its_budget_by_tokens(tmp_path: Path) -> None:
    long = [{"prompt": f"{number}", "answer": "x" * 50} for number in range(40)]
    files = [write(tmp_path / "l.jsonl", long), write(tmp_path / "s.jsonl", plain(40))]
    meter = attach({"f": files}, share=0.05, interval_tokens=4000)
    spent = [
        sum(question.tokens for question in meter.questions if question.file == file)
        for file in (0, 1)
    ]
    assert abs(spent[0] - spent[1]) <= 52
    assert sum(spent) <= 600
    assert {question.file for question in attach({"f": files}, max_items=1).questions} == {0, 1}


def test_accuracy_is_the_best_mean_over_choices(tmp_path: Path) -> None:
    choices = ["red", "green", "a rather long colour"]
    prompt = "Question: Which?\nAnswer:"
    best = int(np.argmax([logprobs(prompt, f" {choice}").mean() for choice in choices]))
    worst = (best + 1) % 3
    rows = [
        {"question": "Which?", "choices": choices, "answer": answer}
        for answer in (best, worst, choices[best])
    ]
    files = {"a": [write(tmp_path / "a.jsonl", rows)], "b": [write(tmp_path / "b.jsonl", plain(3))]}
    meter = attach(files, accuracy=True)
    found = meter.read(meter.sums())
    assert found["evaluation_accuracy"].values[0] == pytest.approx(2 / 3)
    assert found["evaluation_accuracy"].present.tolist() == [True, False]
    without = attach(files)
    assert found["evaluation"].values == pytest.approx(
        without.read(without.sums())["evaluation"].values
    )


def test_ranks_split_the_questions_and_run_equally_many_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.probes.evaluation_set._BATCH_TOKENS", 60)
    files = {
        "f": [write(tmp_path / "f.jsonl", plain(23))],
        "g": [write(tmp_path / "g.jsonl", plain(2, "other"))],
    }
    alone = attach(files)
    models, sums = [Bigram() for _ in range(4)], torch.zeros(9, dtype=torch.float64)
    for rank, model in enumerate(models):
        sums += attach(files, model, place=Place(rank, 4)).sums()
    torch.testing.assert_close(sums, alone.sums())
    assert len({len(model.rows) for model in models}) == 1
    assert len(models[0].rows) < len(alone._batches)


def test_the_budget_is_kept_with_the_same_questions_every_time(tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "1.jsonl", plain(40)),
        write(tmp_path / "2.jsonl", plain(40, "another")),
    )
    few = write(tmp_path / "few.jsonl", plain(1))
    share, interval = 0.05, 4000
    meter = attach({"many": [first, second], "few": [few]}, share=share, interval_tokens=interval)
    read = float(meter.read(meter.sums())["evaluation_tokens"].values)
    assert 0.4 * share * interval < read / 3 <= share * interval
    swapped = attach({"many": [second, first], "few": [few]}, share=share, interval_tokens=interval)
    assert swapped.questions == meter.questions
    more = attach(
        {"many": [first, second], "few": [few]}, share=2 * share, interval_tokens=interval
    )
    assert set(meter.questions) < set(more.questions)
    assert len(attach({"many": [first]}, share=1e-6, interval_tokens=interval).questions) == 1
    assert len(attach({"many": [first]}, max_items=7).questions) == 7
    assert len(attach({"many": [first]}).questions) == 40


def test_long_prompts_lose_their_beginning_and_long_answers_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 100, "answer": "end"}, {"prompt": "p", "answer": "y" * 20}]
    meter = attach({"f": [write(tmp_path / "f.jsonl", rows)]}, max_tokens=20)
    (question,) = meter.questions
    assert len(question.sequences[0]) == 20
    meter.read(meter.sums())
    with pytest.raises(
        CorpusError, match=r"no answer in .*f\.jsonl, of field 'f', is shorter than 2 tokens"
    ):
        attach({"f": [write(tmp_path / "f.jsonl", rows)]}, max_tokens=2)
    good, long = write(tmp_path / "good.jsonl", plain(3)), write(tmp_path / "long.jsonl", rows[1:])
    with pytest.raises(
        CorpusError, match=r"no answer in .*long\.jsonl, of field 'f'.*remove the file"
    ):
        attach({"f": [good, long]}, max_tokens=20)


def test_training_mode_comes_back(tmp_path: Path) -> None:
    model = Bigram().train()
    meter = attach({"f": [write(tmp_path / "f.jsonl", plain(3))]}, model)
    meter.sums()
    assert model.training


def test_rows_of_every_kind(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2=", "answer": "4", "question": "ignored"},
        {"prompt": "Sky: ", "choices": ["blue", "", "red"], "answer": "red"},
        {"question": "Q", "choices": None, "answer": "A", "text": "Question: Q\nAnswer: A"},
        {
            "question": "Q",
            "choices": ["x", "y"],
            "answer": 1,
            "text": "Question: Q\nAnswer: because y",
        },
        {
            "question": "def f():\n",
            "choices": None,
            "answer": "    pass",
            "text": "def f():\n    pass",
        },
    ]
    assert read_questions(write(tmp_path / "q.jsonl", rows)) == [
        Question("2+2=", ("4",), 0),
        Question("Sky: ", ("blue", "", "red"), 2),
        Question("Question: Q\nAnswer:", (" A",), 0),
        Question("Question: Q\nAnswer:", (" x", " y"), 1),
        Question("def f():\n", ("    pass",), 0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "q.jsonl:2: not valid JSON"),
        ("[" * 100_000, "q.jsonl:2: not valid JSON"),
        ([1], "q.jsonl:2: a row must be an object"),
        ({"text": "?"}, "q.jsonl:2: a row needs 'prompt' or 'question'; it has text"),
        ({"prompt": "p"}, "q.jsonl:2: 'answer' must be a text that is not empty, got None"),
        ({"prompt": "", "answer": "a"}, "q.jsonl:2: 'prompt' must be a text"),
        (
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            "one of the 2 choices or its index from 0, got 2",
        ),
        (
            {"question": "q", "choices": ["a", "b"], "answer": True},
            "one of the 2 choices or its index from 0, got True",
        ),
        (
            {"question": "q", "choices": [], "answer": 0},
            "'choices' must be a list of texts or null",
        ),
        (
            {"question": "q", "choices": ["a", None], "answer": 0},
            "each of 'choices' must be a text",
        ),
        (
            {"question": "q", "choices": ["", "b"], "answer": 0},
            "the right choice must be a text that is not empty",
        ),
        ('{"prompt": "\\ud800", "answer": "a"}', "contains an unpaired surrogate"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "p", "answer": "a"}, row])
    with pytest.raises(CorpusError) as caught:
        read_questions(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bad_files_and_settings_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl cannot be read"):
        attach({"f": [tmp_path / "nowhere.jsonl"]})
    with pytest.raises(CorpusError, match="contains no questions"):
        attach({"f": [write(tmp_path / "empty.jsonl", [])]})
    path = write(tmp_path / "q.jsonl", plain(2))
    with pytest.raises(ConfigError, match="files is empty"):
        EvaluationSet({})
    with pytest.raises(ConfigError, match="must be a list of JSONL files"):
        EvaluationSet({"f": str(path)})
    with pytest.raises(ConfigError, match="share is 0"):
        EvaluationSet({"f": [path]}, share=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        EvaluationSet({"f": [path]}).attach(Context(Bigram(), torch.device("cpu")))


def test_batching_and_padding_do_not_change_a_transformer_s_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=64, **shape))
    rows = [
        {"prompt": "p" * (3 * number + 1), "answer": "answer"[: number + 1]} for number in range(6)
    ]
    meter = attach({"f": [write(tmp_path / "f.jsonl", rows)]}, model)
    assert len(meter._batches) == 1
    alone = []
    for row in rows:
        tokens = torch.tensor([[ord(letter) for letter in row["prompt"] + row["answer"]]])
        with torch.no_grad():
            logprobs_LV = torch.log_softmax(model(input_ids=tokens).logits[0], -1)
        alone += [
            float(logprobs_LV[at - 1, tokens[0, at]])
            for at in range(len(row["prompt"]), tokens.shape[1])
        ]
    assert float(meter.read(meter.sums())["evaluation"].values[0]) == pytest.approx(
        np.mean(alone), rel=1e-5
    )
