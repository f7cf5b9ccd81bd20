"""Training, loading and encoding, with text that tries to break out of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cuvee.core.errors import CorpusError
from cuvee.data.corpus import tokenizer as module
from cuvee.data.corpus.tokenizer import (
    END_OF_TEXT,
    Encoder,
    find_vocabulary,
    parse_tokenizer,
    read_tokenizer,
    train_tokenizer,
)

TEXTS = [Path(json.__file__).read_text(), Path(json.decoder.__file__).read_text()]
TRAINED = train_tokenizer(TEXTS, 400)
UINT16 = np.dtype("<u2")


def encoder() -> tuple[Encoder, Tokenizer]:
    return Encoder(parse_tokenizer(TRAINED, "here"), 0, UINT16), parse_tokenizer(TRAINED, "here")


def test_training_is_deterministic_and_knows_every_byte() -> None:
    assert train_tokenizer(TEXTS, 400) == TRAINED
    tokenizer = parse_tokenizer(TRAINED, "here")
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert find_vocabulary(tokenizer, None, "here") == module.Vocabulary(400, 0)
    assert (
        parse_tokenizer(train_tokenizer(["a b"], 4096), "here").get_vocab_size() == 257
    )  # nothing else to learn


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "Ünïcödé 漢字 🍷\r\n\t ",
        "\x01\x7f\u2028",
        " ",
        "def f(x):\n    return x  # twice\n",
        "e\u0301 \ufdfa",
    ],
)
def test_any_text_comes_back(text: str) -> None:
    ids, tokenizer = encoder()[0].encode([text])[0], encoder()[1]
    assert ids[-1] == 0
    assert ids.dtype == UINT16
    assert tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


def test_a_special_token_written_in_a_document_is_text() -> None:
    ids = encoder()[0].encode([f"before {END_OF_TEXT} after"])[0]
    assert (ids == 0).sum() == 1
    assert ids[-1] == 0


def test_long_documents_are_cut_where_it_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join(TEXTS)
    whole = encoder()[0].encode([text, "short", text])
    monkeypatch.setattr(module, "_PIECE_CHARS", 300)
    monkeypatch.setattr(module, "_GROUP_CHARS", 700)
    for ids, same in zip(encoder()[0].encode([text, "short", text]), whole, strict=True):
        assert ids.tolist() == same.tolist()
    unbroken = "x" * 10_000  # has no place to cut, and is cut all the same
    ids, tokenizer = encoder()[0].encode([unbroken])[0], encoder()[1]
    assert tokenizer.decode(ids[:-1].tolist()) == unbroken


def test_a_foreign_tokenizer_adds_and_drops_nothing() -> None:
    foreign = Tokenizer(
        models.WordLevel({"[UNK]": 0, "one": 1, "two": 2, "</s>": 3, "[CLS]": 9}, unk_token="[UNK]")
    )
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 9)]
    )
    foreign.enable_truncation(2)
    foreign.enable_padding(length=8)
    loaded = parse_tokenizer(foreign.to_str(), "here")
    vocabulary = find_vocabulary(loaded, None, "here")
    assert vocabulary == module.Vocabulary(10, 3)
    ids = Encoder(loaded, vocabulary.end_of_text, UINT16).encode(["one two one", "two"])
    assert [row.tolist() for row in ids] == [[1, 2, 1, 3], [2, 3]]


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    plain = Tokenizer(models.WordLevel({"one": 0, "<stop>": 1}, unk_token="one"))
    with pytest.raises(
        CorpusError, match=r"has no end-of-text token <\|endoftext\|> or .*--end-of-text"
    ):
        find_vocabulary(plain, None, "here")
    assert find_vocabulary(plain, "<stop>", "here").end_of_text == 1
    with pytest.raises(CorpusError, match="has no end-of-text token <end>"):
        find_vocabulary(plain, "<end>", "here")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"model": {"type": "BPE"}}', "[" * 10_000, TRAINED[:-2]]
)
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(CorpusError, match=r"here is no tokenizer\.json"):
        parse_tokenizer(text, "here")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        read_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "binary.json").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match="cannot be read"):
        read_tokenizer(tmp_path / "binary.json")
