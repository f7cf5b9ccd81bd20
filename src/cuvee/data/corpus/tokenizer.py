"""Tokenizers: train a byte-level BPE or load any `tokenizer.json`, and encode in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import CorpusError
from cuvee.core.files import read_bounded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
)
SMALLEST_VOCAB = 257
_ONE_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CUTS = (re.compile(r"(?<=\S) (?=\S)"), re.compile(r"(?<=\S\n)(?=\S)"))
_SAMPLE = (
    'The  city of water.\nIn 2019, it\'s (old) "new":\n\n  a\tb の水 家\nс новым годом! x=1;\ny=2\n'
    * 2
)
_PIECE_CHARS = 64 << 10
_GROUP_CHARS = 256 << 10


@dataclass(frozen=True)
class Vocabulary:
    """The size of a vocabulary (largest id + 1) and the id of its end-of-text token."""

    size: int
    end_of_text: int


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE with GPT-2's word boundaries and return its `tokenizer.json`.

    The end-of-text token has id 0. The result depends only on `texts` and their order. A small
    sample may yield fewer than `vocab_size` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    text: str = tokenizer.to_str()
    return text


def parse_tokenizer(text: str, place: str) -> Tokenizer:
    """Return the tokenizer in the text of a `tokenizer.json`.

    Raises `CorpusError`, naming `place`, if the text is not one.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # the library raises no narrower type, and panics beside `Exception`
        raise CorpusError(
            f"{place} is no tokenizer.json that the tokenizers library reads: {error}"
        ) from None


def find_vocabulary(tokenizer: Tokenizer, end_of_text: str | None, place: str) -> Vocabulary:
    """Return the size of the vocabulary and the id of the token `end_of_text`.

    By default the token is the first one of `KNOWN_ENDS` that exists. Raises `CorpusError` if there
    is none.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    wanted = (end_of_text,) if end_of_text is not None else KNOWN_ENDS
    found = next((token for token in wanted if token in ids), None)
    if found is None:
        raise CorpusError(
            f"{place} has no end-of-text token {' or '.join(wanted)}: name the token that ends "
            "a document with --end-of-text"
        )
    return Vocabulary(size=max(ids.values()) + 1, end_of_text=ids[found])


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return the (vocab_size,) number of UTF-8 bytes of each token; special tokens have 0.

    The counts are exact for byte-level tokenizers, which use one character per byte. For tokenizers
    that write a space as "▁" and unknown bytes as "<0x1F>", they are exact except for spaces at the
    start and end of a text.
    """
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    bytes_V = np.zeros(vocab_size, dtype=np.int64)
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if byte_level:
            bytes_V[i] = len(token)
        else:
            bytes_V[i] = 1 if _ONE_BYTE.fullmatch(token) else len(token.replace("▁", " ").encode())
    for i, added in tokenizer.get_added_tokens_decoder().items():
        bytes_V[i] = 0 if added.special else len(added.content.encode())
    return bytes_V


class Encoder:
    """Encodes text to token ids without special tokens, except `bos` before and `end_of_text` after
    each document.

    The characters `<|endoftext|>` in a document are encoded like any other text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_of_text: int,
        dtype: np.dtype[Any],
        bos: int | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._start = np.array([] if bos is None else [bos], dtype)
        self._end = np.array([end_of_text], dtype)
        self._dtype = dtype
        self._cuts = tuple(cut for cut in _CUTS if self._is_safe(cut))

    def _is_safe(self, cut: re.Pattern[str]) -> bool:
        """Whether pieces cut at `cut` give the ids of the whole.

        SentencePiece-like tokenizers add a space to each piece.
        """
        places = [match.start() for match in cut.finditer(_SAMPLE)]
        pieces = [_SAMPLE[a:b] for a, b in pairwise([0, *places, len(_SAMPLE)])]
        whole, *parts = (
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(
                [_SAMPLE, *pieces], add_special_tokens=False
            )
        )
        return whole == [i for part in parts for i in part]

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Return the ids of each text, each between the start token, if any, and the end-of-text
        token.

        The tokenizers library needs some hundred bytes of memory per token. Texts are therefore
        encoded in groups. A text longer than 64 Ki characters is cut before a space that begins a
        word or after a line, if this tokenizer has a token boundary there, and is encoded whole
        otherwise.
        """
        ids: list[list[npt.NDArray[Any]]] = [[] for _ in texts]
        for group in _groups(
            (owner, piece)
            for owner, text in enumerate(texts)
            for piece in _pieces(text, self._cuts)
        ):
            encodings = self._tokenizer.encode_batch_fast(
                [piece for _, piece in group], add_special_tokens=False
            )
            for (owner, _), encoding in zip(group, encodings, strict=True):
                ids[owner].append(np.array(encoding.ids, dtype=self._dtype))
        return [np.concatenate([self._start, *parts, self._end]) for parts in ids]


@lru_cache(maxsize=1)
def load_encoder(
    path: Path, sha256: str, end_of_text: int, dtype: str, bos: int | None = None
) -> Encoder:
    """Load the encoder of the tokenizer at `path`, once per process.

    `sha256` is the expected hash of the file.
    """
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256, f"{path} changed during the build"
    tokenizer = parse_tokenizer(content.decode(), str(path))
    return Encoder(tokenizer, end_of_text, np.dtype(dtype), bos)


def read_tokenizer(path: Path) -> str:
    """Return the text of the file `path`. Raises `CorpusError` if it cannot be read."""
    try:
        return read_bounded(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"the tokenizer {path} cannot be read ({error}): give the path of a tokenizer.json"
        ) from error


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit the tokenizers library to one thread in this process."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _pieces(text: str, cuts: Sequence[re.Pattern[str]] = ()) -> Iterator[str]:
    """Cut `text` at some of the places that `cuts` match, into pieces of about 64 Ki characters."""
    start = 0
    while len(text) - start > _PIECE_CHARS and (end := _cut_after(text, start, cuts)):
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_after(text: str, start: int, cuts: Sequence[re.Pattern[str]]) -> int:
    """The last cut in the second half of the piece that begins at `start`, else the first one
    beyond it, else 0.
    """
    half, full = start + _PIECE_CHARS // 2, start + _PIECE_CHARS
    inside = [match.start() for cut in cuts for match in cut.finditer(text, half, full)]
    if inside:
        return max(inside)
    beyond = [match.start() for cut in cuts if (match := cut.search(text, full - 1))]
    return min(beyond, default=0)


def _groups(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    group: list[tuple[int, str]] = []
    held = 0
    for owner, piece in pieces:
        if group and held + len(piece) > _GROUP_CHARS:
            yield group
            group = []
            held = 0
        group.append((owner, piece))
        held += len(piece)
    if group:
        yield group
