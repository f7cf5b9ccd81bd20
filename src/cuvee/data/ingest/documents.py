"""Documents: the text in a row with its domain and split, or the reason why the row is unusable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from cuvee.core.domain import Split
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.names import RULE, is_domain_name, rename_hint, renamed
from cuvee.data.ingest.columns.bounds import MAX_ROW_BYTES
from cuvee.data.ingest.reading import Bad, Block, Fields, Row

_ABSENT = object()


@dataclass(frozen=True)
class Rules:
    """How rows become documents: the columns to read, the shares of documents that are held out, and
    the new names of domains that a column gives.
    """

    text_column: str
    domain_column: str | None
    valid_share: float
    test_share: float = 0.0
    renames: Mapping[str, str] = field(default_factory=dict)


def check_shares(valid_share: float, test_share: float) -> None:
    """Raises `CorpusError` unless both are at least 0 and some documents are left for training."""
    for name, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise CorpusError(f"{name} is {share}: it must be at least 0 and less than 1")
    if valid_share + test_share >= 1:
        raise CorpusError(
            f"valid_share is {valid_share} and test_share {test_share}: their sum must be less than 1"
        )


class Document(NamedTuple):
    """A document. `bytes` is its size in UTF-8; `rank` is 64 bits of its hash, for sampling."""

    domain: str
    split: Split
    text: str
    bytes: int
    rank: int


def read_documents(block: Block, rules: Rules) -> Iterator[tuple[int, Document | Bad]]:
    """Yield (line number, document or bad row) for each row of a block, skipping blank lines."""
    for line, row in enumerate(block.rows, block.first):
        if isinstance(row, bytes) and not row.strip():
            continue
        yield line, _document(row, block, rules)


def _document(row: Row, block: Block, rules: Rules) -> Document | Bad:
    fields = _parse(row, block, rules) if isinstance(row, bytes) else row
    if isinstance(fields, Bad):
        return fields
    domain = block.domain
    if rules.domain_column is not None:
        domain = renamed(fields.domain, rules.renames)
    if not is_domain_name(domain):
        return Bad(f"the domain is {shown(domain)}: {RULE}{rename_hint(domain)}")
    text = fields.text
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if not isinstance(text, str):
            return Bad(f"{block.text_column!r} is {shown(text)}, not text")
        content = text.encode()
    except UnicodeDecodeError:
        return Bad("not UTF-8")
    except UnicodeEncodeError:
        return Bad("text with half a surrogate pair")
    if len(content) > MAX_ROW_BYTES:
        return Bad(f"longer than {MAX_ROW_BYTES >> 20} MiB")
    if not text.strip():
        return Bad("empty text")
    if "\0" in text:
        return Bad("text with a NUL character")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    split = block.split
    if split is None:
        split = _split_of(int.from_bytes(digest[:8], "big"), rules)
    return Document(domain, split, text, len(content), int.from_bytes(digest[8:], "big"))


def _split_of(number: int, rules: Rules) -> Split:
    """Return the split of a document from 64 bits of its hash.

    `test_share` does not change which are for validation.
    """
    if number < rules.valid_share * 2**64:
        return "valid"
    return "test" if number < (rules.valid_share + rules.test_share) * 2**64 else "train"


def _parse(line: bytes, block: Block, rules: Rules) -> Fields | Bad:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Bad("not UTF-8")
    except RecursionError:
        return Bad("nested too deeply")
    except ValueError:
        return Bad("not JSON")
    if not isinstance(row, dict):
        return Bad(f"not an object but {shown(row)}")
    text = look_up(row, block.text_column)
    domain = look_up(row, rules.domain_column) if rules.domain_column else None
    for value, column, option in (
        (text, block.text_column, "--text-column"),
        (domain, rules.domain_column, "--domain-column"),
    ):
        if value is _ABSENT:
            keys = ", ".join(shown(key) for key in islice(_columns(row), 8))
            return Bad(f"no key {column!r}; the row has {keys or 'none'}: choose with {option}")
    return Fields(text, domain)


def _columns(row: Mapping[str, Any], before: str = "", depth: int = 4) -> Iterator[str]:
    """Yield the keys of a row; those in an object are paths such as `meta.text`."""
    for key, value in row.items():
        if isinstance(value, dict) and value and depth:
            yield from _columns(value, f"{before}{key}.", depth - 1)
        else:
            yield f"{before}{key}"


def look_up(row: Mapping[str, Any], column: str) -> Any:
    """Return the value under the key `column`, else the field that it names as a path, as in
    `meta.text`.
    """
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def shown(value: Any) -> str:
    """Return `value` for a message: short, and without control characters."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)[:60]
    return ascii(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"
