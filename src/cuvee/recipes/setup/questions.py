"""`questions`: makes question sets out of a corpus's validation text.

Two kinds, both read by `probes.questions`:

    cloze    the last word of a sentence, given the text before it
    choice   the next sentence, among sentences of other documents of the same domain

They measure how well a model continues text of a domain. They are no benchmark of knowledge. Text of
the `test` split is never used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cuvee.core.errors import CorpusError
from cuvee.core.files import write_folder
from cuvee.data.corpus.corpus import Corpus

Kind = Literal["cloze", "choice"]
_PIECE = re.compile(r"[^\n.!?。！？]*(?:[.!?。！？]+|\n+|$)")
_SHORTEST = 16  # characters of a sentence
_WORD = re.compile(r"\w{3,}", re.UNICODE)
_CHOICES = 4
_CONTEXT = 3  # sentences of the prompt


@dataclass(frozen=True)
class Made:
    """The files of questions by role, the number of questions, and the domains without any."""

    folder: Path
    files: dict[str, list[Path]]
    questions: int
    without: tuple[str, ...]


def write_questions(
    corpus: Corpus, folder: Path, kind: Kind = "choice", most: int = 200, seed: int = 0
) -> Made:
    """Write one JSONL file per domain to the new `folder`: at most `most` questions each.

    Equal arguments give equal files. Raises `CorpusError` if `folder` exists or if no domain has
    enough validation text.
    """
    if folder.exists():
        raise CorpusError(f"{folder} exists: give another folder with -o, or remove it")
    validated = [name for name in corpus.names if corpus.has(name, "valid")]
    if not validated:
        raise CorpusError(
            f"{corpus.folder} has no validation text to ask about: build it again with "
            "a larger --valid-share, as in 0.1"
        )
    make: Callable[..., Iterator[dict[str, Any]]] = {"cloze": _cloze, "choice": _choice}[kind]
    rows = {
        name: _first(make(_documents(corpus, name), _random(seed, name)), most)
        for name in validated
    }
    return _write(corpus, folder, {name: found for name, found in rows.items() if found})


def _write(corpus: Corpus, folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Made:
    if not rows:
        raise CorpusError(
            f"the validation text of {corpus.folder} is too short for questions: a document needs "
            f"{_CONTEXT + 1} sentences; build the corpus again with a larger --valid-share"
        )

    def fill(temporary: Path) -> None:
        for name, found in rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
            (temporary / f"{name}.jsonl").write_text("".join(lines))

    write_folder(folder, fill)
    files: dict[str, list[Path]] = {"general": [], "target": []}
    for domain in corpus.domains:
        if domain.name in rows:
            files["target" if domain.is_target else "general"].append(
                folder / f"{domain.name}.jsonl"
            )
    without = tuple(name for name in corpus.names if name not in rows)
    return Made(folder, files, sum(map(len, rows.values())), without)


def _documents(corpus: Corpus, name: str) -> list[list[str]]:
    """Return the sentences of each validation document that has enough of them."""
    pool = corpus.pool(name, "valid")
    ends = [*pool.document_starts[1:].tolist(), len(pool)]
    decode = corpus.tokenizer().decode
    found = []
    for start, end in zip(pool.document_starts.tolist(), ends, strict=True):
        tokens = [t for t in pool.tokens[start:end].tolist() if t != corpus.end_of_text]
        sentences = _sentences(decode(tokens))
        if len(sentences) > _CONTEXT:
            found.append(sentences)
    return found


def _sentences(text: str) -> list[str]:
    """Cut the text at the ends of sentences and lines; nothing is lost between the parts."""
    found = [""]
    for piece in _PIECE.findall(text):
        if len(found[-1].strip()) >= _SHORTEST:
            found.append("")
        found[-1] += piece
    return [part for part in found if len(part.strip()) >= _SHORTEST]


def _random(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _passages(
    documents: Sequence[Sequence[str]], rng: np.random.Generator
) -> Iterator[tuple[int, str, str]]:
    """Yield a document's index, some sentences and the next one, from documents in turn."""
    starts = [
        (turn, int(document), turn * (_CONTEXT + 1))
        for document in rng.permutation(len(documents))
        for turn in range(len(documents[document]) // (_CONTEXT + 1))
    ]
    for _, document, start in sorted(starts, key=lambda one: one[0]):
        sentences = documents[document][start : start + _CONTEXT + 1]
        yield document, "".join(sentences[:-1]), sentences[-1]


def _cloze(
    documents: Sequence[Sequence[str]], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    for _, before, sentence in _passages(documents, rng):
        words = list(_WORD.finditer(sentence))
        if len(words) > 1:
            last = words[-1]
            cut = last.start() - (sentence[last.start() - 1] == " ")  # the space goes to the answer
            yield {"prompt": before + sentence[:cut], "answer": sentence[cut : last.end()]}


def _choice(
    documents: Sequence[Sequence[str]], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    if len(documents) < 2:
        return
    for document, before, right in _passages(documents, rng):
        choices = {right}
        for _ in range(10 * _CHOICES):
            other = int(rng.integers(len(documents)))
            if other != document:
                choices.add(documents[other][int(rng.integers(len(documents[other])))])
            if len(choices) == _CHOICES:
                break
        if len(choices) == _CHOICES:
            order = rng.permutation(sorted(choices)).tolist()
            yield {"prompt": before, "choices": order, "answer": order.index(right)}


def _first(rows: Iterator[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return [row for row, _ in zip(rows, range(most), strict=False)]
