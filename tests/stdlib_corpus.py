"""A small corpus of real text from the Python standard library, for tests that train."""

from __future__ import annotations

import atexit
import json
import shutil
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build

NAMES = ("algorithms", "mail", "network")
_MODULES = {
    "algorithms": ("heapq.py", "bisect.py", "statistics.py", "fractions.py", "random.py"),
    "mail": ("email/message.py", "email/header.py", "email/utils.py", "mailbox.py"),
    "network": ("socketserver.py", "ftplib.py", "smtplib.py", "http/client.py"),
}


def stdlib_corpus(
    folder: Path, vocab_size: int = 512, targets: tuple[str, ...] = (), test_share: float = 0.0
) -> Corpus:
    """Three domains of about 40 thousand tokens each, a tenth of the documents for validation.

    It is built once in a process. Each call returns a copy, with the sources.
    """
    shutil.copytree(_built(vocab_size, targets, test_share), folder, dirs_exist_ok=True)
    return Corpus.open(folder / "corpus")


@cache
def _built(vocab_size: int, targets: tuple[str, ...], test_share: float) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cuvee-corpus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name, files in _MODULES.items():
        sections = [part for file in files for part in (library / file).read_text().split("\n\n\n")]
        rows = (json.dumps({"text": section}) for section in sections)
        (sources / f"{name}.jsonl").write_text("\n".join(rows))
    settings = BuildSettings(
        vocab_size=vocab_size, valid_share=0.1, test_share=test_share, targets=targets
    )
    build([sources], folder / "corpus", settings, workers=1)
    return folder


def corpus_with_more(folder: Path, corpus: Corpus) -> Corpus:
    """A corpus of the same tokenizer with the domain `mail` again, and one more, `tools`."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name, files in {
        "mail": _MODULES["mail"],
        "tools": ("argparse.py", "logging/__init__.py"),
    }.items():
        sections = [part for file in files for part in (library / file).read_text().split("\n\n\n")]
        rows = (json.dumps({"text": section}) for section in sections)
        (sources / f"{name}.jsonl").write_text("\n".join(rows))
    tokenizer = corpus.folder / "tokenizer.json"
    settings = BuildSettings(tokenizer=tokenizer, valid_share=0.1, test_share=0.0)
    return build([sources], folder / "corpus", settings, workers=1)
