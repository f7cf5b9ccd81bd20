"""The start token of documents: when there is one, which one, and where it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.bos import find_bos
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.manifest import TokenizerEntry
from cuvee.data.ingest.adopt import adopt
from cuvee.data.ingest.build import BuildSettings, build

VOCABULARY = {"[UNK]": 0, "one": 1, "two": 2, "</s>": 3, "<s>": 4, "<begin>": 5}


def tokenizer(folder: Path, template: str | None = None, **config: Any) -> Path:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.enable_padding(length=8)
    if template:
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 4), ("</s>", 3), ("<begin>", 5)]
        )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(made.to_str())
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def built(tmp_path: Path, place: Path | None, bos: bool | None, folder: str = "corpus") -> Corpus:
    rows = [{"text": "one two"}, {"text": "two"}]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = BuildSettings(tokenizer=place, bos=bos, valid_share=0, test_share=0, vocab_size=300)
    return build([tmp_path / "web.jsonl"], tmp_path / folder, settings, workers=1)


@pytest.mark.parametrize(
    ("template", "config", "wanted", "expected"),
    [
        (None, {}, None, None),
        (None, {}, True, 4),
        ("<begin> $A", {}, None, 5),
        ("<begin> $A </s>", {}, None, 5),
        ("$A </s>", {}, None, None),
        ("<begin> $A", {}, False, None),
        ("<begin> $A", {"add_bos_token": False}, None, None),
        ("<begin> $A", {"add_bos_token": None}, None, 5),
        (None, {"add_bos_token": True, "bos_token": "<begin>"}, None, 5),
        (None, {"add_bos_token": True, "bos_token": {"content": "<begin>"}}, None, 5),
        (None, {"bos_token": "<begin>"}, None, None),
        (None, {"add_bos_token": False, "bos_token": "</s>"}, True, 3),
        ("<begin> $A", {"bos_token": None}, True, 5),
    ],
)
def test_documents_begin_as_the_tokenizer_or_the_option_says(
    tmp_path: Path,
    template: str | None,
    config: dict[str, Any],
    wanted: bool | None,
    expected: int | None,
) -> None:
    corpus = built(tmp_path, tokenizer(tmp_path / "base", template, **config), wanted)
    start = [] if expected is None else [expected]
    assert corpus.manifest.tokenizer.bos == expected
    assert corpus.pool("web").tokens.tolist() == [*start, 1, 2, 3, *start, 2, 3]
    assert corpus.pool("web").document_starts.tolist() == [0, 3 + len(start)]
    corpus.verify()


def test_the_start_token_is_part_of_the_identity(tmp_path: Path) -> None:
    place = tokenizer(tmp_path / "base", "<s> $A")
    with_bos = built(tmp_path, place, None)
    without = built(tmp_path, place, False, "without")
    assert with_bos.fingerprint != without.fingerprint
    assert built(tmp_path, place, True).fingerprint == with_bos.fingerprint
    with pytest.raises(CorpusError, match="corpus of other sources or settings"):
        built(tmp_path, place, False)
    manifests = [
        json.loads((corpus.folder / "manifest.json").read_text()) for corpus in (with_bos, without)
    ]
    assert manifests[0]["tokenizer"]["bos"] == 4
    assert "bos" not in manifests[1]["tokenizer"]
    assert "bos" not in TokenizerEntry(sha256=None, vocab_size=8, end_of_text=7).model_dump()


def test_a_corpus_without_a_start_token_keeps_the_fingerprint_it_had(tmp_path: Path) -> None:
    corpus = built(tmp_path, tokenizer(tmp_path / "base"), None)
    assert corpus.fingerprint == "fce39bef7bc8bb6039e483dc4554ceac88c7ff07929fe85aaee232f0629d3e93"
    assert (
        corpus.manifest.built_from
        == "db673a19ccfe584ea9308cf5a409d5a52c653848243bf9c3fef79abc80da7258"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": "<none>"}, "no token '<none>', which tokenizer_config.json names"),
        ({"add_bos_token": True}, "no token for the start of documents.*--no-bos"),
    ],
)
def test_a_start_token_that_is_not_there_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    place = tokenizer(tmp_path / "base", **config)
    plain = Tokenizer(models.WordLevel({"one": 0, "</s>": 1}, unk_token="one"))
    with pytest.raises(CorpusError, match=message):
        find_bos(plain, place, True)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    place = tokenizer(tmp_path / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text(content)
    with pytest.raises(CorpusError, match=r"tokenizer_config\.json cannot be read"):
        built(tmp_path, place, None)


def test_a_trained_tokenizer_has_no_start_token(tmp_path: Path) -> None:
    assert built(tmp_path, None, None).manifest.tokenizer.bos is None
    with pytest.raises(CorpusError, match="a trained tokenizer has no start token"):
        built(tmp_path, None, True)


def test_the_command_line_shows_it_and_refuses_it_for_shards(tmp_path: Path) -> None:
    place = tokenizer(tmp_path / "base")
    built(tmp_path, place, False)
    command = ["corpus", "build", "--tokenizer", str(place), "--bos", "--quiet"]
    command += ["--workers", "1", "--valid-share", "0", "--test-share", "0"]
    done = CliRunner().invoke(
        app, [*command, str(tmp_path / "web.jsonl"), "-o", str(tmp_path / "new")]
    )
    assert "begin with token 4" in " ".join(done.output.split())
    refused = CliRunner().invoke(
        app, [*command, str(tmp_path / "corpus"), "-o", str(tmp_path / "shards")]
    )
    assert isinstance(refused.exception, CorpusError)
    assert "--bos and --no-bos are for text" in str(refused.exception)


@pytest.mark.parametrize("bos", [True, False])
def test_imported_shards_keep_the_start_token_that_their_documents_have(
    tmp_path: Path, bos: bool
) -> None:
    corpus = built(tmp_path, tokenizer(tmp_path / "base"), bos)
    imported = adopt(
        [corpus.folder], tmp_path / "imported", tokenizer=corpus.folder / "tokenizer.json"
    )
    assert imported.manifest.tokenizer.bos == corpus.manifest.tokenizer.bos == (4 if bos else None)
