"""A small corpus of real text from the Python standard library, for tests that train."""

from __future__ import annotations

import json
import sysconfig
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
    """Three domains of about 40 thousand tokens each, a tenth of the documents for validation."""
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
    return build([sources], folder / "corpus", settings, workers=1)
