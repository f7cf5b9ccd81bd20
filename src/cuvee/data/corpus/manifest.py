"""`manifest.json` describes a corpus. It is written last, so a corpus that has one is complete."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from cuvee.core.domain import Domain, Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import read_json, write_atomic
from cuvee.core.mixture import NAME_PATTERN

FORMAT: Final = 2  # format 1 has no test split
NAME = "manifest.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ShardEntry(_Entry):
    """The shard of one domain and split.

    `path` is the common path of the `.bin` and `.idx` file without the ending. It is relative to
    the corpus folder, or absolute. `text_bytes` is None if the shard was imported without a
    tokenizer.
    """

    path: str
    documents: Count
    tokens: Annotated[int, Field(gt=0)]
    text_bytes: Count | None
    bin_bytes: Count
    idx_bytes: Count
    bin_sha256: Sha256
    idx_sha256: Sha256

    @field_validator("path")
    @classmethod
    def _stay_inside(cls, path: str) -> str:
        if not path or ".." in PurePosixPath(path).parts or "\0" in path:
            raise ValueError("a shard's path must not be empty or lead out of the corpus folder")
        return path


class DomainEntry(_Entry):
    """One domain. `valid` and `test` are None if it has no such documents."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
    role: Role
    scores: dict[str, float]
    train: ShardEntry
    valid: ShardEntry | None
    test: ShardEntry | None = None

    @property
    def shards(self) -> list[ShardEntry]:
        """The shards that there are."""
        return [shard for shard in (self.train, self.valid, self.test) if shard]

    def to_domain(self) -> Domain:
        return Domain(self.name, self.train.tokens, self.role, self.scores)


class TokenizerEntry(_Entry):
    """The tokenizer. `sha256` is the hash of the corpus's tokenizer.json, None without one.

    `bos` is the id that begins every document, None if documents begin with their text.
    """

    sha256: Sha256 | None
    vocab_size: Annotated[int, Field(gt=0, le=2**31)]
    end_of_text: Count
    bos: Count | None = None

    @model_serializer(mode="wrap")
    def _without_absent_bos(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Corpora without it are written and identified as they have always been."""
        content: dict[str, Any] = write(self)
        if self.bos is None:
            content.pop("bos", None)
        return content


class SourceEntry(_Entry):
    """A file that text was read from. `digest` is its sha256."""

    label: str
    size: Count
    digest: str


class Manifest(_Entry):
    """The complete description of a corpus, without its tokens.

    `built_from` identifies the sources and settings. `bad_rows` counts the rows that were left out.
    """

    format: Literal[1, 2] = FORMAT
    dtype: Annotated[str, Field(pattern="^(uint8|int8|int16|int32|int64|uint16)$")]
    tokenizer: TokenizerEntry
    domains: Annotated[tuple[DomainEntry, ...], Field(min_length=1)]
    sources: tuple[SourceEntry, ...]
    bad_rows: Count
    built_from: Sha256

    @field_validator("domains")
    @classmethod
    def _unique(cls, domains: tuple[DomainEntry, ...]) -> tuple[DomainEntry, ...]:
        if len({domain.name for domain in domains}) != len(domains):
            raise ValueError("domain names must be unique")
        return domains

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that a stream depends on.

        That is the domains in order, the hashes of their shards and the tokenizer. A test split
        and a start token count where there is one.
        """
        return digest(
            {
                "domains": [
                    [
                        domain.name,
                        [
                            [s.bin_sha256, s.idx_sha256] if s else None
                            for s in (
                                domain.train,
                                domain.valid,
                                *([domain.test] if domain.test else []),
                            )
                        ],
                    ]
                    for domain in self.domains
                ],
                "tokenizer": [
                    self.tokenizer.sha256,
                    self.tokenizer.vocab_size,
                    self.tokenizer.end_of_text,
                    *([self.tokenizer.bos] if self.tokenizer.bos is not None else []),
                ],
            }
        )


def digest(content: Any) -> str:
    """Return the sha256 of `content` as JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with its fingerprint and checksum, atomically."""
    content = manifest.model_dump(mode="json")
    content |= {"fingerprint": manifest.fingerprint, "checksum": digest(content)}
    write_atomic(folder / NAME, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest in `folder`.

    Raises `CorpusError` if it is missing, damaged, altered or of a newer format.
    """
    path = folder / NAME
    remedy = f"restore it, or remove {folder} and build the corpus again"
    try:
        content = read_json(path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorpusError(f"{path} is damaged: it is not JSON; {remedy}") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CorpusError(f"{path} is no corpus manifest: it has no format number; {remedy}")
    if content["format"] > FORMAT:
        raise CorpusError(
            f"{path} has format {content['format']}, but this version of cuvee reads up to "
            f"{FORMAT}: upgrade cuvee"
        )
    fingerprint, checksum = content.pop("fingerprint", None), content.pop("checksum", None)
    try:
        intact = checksum == digest(content)
        manifest = Manifest.model_validate_json(json.dumps(content))
    except (ValidationError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CorpusError(f"{path} is damaged: {reason}; {remedy}") from error
    if not intact or fingerprint != manifest.fingerprint:
        raise CorpusError(f"{path} was altered after it was written; {remedy}")
    return manifest
