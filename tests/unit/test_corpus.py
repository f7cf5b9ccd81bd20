"""Opening, reading and verifying a corpus, and taking in shards from elsewhere."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import CorpusError, ShardError
from cuvee.data.corpus import corpus as module
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.manifest import digest, read_manifest, write_manifest
from cuvee.data.corpus.shards import bin_path, idx_path, write_index
from cuvee.data.ingest.adopt import adopt
from stdlib_corpus import NAMES, stdlib_corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    stdlib_corpus(folder)
    return folder / "corpus"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "corpus"))


def edit(folder: Path, **changes: Any) -> None:
    """Changes a manifest as somebody would who also mends its checksum."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | changes
    content.pop("checksum")
    fingerprint = content.pop("fingerprint")
    path.write_text(json.dumps(content | {"fingerprint": fingerprint, "checksum": digest(content)}))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_opening_reads_no_tokens(folder: Path) -> None:
    corpus = Corpus.open(str(folder))
    assert corpus.names == tuple(sorted(NAMES))
    assert not corpus._pools
    flip(folder / "train" / "mail.bin", 0)  # not seen by opening, which hashes nothing
    pool = Corpus.open(folder).pool("mail")
    assert pool is not corpus.pool("mail")
    assert corpus.pool("mail") is corpus.pool("mail")
    assert isinstance(pool.tokens.base, np.memmap)
    assert len(pool) == corpus.domains[corpus.names.index("mail")].tokens


def test_the_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    first = Corpus.open(folder).fingerprint
    assert Corpus.open(shutil.copytree(folder, tmp_path / "copy")).fingerprint == first
    manifest = read_manifest(folder)
    for changed in (
        manifest.model_copy(update={"domains": manifest.domains[::-1]}),
        manifest.model_copy(update={"domains": manifest.domains[:-1]}),
        manifest.model_copy(
            update={"tokenizer": manifest.tokenizer.model_copy(update={"end_of_text": 1})}
        ),
    ):
        assert changed.fingerprint != first
    write_manifest(folder, manifest)
    assert Corpus.open(folder).fingerprint == first


def test_what_is_not_a_whole_corpus_is_refused_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no corpus folder .*cuvee corpus build"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"has no manifest\.json; it is no corpus"):
        Corpus.open(tmp_path / "empty")
    path = folder / "manifest.json"
    whole = path.read_text()
    for content, message in (
        (whole[:-20], "is damaged: it is not JSON"),
        ("[]", "has no format number"),
        ("[" * 100_000, "is damaged"),
        (
            whole.replace('"format": 2', '"format": 3'),
            "has format 3, but this version of cuvee reads up to 2: upgrade",
        ),
        (whole.replace('"format": 2', '"format": 0'), "is damaged"),
        (
            whole.replace('"role": "source"', '"role": "target"', 1),
            "was altered after it was written",
        ),
        (whole.replace('"end_of_text": 0', '"end_of_text": -1'), "is damaged"),
        (
            whole.replace('"train/mail"', '"../../etc/mail"'),
            "is damaged: .*must not be empty or lead out",
        ),
        (whole.replace('"name": "mail"', '"name": "ma/il"'), "is damaged"),
        (whole.replace('"name": "mail"', '"name": "network"'), "is damaged: .*unique"),
    ):
        path.write_text(content)
        with pytest.raises(CorpusError, match=message):
            Corpus.open(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(CorpusError, match="cannot be read: Is a directory"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", ["train/mail.bin", "train/mail.idx", "valid/network.bin"])
def test_a_cut_or_missing_shard_is_seen_at_once(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(
        ShardError, match=f"{path.name} has {len(whole) - 2} bytes, expected {len(whole)}.*build"
    ):
        Corpus.open(folder)
    path.unlink()
    with pytest.raises(ShardError, match=f"{path.name} is missing"):
        Corpus.open(folder)


def test_a_shard_cut_after_opening_is_seen(folder: Path) -> None:
    corpus = Corpus.open(folder)
    path = folder / "train" / "mail.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShardError, match="it was truncated or replaced"):
        corpus.pool("mail")


def test_a_wrong_domain_or_split_is_named(folder: Path) -> None:
    corpus = Corpus.open(folder)
    with pytest.raises(
        CorpusError, match=r"no domain 'post' in .*; it has algorithms, mail, network"
    ):
        corpus.pool("post")
    assert corpus.has("mail", "valid")


def test_verifying_finds_one_bit(folder: Path) -> None:
    shares: list[float] = []
    Corpus.open(folder).verify(shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for name in ("train/mail.bin", "valid/mail.idx", "tokenizer.json"):
        flip(folder / name, 40)
        with pytest.raises(CorpusError, match=r"\.bin|\.idx|tokenizer\.json was altered"):
            Corpus.open(folder).verify()
        flip(folder / name, 40)
    Corpus.open(folder).verify()


def test_an_index_that_disagrees_with_the_manifest_is_named(folder: Path) -> None:
    path = folder / "train" / "mail.idx"
    content = bytearray(path.read_bytes())
    content[-16:-8] = content[
        -24:-16
    ]  # the boundary between the last two documents: the last but one is now empty
    path.write_bytes(content)
    with pytest.raises(
        ShardError,
        match=r"mail.idx has \d+ tokens in \d+ documents of uint16, but the manifest says",
    ):
        Corpus.open(folder).pool("mail")


def test_a_thousand_domains_do_not_meet_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for limits in ((1024, 4096), (1024, 2000), (1 << 20, 1 << 20), (1024, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        module._allow_open_files(2000)
    assert set_to == [(2512, 4096), (2000, 2000), (2512, resource.RLIM_INFINITY)]


def test_a_limit_of_open_files_that_cannot_be_raised_is_named(tmp_path: Path) -> None:
    shards(tmp_path / "in", *(f"d{i}_x" for i in range(40)))
    adopt([tmp_path / "in"], tmp_path / "corpus", vocab_size=8, end_of_text=7)
    program = """if True:
        import sys, resource
        from cuvee.core.errors import ShardError
        from cuvee.data.corpus.corpus import Corpus
        soft, hard = int(sys.argv[2]), int(sys.argv[3])
        corpus = Corpus.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            for name in corpus.names:
                corpus.pool(name)
            print("all open")
        except ShardError as error:
            print(error)
        """
    for soft, hard, said in ((30, 4096, "all open"), (30, 30, "may open 30 files and each")):
        command = [sys.executable, "-c", program, str(tmp_path / "corpus"), str(soft), str(hard)]
        assert said in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shards(folder: Path, *names: str, dtype: str = "<i4", end: int = 7) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tokens = np.array([1, 2, end, 3, end, 4, 5, 6, end], dtype=dtype)
        tokens.tofile(bin_path(path))
        write_index(path, np.array([3, 2, 4], dtype=np.int32), np.dtype(dtype))
    return folder


def snapshot(folder: Path) -> Iterator[tuple[str, bytes, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes(), path.stat().st_mtime_ns


def test_shards_from_elsewhere_become_a_corpus_as_they_are(tmp_path: Path) -> None:
    place = shards(tmp_path / "megatron", "law_text_document", "mail_text_document")
    before = list(snapshot(place))
    corpus = adopt([place], tmp_path / "corpus", vocab_size=8, end_of_text=7, targets=["mail"])
    assert [(d.name, d.tokens, d.role) for d in corpus.domains] == [
        ("law", 9, "source"),
        ("mail", 9, "target"),
    ]
    assert corpus.pool("law").document_starts.tolist() == [0, 3, 5]
    assert list(snapshot(place)) == before
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["manifest.json"]
    corpus.verify()
    for refused in (corpus.tokenizer, lambda: corpus.bytes_per_token("law")):
        with pytest.raises(CorpusError, match=r"imported without a tokenizer\.json"):
            refused()
    again = adopt([place], tmp_path / "corpus", vocab_size=8, end_of_text="7", targets=["mail"])
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(CorpusError, match="already holds a corpus of other sources"):
        adopt([place], tmp_path / "corpus", vocab_size=9, end_of_text=7)


def test_shards_may_be_taken_in_where_they_are(tmp_path: Path) -> None:
    place = shards(tmp_path / "megatron", "train/law", "valid/law")
    adopt([place], place, vocab_size=8, end_of_text=7)
    moved = place.rename(tmp_path / "moved")
    corpus = Corpus.open(moved)
    corpus.verify()
    assert corpus.pool("law", "valid").tokens[:3].tolist() == [1, 2, 7]


def test_with_their_tokenizer_shards_know_their_text(built: Path, tmp_path: Path) -> None:
    original = Corpus.open(built)
    corpus = adopt([built], tmp_path / "corpus", tokenizer=built / "tokenizer.json")
    assert corpus.names == original.names
    assert corpus.fingerprint == original.fingerprint
    assert corpus.tokenizer().get_vocab() == original.tokenizer().get_vocab()
    for name in corpus.names:
        assert corpus.bytes_per_token(name) == original.bytes_per_token(name)
        assert corpus.bytes_per_token(name, "valid") == original.bytes_per_token(name, "valid")
        assert corpus.domains[corpus.names.index(name)].scores["mtld"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give the tokenizer.json that wrote them"),
        ({"vocab_size": 8}, "--vocab-size and the id of the end-of-text token"),
        (
            {"vocab_size": 8, "end_of_text": "</s>"},
            "end_of_text is '</s>': without a tokenizer give the id",
        ),
        ({"vocab_size": 8, "end_of_text": 8}, "must lie within the vocabulary of 8"),
        (
            {"vocab_size": 8, "end_of_text": 6},
            "law.bin: document 0 ends with token 7.*--append-eod",
        ),
        ({"vocab_size": 7, "end_of_text": 6}, "ends with token 7"),
        ({"vocab_size": 8, "end_of_text": 7, "targets": ["lwa"]}, "did you mean law"),
    ],
)
def test_shards_that_cannot_be_taken_in(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    place = shards(tmp_path / "megatron", "law")
    with pytest.raises(CorpusError, match=message):
        adopt([place], tmp_path / "corpus", **arguments)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_shards_that_do_not_go_together(tmp_path: Path) -> None:
    known: dict[str, Any] = {"vocab_size": 8, "end_of_text": 7}
    place = shards(tmp_path / "a", "law")
    with pytest.raises(CorpusError, match="more than one shard of law"):
        adopt([place, place / "law.bin"], tmp_path / "corpus", **known)
    with pytest.raises(CorpusError, match="hold int32 and uint16"):
        adopt([place, shards(tmp_path / "b", "mail", dtype="<u2")], tmp_path / "corpus", **known)
    with pytest.raises(CorpusError, match="no training shard of mail"):
        adopt([shards(tmp_path / "c", "train/law", "valid/mail")], tmp_path / "corpus", **known)
    with pytest.raises(CorpusError, match="no shards given"):
        adopt([], tmp_path / "corpus", **known)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mail.jsonl").write_text("{}")
    with pytest.raises(
        CorpusError, match=r"text holds no \.bin/\.idx pairs: shards and text do not go into one"
    ):
        adopt([place, tmp_path / "text"], tmp_path / "corpus", **known)
    wide = shards(tmp_path / "d", "law", end=5)
    np.array([1, 2, 5, 9, 5, 4, 5, 5, 5], dtype="<i4").tofile(wide / "law.bin")
    with pytest.raises(ShardError, match="token 3 is 9, outside the vocabulary of 6"):
        adopt([wide], tmp_path / "corpus", vocab_size=6, end_of_text=5)
    idx_path(place / "law").unlink()
    with pytest.raises(CorpusError, match=r"law\.idx cannot be read"):
        adopt([place / "law.bin"], tmp_path / "corpus", **known)
