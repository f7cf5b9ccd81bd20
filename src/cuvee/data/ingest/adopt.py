"""Import shards that another program wrote. A manifest is added, and parts are joined.

If there is a tokenizer, the bytes of text are summed over all tokens. Lexical diversity is measured
on up to 256 evenly spaced documents, which are decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import Split
from cuvee.core.errors import CorpusError
from cuvee.core.files import write_atomic
from cuvee.data.corpus.bos import find_bos
from cuvee.data.corpus.corpus import TOKENIZER, Corpus
from cuvee.data.corpus.manifest import (
    DomainEntry,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    digest,
    write_manifest,
)
from cuvee.data.corpus.names import checked_renames
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.corpus.shards import (
    bin_path,
    file_size,
    idx_path,
    open_shard,
    read_index,
    scan_shard,
)
from cuvee.data.corpus.tokenizer import (
    Vocabulary,
    find_vocabulary,
    parse_tokenizer,
    read_tokenizer,
    token_bytes,
)
from cuvee.data.ingest.build_folder import is_built
from cuvee.data.ingest.quality import domain_mtld
from cuvee.data.ingest.shards.finding import Found, find_shards
from cuvee.data.ingest.shards.joining import join_shards
from cuvee.data.ingest.sources.raw import choose_roles, read_tables, rename_roles

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SAMPLE_DOCUMENTS = 256
_SAMPLE_TOKENS = 4096
_CHUNK_TOKENS = 1 << 22


def adopt(
    places: Sequence[Path | str],
    folder: Path | str,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    end_of_text: str | int | None = None,
    targets: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> Corpus:
    """Write the manifest of a corpus over existing shards into `folder`.

    `folder` may be the folder that holds the shards. `tokenizer` is a tokenizer.json, which is
    copied to `folder`; without it, `vocab_size` and the id `end_of_text` are required. Every id
    must be in the vocabulary, and every document must end with the end-of-text token. The start
    token of `tokenizer` is recorded if every document begins with it. A domain of several parts is
    copied into one shard in `folder`. `rename` gives new names by old name. Warns of files that are
    not read. Raises `CorpusError`, or `ShardError` for wrong files.
    """
    folder = Path(folder)
    renames = checked_renames(rename or {})
    finding = find_shards(places).renamed(renames)
    shards = finding.shards
    for place in places:
        if not find_shards([place]).shards:
            raise CorpusError(
                f"{place} holds no .bin/.idx pairs: shards and text do not go into one corpus"
            )
    _check_keys(shards)
    text = read_tokenizer(tokenizer) if tokenizer else None
    vocabulary = _vocabulary(text, str(tokenizer), vocab_size, end_of_text)
    finding.remark()
    dtype = _check_parts(shards, vocabulary)
    bos = _start_token(text, tokenizer)
    entries: dict[tuple[str, Split], ShardEntry] = {}
    scores: dict[str, dict[str, float]] = {}
    for shard in shards:
        prefix = _whole(shard, folder)
        pool = open_shard(prefix, shard.name)
        if bos is not None and (pool.tokens[pool.document_starts] != bos).any():
            bos = None
        entry = _entry(prefix, pool, vocabulary, folder)
        scores.setdefault(shard.name, {})
        if text is not None:
            known = parse_tokenizer(text, str(tokenizer))
            entry = entry.model_copy(
                update={"text_bytes": _text_bytes(pool, token_bytes(known, vocabulary.size))}
            )
            diversity = domain_mtld(_decode(pool, known))
            if shard.split == "train" and diversity is not None:
                scores[shard.name] = {"mtld": diversity}
        entries[shard.name, shard.split] = entry
    names = sorted(scores)
    roles = choose_roles(names, rename_roles(read_tables(map(Path, places)), renames), targets)
    domains = tuple(
        DomainEntry(
            name=name,
            role=roles[name],
            scores=scores[name],
            train=entries[name, "train"],
            valid=entries.get((name, "valid")),
            test=entries.get((name, "test")),
        )
        for name in names
    )
    _write(folder, domains, vocabulary, bos, text, dtype)
    return Corpus.open(folder)


def _check_keys(shards: Sequence[Found]) -> None:
    keys = [(shard.name, shard.split) for shard in shards]
    if not keys:
        raise CorpusError("no shards given: name .bin/.idx files, or a folder of them")
    if twice := sorted({name for name, split in keys if keys.count((name, split)) > 1}):
        raise CorpusError(
            f"more than one shard of {', '.join(twice)}: rename them so that each domain has one"
        )
    if missing := sorted({name for name, split in keys if (name, "train") not in keys}):
        raise CorpusError(
            f"no training shard of {', '.join(missing)}: add it to train/, or remove it from "
            "valid/ and test/"
        )


def _write(
    folder: Path,
    domains: tuple[DomainEntry, ...],
    vocabulary: Vocabulary,
    bos: int | None,
    text: str | None,
    dtype: str,
) -> None:
    content = text.encode() if text is not None else None
    tokenizer = TokenizerEntry(
        sha256=hashlib.sha256(content).hexdigest() if content is not None else None,
        vocab_size=vocabulary.size,
        end_of_text=vocabulary.end_of_text,
        bos=bos,
    )
    built_from = digest([tokenizer.model_dump(), *map(_without_absent_test, domains)])
    if is_built(folder, built_from):
        return
    kept = folder / TOKENIZER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if content is not None and not kept.exists():
            write_atomic(kept, content)
        if content is not None and kept.read_bytes() != content:
            raise CorpusError(
                f"{kept} is a different tokenizer: pass that one, or choose another folder"
            )
        manifest = Manifest(
            dtype=dtype,
            tokenizer=tokenizer,
            domains=domains,
            sources=(),
            bad_rows=0,
            built_from=built_from,
        )
        write_manifest(folder, manifest)
    except OSError as error:
        raise CorpusError(
            f"cannot write to {folder}: {error.strerror}; choose another with -o"
        ) from error


def _without_absent_test(domain: DomainEntry) -> dict[str, Any]:
    """The entry as corpora without a test split have always been identified."""
    return domain.model_dump(exclude=None if domain.test else {"test"})


def _vocabulary(
    text: str | None, place: str, vocab_size: int | None, end_of_text: str | int | None
) -> Vocabulary:
    if text is not None:
        if isinstance(end_of_text, int):
            raise CorpusError(
                f"end_of_text is {end_of_text}: with a tokenizer give the token, not its id"
            )
        return find_vocabulary(parse_tokenizer(text, place), end_of_text, place)
    if vocab_size is None or end_of_text is None:
        raise CorpusError(
            "shards do not record their vocabulary: give the tokenizer.json that wrote them "
            "(--tokenizer), or --vocab-size and the id of the end-of-text token (--end-of-text)"
        )
    try:
        end = int(end_of_text)
    except ValueError:
        raise CorpusError(
            f"end_of_text is {end_of_text!r}: without a tokenizer give the id of the token"
        ) from None
    if not 0 <= end < vocab_size:
        raise CorpusError(
            f"end_of_text is {end}: it must lie within the vocabulary of {vocab_size}"
        )
    return Vocabulary(vocab_size, end)


def _start_token(text: str | None, tokenizer: Path | None) -> int | None:
    """Return the id of the tokenizer's start token, or None if it has none."""
    if text is None or tokenizer is None:
        return None
    try:
        return find_bos(parse_tokenizer(text, str(tokenizer)), tokenizer, wanted=True)
    except CorpusError:
        return None


def _check_parts(shards: Sequence[Found], vocabulary: Vocabulary) -> str:
    """Check every id and end of document before anything is copied, and return the type of ids."""
    dtypes: set[str] = set()
    for shard in shards:
        several = len(shard.parts) > 1
        for part in shard.parts:
            index = read_index(part)
            dtypes.add(index.dtype.name)
            if index.tokens or not several:  # one part of several may be empty
                _check_ends(open_shard(part, part.name), part, vocabulary.end_of_text)
            if several:  # a shard of its own is read in full when it is hashed
                scan_shard(part, index.dtype, vocabulary.size)
    if len(dtypes) > 1:
        raise CorpusError(
            f"the shards hold {' and '.join(sorted(dtypes))}: write all with one type of token ids"
        )
    return dtypes.pop()


def _whole(shard: Found, folder: Path) -> Path:
    """Return the prefix of the shard, whose parts are joined in `folder` if there are several."""
    if len(shard.parts) == 1:
        return shard.parts[0]
    return join_shards(shard.parts, folder, f"{shard.split}/{shard.name}")


def _check_ends(pool: TokenPool, prefix: Path, end_of_text: int) -> None:
    ends_D = np.append(pool.document_starts[1:], len(pool)) - 1
    wrong = np.flatnonzero(pool.tokens[ends_D] != end_of_text)
    if len(wrong):
        first = int(wrong[0])
        raise CorpusError(
            f"{bin_path(prefix)}: document {first} ends with token "
            f"{int(pool.tokens[ends_D[first]])}, not with the "
            f"end-of-text token {end_of_text}: name the right one with --end-of-text, or write "
            "the shards again with Megatron's --append-eod"
        )


def _entry(prefix: Path, pool: TokenPool, vocabulary: Vocabulary, folder: Path) -> ShardEntry:
    bin_sha, idx_sha = scan_shard(prefix, pool.tokens.dtype, vocabulary.size)
    path = prefix.resolve()
    home = folder.resolve()
    return ShardEntry(
        path=str(path.relative_to(home) if path.is_relative_to(home) else path),
        documents=len(pool.document_starts),
        tokens=len(pool),
        text_bytes=None,
        bin_bytes=file_size(bin_path(prefix)),
        idx_bytes=file_size(idx_path(prefix)),
        bin_sha256=bin_sha,
        idx_sha256=idx_sha,
    )


def _text_bytes(pool: TokenPool, bytes_V: npt.NDArray[np.int64]) -> int:
    chunks = (
        pool.tokens[start : start + _CHUNK_TOKENS] for start in range(0, len(pool), _CHUNK_TOKENS)
    )
    return sum(int(bytes_V[chunk].sum()) for chunk in chunks)


def _decode(pool: TokenPool, tokenizer: Tokenizer) -> list[str]:
    """Return the text of documents spread evenly over the shard."""
    starts_D = pool.document_starts
    ends_D = np.append(starts_D[1:], len(pool))
    chosen = np.unique(np.linspace(0, len(starts_D) - 1, _SAMPLE_DOCUMENTS).astype(np.int64))
    spans = [
        (int(starts_D[i]), min(int(ends_D[i]), int(starts_D[i]) + _SAMPLE_TOKENS)) for i in chosen
    ]
    texts: list[str] = tokenizer.decode_batch(
        [pool.tokens[a:b].tolist() for a, b in spans], skip_special_tokens=True
    )
    return texts
