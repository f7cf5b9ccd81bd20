"""Raw text in three domains for tests of labelling: source files of the standard library."""

from __future__ import annotations

import gzip
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MODULES = {
    "numbers": ("statistics.py", "fractions.py", "random.py", "heapq.py"),
    "mail": ("email/message.py", "email/header.py", "mailbox.py"),
    "network": ("ftplib.py", "smtplib.py", "http/client.py"),
}


def sections(domain: str) -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    parts = (
        part.strip()
        for file in _MODULES[domain]
        for part in (library / file).read_text().split("\n\n")
    )
    return [part for part in parts if len(part) > 40]


def write_text(folder: Path, most: int | None = None) -> Path:
    """Write {train,valid}/DOMAIN.jsonl.gz with an id and a kind per row, at most `most` rows
    per domain. `numbers` is the target."""
    for domain in _MODULES:
        rows = [
            {
                "text": text,
                "id": f"{domain}-{i}",
                "kind": "Code & docs" if '"""' in text else "Code",
            }
            for i, text in enumerate(sections(domain)[:most])
        ]
        for split, kept in (
            ("train", rows[: -len(rows) // 10]),
            ("valid", rows[-len(rows) // 10 :]),
        ):
            (folder / split).mkdir(parents=True, exist_ok=True)
            with gzip.open(folder / split / f"{domain}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
    (folder / "table.json").write_text('[{"domain": "numbers", "role": "target"}]')
    return folder


def read_text(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Split, domain and row of every document."""
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            for line in file:
                yield path.parent.name, path.name.removesuffix(".jsonl.gz"), json.loads(line)


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
