"""`Corpus`: ordered, named pools of tokens on disk, described and hashed in a manifest.

The files of a corpus in the folder DIR:

    DIR/manifest.json               the description, with the hash of every file
    DIR/tokenizer.json              the tokenizer, if there is one
    DIR/train/NAME.bin, NAME.idx    training tokens of one domain in Megatron-LM's format
    DIR/valid/NAME.bin, NAME.idx    validation tokens of one domain
    DIR/test/NAME.bin, NAME.idx     test tokens of one domain
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.core.domain import Domain, Split
from cuvee.core.errors import CorpusError, ShardError
from cuvee.core.files import read_bounded
from cuvee.data.corpus.manifest import NAME, DomainEntry, Manifest, ShardEntry, read_manifest
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.corpus.shards import bin_path, file_size, idx_path, open_shard, scan_shard
from cuvee.data.corpus.tokenizer import parse_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_SPARE_FILES = 512


class Corpus:
    """K domains in a fixed order. A domain's tokens are memory-mapped when they are first needed.

    Example:

        corpus = Corpus.open("corpus")
        corpus.names                # ("code", "web")
        corpus.pool("web").tokens   # (N,) token ids
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.domains: tuple[Domain, ...] = tuple(entry.to_domain() for entry in manifest.domains)
        self.names: tuple[str, ...] = tuple(domain.name for domain in self.domains)
        self.fingerprint: str = manifest.fingerprint
        self.vocab_size: int = manifest.tokenizer.vocab_size
        self.end_of_text: int = manifest.tokenizer.end_of_text
        self._entries = {entry.name: entry for entry in manifest.domains}
        self._pools: dict[tuple[str, Split], TokenPool] = {}

    @classmethod
    def open(cls, folder: Path | str) -> Corpus:
        """Open the corpus in `folder`; check the manifest and all file sizes, but read no tokens.

        Raises `CorpusError` if there is no complete corpus, and `ShardError` if a shard is missing
        or has another size than the manifest records.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CorpusError(
                f"there is no corpus folder {folder}: `cuvee corpus build SRC -o {folder}` "
                "builds one"
            )
        if not (folder / NAME).exists():
            hint = (
                "its build was interrupted: run the same `cuvee corpus build` again to finish it"
                if (folder / ".build").exists()
                else f"it is no corpus: `cuvee corpus build {folder} -o CORPUS` builds one "
                "from text in it"
            )
            raise CorpusError(f"{folder} has no {NAME}; {hint}")
        corpus = cls(folder, read_manifest(folder))
        for _, shard in corpus._shards():
            corpus._check_sizes(shard)
        return corpus

    def __repr__(self) -> str:
        sizes = ", ".join(f"{domain.name} {domain.tokens:,}" for domain in self.domains)
        return f"Corpus({self.folder}: {sizes} tokens)"

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle or a copy opens the same folder again; it contains no tokens."""
        return _reopen, (Path(os.path.abspath(self.folder)), self.fingerprint)

    @property
    def vocabulary(self) -> str:
        """Names the meaning of token ids: corpora of one tokenizer have the same."""
        entry = self.manifest.tokenizer
        return f"{entry.sha256}/{entry.vocab_size}/{entry.end_of_text}/{entry.bos}"

    def companion(self, folder: Path | str, fingerprint: str) -> Corpus:
        """Open another corpus, whose domains may join those of this one in a run.

        Raises `CorpusError` if it has another fingerprint or another tokenizer.
        """
        other = Corpus.open(folder)
        if other.fingerprint != fingerprint:
            raise CorpusError(f"{folder} was built again since: it is {other.fingerprint} now")
        if other.vocabulary != self.vocabulary:
            raise CorpusError(
                f"{folder} has another tokenizer than {self.folder}: build it with `cuvee corpus "
                f"build … --tokenizer {self.folder / TOKENIZER}`"
            )
        return other

    def has(self, name: str, split: Split) -> bool:
        """Return whether domain `name` has tokens in `split`. Every domain has training tokens."""
        return getattr(self._entry(name), split) is not None

    def without_test(self) -> Corpus:
        """Return this corpus, with the same fingerprint, without its test split.

        Methods and their proxy runs get it, so that they cannot read what final models are tested
        on.
        """
        entries = [entry.model_copy(update={"test": None}) for entry in self.manifest.domains]
        hidden = Corpus(self.folder, self.manifest.model_copy(update={"domains": tuple(entries)}))
        hidden.fingerprint = self.fingerprint
        return hidden

    def pool(self, name: str, split: Split = "train") -> TokenPool:
        """Return the tokens of one domain and split.

        Raises `CorpusError` if the domain has none, and `ShardError` if its files differ from the
        manifest.
        """
        if (name, split) not in self._pools:
            entry = self._shard(name, split)
            _allow_open_files(len(self.manifest.domains) * 3)
            self._check_sizes(entry)
            prefix = self.folder / entry.path
            pool = open_shard(prefix, name)
            found = (len(pool), len(pool.document_starts), pool.tokens.dtype.name)
            expected = (entry.tokens, entry.documents, self.manifest.dtype)
            if found != expected:
                raise ShardError(
                    f"{idx_path(prefix)} has {found[0]} tokens in {found[1]} documents of "
                    f"{found[2]}, but the manifest "
                    f"says {expected[0]} in {expected[1]} of {expected[2]}: {self._remedy}"
                )
            self._pools[name, split] = pool
        return self._pools[name, split]

    def bytes_per_token(self, name: str, split: Split = "train") -> float:
        """Return the mean UTF-8 bytes of text per token, which converts losses to bits per byte.

        Raises `CorpusError` if the shards were imported without a tokenizer.
        """
        entry = self._shard(name, split)
        if entry.text_bytes is None:
            raise CorpusError(
                f"bytes per token of {name} are unknown: its shards were imported without a "
                "tokenizer.json"
            )
        return entry.text_bytes / entry.tokens

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that wrote the shards.

        Raises `CorpusError` if it is missing or was altered.
        """
        path = self.folder / TOKENIZER
        if self.manifest.tokenizer.sha256 is None:
            raise CorpusError(
                f"{self.folder} has no tokenizer: its shards were imported without a tokenizer.json"
            )
        try:
            content = read_bounded(path)
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror}; {self._remedy}") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.tokenizer.sha256:
            raise CorpusError(f"{path} was altered after the corpus was built; {self._remedy}")
        return parse_tokenizer(content.decode(), str(path))

    def verify(self, progress: Callable[[float], None] | None = None) -> None:
        """Read all files and check their hashes, token ids and indices.

        Calls `progress` with the share that is done. Raises `ShardError` or `CorpusError` at the
        first file that is wrong.
        """
        if self.manifest.tokenizer.sha256 is not None:
            self.tokenizer()
        shards = self._shards()
        for i, (name, entry) in enumerate(shards):
            self._check_sizes(entry)
            prefix = self.folder / entry.path
            found = scan_shard(prefix, np.dtype(self.manifest.dtype), self.vocab_size)
            expected = (entry.bin_sha256, entry.idx_sha256)
            for path, sha, right in zip(
                (bin_path(prefix), idx_path(prefix)), found, expected, strict=True
            ):
                if sha != right:
                    raise ShardError(
                        f"{path} has sha256 {sha}, expected {right}: it was altered; {self._remedy}"
                    )
            open_shard(prefix, name)
            if progress:
                progress((i + 1) / len(shards))

    @property
    def _remedy(self) -> str:
        return f"restore it, or remove {self.folder} and build the corpus again"

    def _entry(self, name: str) -> DomainEntry:
        if name not in self._entries:
            raise CorpusError(
                f"no domain {name!r} in {self.folder}; it has {', '.join(self.names)}"
            )
        return self._entries[name]

    def _shard(self, name: str, split: Split) -> ShardEntry:
        entry: ShardEntry | None = getattr(self._entry(name), split)
        if entry is None:
            raise CorpusError(
                f"{name} has no {split} documents in {self.folder}: build the corpus with some, "
                "or leave the domain out"
            )
        return entry

    def _shards(self) -> Sequence[tuple[str, ShardEntry]]:
        entries = self.manifest.domains
        return [(entry.name, shard) for entry in entries for shard in entry.shards]

    def _check_sizes(self, shard: ShardEntry) -> None:
        prefix = self.folder / shard.path
        for path, expected in (
            (bin_path(prefix), shard.bin_bytes),
            (idx_path(prefix), shard.idx_bytes),
        ):
            if (size := file_size(path)) != expected:
                raise ShardError(
                    f"{path} has {size} bytes, expected {expected}: it was truncated or replaced; "
                    f"{self._remedy}"
                )


def _reopen(folder: Path, fingerprint: str) -> Corpus:
    corpus = Corpus.open(folder)
    if corpus.fingerprint != fingerprint:
        raise CorpusError(
            f"{folder} was built again after this object was pickled or copied: open the corpus "
            "again"
        )
    return corpus


def _allow_open_files(count: int) -> None:
    """Raise the limit on open files if it is too low for `count` memory mappings.

    A memory mapping keeps its file open, and a corpus can have a thousand domains.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
