"""Question files as tasks of lm-evaluation-harness.

    tasks = question_tasks([Path("quiz.jsonl")], fits=..., limit=100)

A file gives one task for each kind of question that it has:

    NAME.choices      rows with choices: multiple choice
    NAME.reference    other rows: log-likelihood of the reference answer
    NAME.short        of those, the rows with a short answer: greedy generation, exact match

Texts are passed to the harness as data. They are never read as templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError
from cuvee.core.files import sha256_of
from cuvee.evaluation.items import Kind
from cuvee.probes.questions import Question, read_questions

LONGEST_SHORT = 32  # characters of an answer that is compared with a generated line
GENERATED = 32  # tokens
Fits = Callable[[Question, Kind], bool]
"""Whether a model's context has room for a question."""
_OUTPUT: dict[Kind, str] = {
    "choices": "multiple_choice",
    "reference": "loglikelihood",
    "short": "generate_until",
}


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one kind in a file, in a fixed random order."""

    name: str
    kind: Kind
    file: Path
    sha256: str
    questions: tuple[Question, ...]
    left_out: int

    def rows(self) -> list[dict[str, Any]]:
        """Return the questions as rows of a data set, with ids that depend on their text only."""
        seen: dict[str, int] = {}
        rows = []
        for question in self.questions:
            digest = question.rank.hex()[:16]
            seen[digest] = seen.get(digest, 0) + 1
            rows.append(
                {
                    "id": digest if seen[digest] == 1 else f"{digest}-{seen[digest]}",
                    "prompt": question.prompt,
                    "answers": list(question.answers),
                    "answer": question.answers[question.reference],
                    "reference": question.reference,
                }
            )
        return rows

    def task(self) -> Any:
        """Return the harness's task."""
        import datasets
        from lm_eval.api.task import ConfigurableTask

        rows = datasets.Dataset.from_list(self.rows())
        config: dict[str, Any] = {
            "task": self.name,
            "output_type": _OUTPUT[self.kind],
            "custom_dataset": lambda: {"test": rows},
            "test_split": "test",
            "doc_to_text": lambda row: row["prompt"],
            "target_delimiter": "",
            "num_fewshot": 0,
        }
        if self.kind == "choices":
            config["doc_to_choice"] = lambda row: row["answers"]
            config["doc_to_target"] = lambda row: row["reference"]
        else:
            config["doc_to_target"] = lambda row: row["answer"]
        if self.kind == "short":
            config["generation_kwargs"] = {
                "until": ["\n"],
                "max_gen_toks": GENERATED,
                "do_sample": False,
            }
        return ConfigurableTask(config=config)


def question_sets(files: Sequence[Path], fits: Fits, limit: int | None = None) -> list[QuestionSet]:
    """Read `files` and split them into kinds.

    `limit` keeps that many questions of each kind in a file, the same ones every time. Questions
    for which `fits` is false are counted and left out. Raises `CorpusError` with file and line for
    a bad row, and `ConfigError` for two files of the same name or one in which nothing fits.
    """
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigError(f"two question files are called {twice[0]}: rename one")
    found = []
    for file in files:
        ordered = sorted(read_questions(file), key=attrgetter("rank"))
        sets = list(_sets(file, ordered, fits, limit))
        if not any(one.questions for one in sets):
            raise ConfigError(f"no question of {file} fits into the model's context: leave it out")
        found += [one for one in sets if one.questions]
    return found


def _sets(
    file: Path, ordered: Sequence[Question], fits: Fits, limit: int | None
) -> Iterator[QuestionSet]:
    sha256 = sha256_of(file)
    for kind in _OUTPUT:
        asked = [question for question in ordered if _is(kind, question)][:limit]
        kept = tuple(question for question in asked if fits(question, kind))
        name = f"{file.stem}.{kind}"
        yield QuestionSet(name, kind, file, sha256, kept, len(asked) - len(kept))


def _is(kind: Kind, question: Question) -> bool:
    if kind == "choices" or question.has_choices:
        return kind == "choices" and question.has_choices
    answer = question.answers[question.reference].strip()
    return kind == "reference" or (0 < len(answer) <= LONGEST_SHORT and "\n" not in answer)
