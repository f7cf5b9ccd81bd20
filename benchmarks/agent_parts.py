"""What `agent.py` runs on: corpora with a source and a target field, questions, and evaluation.

Every question and every document of the `valid` split belongs to one of two halves, by a hash of
its text. Whatever decides about mixtures sees the feedback half only: the agent's questions, and
the validation text that RegMix is fitted to. The other half evaluates. Documents become questions
too: each piece of a document is the beginning of a text that the model must continue.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cuvee.core.files import write_atomic
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.tokenizer import train_tokenizer
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.documents import Rules
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.data.ingest.survey import take_survey
from cuvee.data.ingest.worker_pool import WorkerPool
from cuvee.data.label.labelers import ByRole, Way
from cuvee.data.label.labels import LabelSettings, label
from cuvee.probes.base import Context
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.probes.questions import read_questions
from cuvee.training.model import build_model

VOCABULARY = 1024  # of a small model the logits are most of the work
PROMPT, ANSWER = 40, 200  # characters of a piece of a document
PIECES, TEXTS = 8, 64  # pieces of a document, and of a domain
JUDGED = 128  # questions of a file
FEEDBACK_ROWS = 480  # of a kind, in a field of the feedback
ABOUT = {"math": ("math", "gsm", "jee", "probability"), "code": ("code", "human_eval", "mbpp")}
HALVES = ("feedback", "judged")
KINDS = ("text", "questions")


@dataclass(frozen=True)
class Field:
    """One continual pre-training: what it reads, what it is asked, and what judges it."""

    name: str
    folder: Path
    sources: tuple[str, ...]
    target: str
    feedback: Mapping[str, Sequence[str]]
    judged: Mapping[str, Sequence[str]]
    """Files by SIDE/KIND/NAME: side source or target, kind text or questions."""

    @property
    def corpus(self) -> Corpus:
        return Corpus.open(self.folder)


class Material:
    """Everything below `out` that is made from the raw folder and the question files.

    What exists is not made again.
    """

    def __init__(
        self,
        raw: Path,
        out: Path,
        questions: Sequence[str],
        target: str | None,
        kept_away: float,
        every: int = 1,
        target_bytes: int | None = None,
    ) -> None:
        self.raw, self.out, self.every = raw, out, every
        self.target_bytes = target_bytes
        names = sorted(
            path.name.removesuffix(".jsonl.gz") for path in (raw / "train").glob("*.jsonl.gz")
        )
        table = (
            json.loads((raw / "table.json").read_text()) if (raw / "table.json").exists() else []
        )
        targets = [
            str(row["domain"])
            for row in table
            if row.get("role") == "target" and row["domain"] in names
        ]
        self.default_target = next(iter(targets), "")
        self.target = target or self.default_target
        if self.target not in names:
            raise SystemExit(f"no target domain: name one of {', '.join(names)} with --target")
        self.other_target = next((name for name in targets if name != self.target), None)
        sources = [name for name in names if name not in (*targets, self.target)]
        every = round(1 / kept_away) if kept_away else len(sources) + 1
        unseen = tuple(sources[every - 1 :: every])
        self.unseen = unseen if len(unseen) >= 3 else ()  # fewer are no field
        self.sources = tuple(name for name in sources if name not in self.unseen)
        self._questions: dict[str, list[str]] = {half: [] for half in HALVES}
        self.asked: dict[str, list[str]] = {}
        for given in questions:
            about, _, path = given.rpartition("=")
            about = {"target": self.target}.get(about, about) or self._about(Path(path).stem)
            self.asked.setdefault(about, []).append(Path(path).stem)
            self._halve_questions(Path(path))
        for name in names:
            self._halve_documents(name)

    def _about(self, stem: str) -> str:
        for name in filter(None, (self.target, self.other_target)):
            words = next(
                (words for key, words in ABOUT.items() if key in name.lower()), (name.lower(),)
            )
            if any(word in stem.lower() for word in words):
                return name
        return "general"

    def field(
        self, name: str, sources: Sequence[str], target: str, way: Way | None = None
    ) -> Field:
        """Build the corpus unless it exists. A `way` relabels the documents, divided by role."""
        folder, raw = self.out / "corpora" / name, self._raw_variant(name, sources, target)
        targets: tuple[str, ...] = (target,)
        if way is not None:
            labelled = self.out / "raw" / f"{name}-by-{way.to_json()['way']}"
            settings = LabelSettings(targets=targets, by_role=not isinstance(way, ByRole))
            found = label([raw], labelled, way, settings, workers=1)
            raw, targets = labelled, tuple(row.name for row in found.labels if row.role == "target")
        build([raw], folder, BuildSettings(tokenizer=self._tokenizer(), targets=targets), workers=1)
        general, about = self.asked.get("general", []), self.asked.get(target, [])
        return Field(
            name,
            folder,
            tuple(sources),
            target,
            feedback={
                "general": self._feedback(f"{name}-general", sources, general),
                "target": self._feedback(f"{name}-target", [target], about),
            },
            judged={
                **self._judged("source", sources, general),
                **self._judged("target", [target], about),
            },
        )

    def _judged(
        self, side: str, domains: Sequence[str], asked: Sequence[str]
    ) -> dict[str, list[str]]:
        where = self.out / "questions" / "judged"
        texts = {f"{side}/text/{name}": [str(where / f"text-{name}.jsonl")] for name in domains}
        return texts | {
            f"{side}/questions/{name}": [str(where / f"{name}.jsonl")] for name in asked
        }

    def _feedback(self, name: str, domains: Sequence[str], asked: Sequence[str]) -> list[str]:
        """A file of texts, equally many per domain, and one of questions, equally many per file.

        A side of the evaluation is the mean of both kinds, and so is a field of the feedback.
        """
        where, paths = self.out / "questions", []
        for kind, stems in (
            ("texts", [f"text-{domain}" for domain in domains]),
            ("questions", asked),
        ):
            if stems:
                paths.append(where / f"{name}-{kind}.jsonl")
                write_atomic(paths[-1], "".join(_equally(where / "feedback", stems, FEEDBACK_ROWS)))
        return [str(path) for path in paths]

    def _tokenizer(self) -> Path:
        """Train a tokenizer on a sample of all domains, as `build` would; nothing is encoded."""
        kept = self.out / "corpora" / "tokenizer.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            sources, _ = find_sources([self.raw])
            rules = Rules("text", domain_column=None, valid_share=0.0)
            bad_rows = kept.with_name("bad_rows.jsonl")
            with WorkerPool(1) as pool:
                survey, sample = take_survey(sources, rules, pool, 100, bad_rows, lambda _: None)
            texts = (text for name in survey.names for text in sample.texts(name))
            write_atomic(kept, train_tokenizer(texts, VOCABULARY))
        return kept

    def _raw_variant(self, name: str, sources: Sequence[str], target: str) -> Path:
        """Every `self.every`th training document of some domains, validated on the feedback
        half."""
        folder = self.out / "raw" / name
        if folder.exists():
            return folder
        half_done = folder.with_name(f"{name}.part")
        shutil.rmtree(half_done, ignore_errors=True)
        for domain in (*sources, target):
            for split, place in (
                ("train", self._thinned()),
                ("valid", self.out / "raw" / "feedback"),
            ):
                (half_done / split).mkdir(parents=True, exist_ok=True)
                shutil.copy(place / f"{domain}.jsonl.gz", half_done / split)
        if self.target_bytes is not None:
            _cut(half_done / "train" / f"{target}.jsonl.gz", self.target_bytes)
        half_done.rename(folder)
        return folder

    def _thinned(self) -> Path:
        if self.every == 1:
            return self.raw / "train"
        folder = self.out / "raw" / f"every-{self.every}"
        if not folder.exists():
            half_done = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(half_done, ignore_errors=True)
            half_done.mkdir(parents=True)
            for path in sorted((self.raw / "train").glob("*.jsonl.gz")):
                with (
                    gzip.open(path, "rb") as lines,
                    gzip.open(half_done / path.name, "wb", compresslevel=1) as file,
                ):
                    file.writelines(islice(lines, 0, None, self.every))
            half_done.rename(folder)
        return folder

    def _halve_documents(self, name: str) -> None:
        kept = self.out / "raw" / "feedback" / f"{name}.jsonl.gz"
        if kept.exists():
            return
        documents: dict[str, list[str]] = {half: [] for half in HALVES}
        with gzip.open(self.raw / "valid" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                documents[_half(text)].append(text)
        for half, texts in documents.items():
            pieces = {_digest(piece["answer"]): piece for text in texts for piece in _pieces(text)}
            picked = [pieces[digest] for digest in sorted(pieces)[:TEXTS]]
            _write_rows(self.out / "questions" / half / f"text-{name}.jsonl", picked)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(kept.with_suffix(".part"), "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents["feedback"])
        kept.with_suffix(".part").rename(kept)

    def _halve_questions(self, path: Path) -> None:
        rows: dict[str, list[tuple[str, Any]]] = {half: [] for half in HALVES}
        for question, line in zip(
            read_questions(path), filter(str.strip, path.read_text().split("\n")), strict=True
        ):
            rows[_half(question.prompt)].append((_digest(question.prompt), json.loads(line)))
        for half, found in rows.items():
            found.sort(key=lambda row: row[0])
            _write_rows(
                self.out / "questions" / half / f"{path.stem}.jsonl", [row for _, row in found]
            )


def _cut(path: Path, most: int) -> None:
    """Keep the first `most` bytes of text of a compressed JSONL file, in whole documents but one.

    The last document is cut.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for text in texts:
            kept = text.encode()[:most].decode(errors="ignore")
            most -= len(kept.encode())
            if kept:
                file.write(json.dumps({"text": kept}) + "\n")


def _pieces(text: str) -> Iterator[dict[str, str]]:
    size = PROMPT + ANSWER
    for start in range(0, min(len(text) - size + 1, PIECES * size), size):
        yield {
            "prompt": text[start : start + PROMPT],
            "answer": text[start + PROMPT : start + size],
        }


def _equally(where: Path, stems: Sequence[str], count: int) -> list[str]:
    files = [(where / f"{stem}.jsonl").read_text().splitlines(keepends=True) for stem in stems]
    each = max(1, count // max(1, len(files)))
    return [line for lines in files for line in lines[:each]]


def _half(text: str) -> str:
    return HALVES[int(_digest(text), 16) % 2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _write_rows(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


# --------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Verdict:
    """Nats per token.

    Each side is the mean of texts (over domains) and questions (over files), `average` that of both
    sides.
    """

    source: float
    target: float
    accuracy: Mapping[str, tuple[float, float]]
    """The share of right answers by question file, and the least share above chance (2
    deviations)."""

    @property
    def average(self) -> float:
        return (self.source + self.target) / 2


def evaluate(
    model: Path, corpus: Corpus, files: Mapping[str, Sequence[str]], cache: Path
) -> Verdict:
    """The evaluation of the saved model, read from `cache` if it has the same questions."""
    by = _digest(
        "".join(
            name + _digest(Path(file).read_text())
            for name, paths in files.items()
            for file in paths
        )
    )
    found = json.loads(cache.read_text()) if cache.exists() else {}
    if found.get("by") != by:
        found = {"by": by, **_measure(model, corpus, files)}
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, json.dumps(found))
    sides = {side: _side(found["nats"], side) for side in ("source", "target")}
    return Verdict(
        **sides, accuracy={name: tuple(values) for name, values in found["accuracy"].items()}
    )


def _side(nats: Mapping[str, float], side: str) -> float:
    kinds = [
        [value for name, value in nats.items() if name.startswith(f"{side}/{kind}/")]
        for kind in KINDS
    ]
    return float(np.mean([np.mean(values) for values in kinds if values]))


def _measure(folder: Path, corpus: Corpus, files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    model = build_model(str(folder), corpus, seed=0)
    meter = EvaluationSet(files, share=1.0, max_items=JUDGED, accuracy=True).attach(
        Context(model, torch.device("cpu"), tokenizer=corpus.tokenizer())
    )
    read = meter.read(meter.sums())
    nats, right = read["evaluation"], read["evaluation_accuracy"]
    accuracy = {
        name: (float(right.values[i]), _above_chance(files[name]))
        for i, name in enumerate(files)
        if right.present[i]
    }
    return {"nats": dict(zip(files, (-nats.values).tolist(), strict=True)), "accuracy": accuracy}


def _above_chance(files: Sequence[str]) -> float:
    chances = [
        1 / len(question.answers) for file in files for question in read_questions(Path(file))
    ]
    chance, asked = float(np.mean(chances)), min(JUDGED, len(chances))
    return chance + 2 * float(np.sqrt(chance * (1 - chance) / asked))
