"""Reads questions with reference answers from JSONL files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.errors import CorpusError
from cuvee.core.files import read_bounded


@dataclass(frozen=True)
class Question:
    """A prompt and its possible answers.

    Each answer continues the prompt without a separator. `answers[reference]` is the right one.
    """

    prompt: str
    answers: tuple[str, ...]
    reference: int

    @property
    def has_choices(self) -> bool:
        return len(self.answers) > 1

    @property
    def rank(self) -> bytes:
        """A hash of the text, by which questions are put in a fixed random order."""
        return hashlib.sha256(f"{self.prompt}\0{self.answers[self.reference]}".encode()).digest()


def read_questions(
    path: Path, prompt_key: str = "prompt", answer_key: str = "answer"
) -> list[Question]:
    """Read one question per line; blank lines are skipped. There are two kinds of rows:

        {"prompt": …, "answer": …}                            prompt + answer
        {"question": …, "choices": […] or null, "answer": …}  "Question: …\\nAnswer:" + " " + answer

    Both kinds may have choices. Then the answer is one of the choices or its index from 0. If a row
    of the second kind has a "text" that equals question + answer (code, for example), the two are
    joined without the words between them. Raises `CorpusError` with file and line for a bad row.
    """
    try:
        lines = read_bounded(path).split(b"\n")
    except OSError as error:
        raise CorpusError(
            f"the question file {path} cannot be read ({error.strerror}): give the path of a JSONL "
            "file; `cuvee questions` makes one from validation text"
        ) from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                f"{path}:{number}: not valid JSON ({error}); each line must be one JSON object"
            ) from error
        try:
            questions.append(_question(row, prompt_key, answer_key))
        except ValueError as error:
            raise CorpusError(f"{path}:{number}: {error}") from error
    if not questions:
        raise CorpusError(f"{path} contains no questions")
    return questions


def _question(row: Any, prompt_key: str, answer_key: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"a row must be an object with {prompt_key!r} and {answer_key!r}, got {_brief(row)}"
        )
    verbatim = prompt_key in row
    if not verbatim and "question" not in row:
        raise ValueError(
            f"a row needs {prompt_key!r} or 'question'; it has "
            f"{', '.join(map(str, row)) or 'nothing'}"
        )
    prompt = _text(row, prompt_key if verbatim else "question")
    answers, reference = _answers(row, answer_key)
    if verbatim or row.get("text") == prompt + answers[reference]:
        return Question(prompt, answers, reference)
    return Question(
        f"Question: {prompt}\nAnswer:", tuple(f" {answer}" for answer in answers), reference
    )


def _answers(row: Mapping[str, Any], answer_key: str) -> tuple[tuple[str, ...], int]:
    choices = row.get("choices")
    answer = row.get(answer_key)
    if choices is None:
        return (_text(row, answer_key),), 0
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"'choices' must be a list of texts or null, got {_brief(choices)}")
    texts = tuple(_checked("each of 'choices'", choice, may_be_empty=True) for choice in choices)
    if isinstance(answer, str) and answer in texts:
        reference = texts.index(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        reference = answer
    else:
        raise ValueError(
            f"{answer_key!r} must be one of the {len(texts)} choices or its index from 0, "
            f"got {_brief(answer)}"
        )
    _checked("the right choice", texts[reference])
    return texts, reference


def _text(row: Mapping[str, Any], key: str) -> str:
    return _checked(repr(key), row.get(key))


def _checked(what: str, value: Any, *, may_be_empty: bool = False) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ValueError(
            f"{what} must be a text{'' if may_be_empty else ' that is not empty'}, "
            f"got {_brief(value)}"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{what} contains an unpaired surrogate, so it is not valid text")
    return value


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"
