"""The demo's questions: pieces of held-out text that the model has to continue.

They do not overlap with the text of the final validation.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cuvee.core.files import write_folder
from cuvee.data.corpus.corpus import Corpus
from cuvee.training.validation import Validation

FIELDS = {"source": "general", "target": "target"}
_MOST = 48  # questions per domain


def write_questions(corpus: Corpus, folder: Path, validation: Validation) -> dict[str, list[str]]:
    """Write one JSONL file per domain; return the paths by field, for `evaluation`.

    Existing files are kept. A question is a window of the `valid` split inside one document that
    `validation` does not read. The first quarter of its tokens is the prompt. A domain without such
    a window has no file.
    """

    def fill(temporary: Path) -> None:
        for name in corpus.names:
            if rows := _questions(corpus, name, validation):
                (temporary / f"{name}.jsonl").write_text(
                    "".join(json.dumps(row) + "\n" for row in rows)
                )

    if not folder.is_dir():
        write_folder(folder, fill)
    found: dict[str, list[str]] = {field: [] for field in FIELDS.values()}
    for domain in corpus.domains:
        if (path := folder / f"{domain.name}.jsonl").exists():
            found[FIELDS[domain.role]].append(str(path))
    return found


def _questions(corpus: Corpus, name: str, validation: Validation) -> list[dict[str, str]]:
    if not corpus.has(name, "valid"):
        return []
    tokens = corpus.pool(name, "valid").tokens
    length = validation.length
    free = np.setdiff1d(np.arange(len(tokens) // length), validation.windows(len(tokens)))
    windows = [tokens[i * length : (i + 1) * length].tolist() for i in free]
    whole = [window for window in windows if corpus.end_of_text not in window]
    chosen = [whole[i * len(whole) // _MOST] for i in range(_MOST)] if len(whole) > _MOST else whole
    decode = corpus.tokenizer().decode
    cut = length // 4
    rows = [{"prompt": decode(window[:cut]), "answer": decode(window[cut:])} for window in chosen]
    return [row for row in rows if row["prompt"] and row["answer"]]
