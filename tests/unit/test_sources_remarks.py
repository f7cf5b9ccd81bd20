"""A build reports what it skips, merges or finds twice: no text is lost and no validation text
leaks silently."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cuvee.core.errors import CorpusError
from cuvee.data.corpus.tokenizer import Encoder, parse_tokenizer
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.overlap import Overlap
from cuvee.data.ingest.sources.raw import find_sources

SETTINGS = BuildSettings(vocab_size=300)


def rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def domains(*places: Path) -> list[str]:
    return sorted({source.domain for source in find_sources(places)[0]})


def test_a_file_given_twice_or_copied_is_refused(tmp_path: Path) -> None:
    first = rows(tmp_path / "a" / "web.jsonl", *(f"row {i} of text" for i in range(60)))
    copy = tmp_path / "b" / "news.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    link = tmp_path / "link.jsonl"
    link.symlink_to(first)
    for places in ([first, first], [first, copy], [first, link], [tmp_path / "a", first]):
        with pytest.raises(CorpusError, match="has the same content as"):
            build(places, tmp_path / "corpus", SETTINGS, workers=1)


def test_documents_common_to_train_and_valid_are_counted(tmp_path: Path) -> None:
    texts = [f"row {i} of some text" for i in range(80)]
    rows(tmp_path / "text" / "train" / "web.jsonl", *texts[:70])
    rows(tmp_path / "text" / "valid" / "web.jsonl", *texts[60:])
    with pytest.warns(UserWarning, match="10 of the 20 different validation documents"):
        build([tmp_path / "text"], tmp_path / "corpus", SETTINGS, workers=1)


def test_the_count_of_common_documents_is_an_estimate_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cuvee.data.ingest.overlap._MOST", 2000)
    ranks = np.random.default_rng(0).integers(0, 2**64, 40_000, dtype=np.uint64).tolist()
    overlap = Overlap()
    for start in range(0, 40_000, 1000):
        overlap.add("train", ranks[start : start + 1000])
    overlap.add("valid", ranks[:10_000])
    assert overlap.held <= 2000
    with pytest.warns(UserWarning) as seen:  # noqa: PT030
        overlap.warn()
    about = int(str(seen[0].message).split()[1])
    assert 8_000 <= about <= 12_000


def packed(path: Path, data: bytes) -> None:
    """Write rows of JSON in the format that the name of the file tells."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    if path.name.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([json.loads(row) for row in data.splitlines()]), path)
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("copy", ["news.jsonl.gz", "news.jsonl.zst", "news.parquet", "news.json"])
def test_a_copy_in_another_format_is_remarked(tmp_path: Path, copy: str) -> None:
    """The bytes of the two files differ, and so do their hashes; their documents do not."""
    first = rows(tmp_path / "text" / "web.jsonl", *(f"row {i} of some text" for i in range(60)))
    packed(tmp_path / "text" / copy, first.read_bytes().replace(b'": "', b'":"'))
    with pytest.warns(UserWarning, match=r"common: 60 of .*web.jsonl are also in .*news"):
        build([tmp_path / "text"], tmp_path / "corpus", SETTINGS, workers=1)


def test_a_few_documents_in_common_are_no_copy(tmp_path: Path) -> None:
    texts = [f"row {i} of some text" for i in range(100)]
    rows(tmp_path / "text" / "web.jsonl", *texts[:60])
    rows(tmp_path / "text" / "news.jsonl", *texts[45:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build([tmp_path / "text"], tmp_path / "corpus", SETTINGS, workers=1)


@pytest.mark.parametrize("change", ["{} ", "{}\n", "\t{}", "{}\r\n"])
def test_blanks_do_not_hide_a_common_document(tmp_path: Path, change: str) -> None:
    texts = [f"row {i} of some text" for i in range(80)]
    rows(tmp_path / "text" / "train" / "web.jsonl", *texts[:70])
    rows(tmp_path / "text" / "valid" / "law.jsonl", *(change.format(one) for one in texts[60:]))
    rows(tmp_path / "text" / "train" / "law.jsonl", *(f"law {i} of some text" for i in range(70)))
    rows(tmp_path / "text" / "valid" / "web.jsonl", "web and nothing else")
    with pytest.warns(UserWarning, match="10 of the 21 different validation documents"):
        build([tmp_path / "text"], tmp_path / "corpus", SETTINGS, workers=1)


def test_a_folder_that_is_a_link_to_its_parent_is_no_domain(tmp_path: Path) -> None:
    rows(tmp_path / "text" / "web.jsonl", "one")
    (tmp_path / "text" / "round").symlink_to(tmp_path / "text")
    (tmp_path / "text" / "up").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="2 files were not read.*round.*up"):
        assert domains(tmp_path / "text") == ["web"]


def test_files_that_are_not_read_are_listed(tmp_path: Path) -> None:
    rows(tmp_path / "web.jsonl", "text")
    for name in ("a.xls", "b.jsonl.xz", "law/c.docx", "law/d.JSONL", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    (tmp_path / "law" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="5 files were not read") as seen:
        assert domains(tmp_path) == ["law", "web"]
    for name in ("a.xls", "b.jsonl.xz", "c.docx", "README.md", "gone.jsonl"):
        assert name in str(seen[0].message)


def test_endings_in_capital_letters_and_ndjson_are_read(tmp_path: Path) -> None:
    import gzip

    rows(tmp_path / "a.JSONL", "one")
    rows(tmp_path / "b.ndjson", "one")
    (tmp_path / "c.Jsonl.GZ").write_bytes(gzip.compress(b'{"text": "packed words"}\n' * 60))
    assert domains(tmp_path) == ["a", "b", "c"]
    corpus = build([tmp_path / "c.Jsonl.GZ"], tmp_path / "corpus", SETTINGS, workers=1)
    assert corpus.names == ("c",)


def test_linked_folders_are_followed_without_going_round(tmp_path: Path) -> None:
    rows(tmp_path / "elsewhere" / "deep" / "x.jsonl", "one")
    (tmp_path / "text" / "law").mkdir(parents=True)
    rows(tmp_path / "text" / "law" / "y.jsonl", "two")
    (tmp_path / "text" / "law" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "law" / "round").symlink_to(tmp_path / "text" / "law")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = find_sources([tmp_path / "text"])
    assert sorted(source.label for source in found) == [
        "text/law/linked/deep/x.jsonl",
        "text/law/y.jsonl",
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["part-00000", "part-00001", "part-00002"], ["laws"]),
        (["web.00000-of-01024", "web.00001-of-01024"], ["web"]),
        (["web_00000-of-2", "web-00001-of-2"], ["web"]),
        (["law_2019", "law_2020"], ["law_2019", "law_2020"]),
        (["gpt2", "c4"], ["c4", "gpt2"]),
    ],
)
def test_part_files_are_one_domain(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    """A name that says nothing but "part" gives way to that of the folder."""
    folder = tmp_path / "laws"
    for i, name in enumerate(names):
        rows(folder / f"{name}.jsonl", f"text {i}")
    assert domains(folder) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00", "09", "10", "29"], ["laws"]),  # the Pile
        (["shard_00000000_processed", "shard_00000012_processed"], ["shard_processed"]),  # DCLM
        (["web0001", "web0002", "web0010"], ["web"]),
        (["web_08", "web_09", "web_10"], ["web"]),
        (["CC-MAIN-2019-04", "CC-MAIN-2019-13", "CC-MAIN-2020-16"],
         ["CC-MAIN-2019", "CC-MAIN-2020-16"]),
        (["law-2019", "law-2020"], ["law-2019", "law-2020"]),
        (["v1", "v2", "v10"], ["v1", "v10", "v2"]),
        (["a07", "b11"], ["a07", "b11"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.* differ by a number only")
def test_numbers_with_leading_zeros_are_those_of_parts(
    tmp_path: Path, names: list[str], expected: list[str]
) -> None:
    """No number of them makes a domain while its neighbours make another."""
    files = [rows(tmp_path / "laws" / f"{name}.jsonl", f"text of {name}") for name in names]
    folded = len(expected) < len(names)
    with pytest.warns(UserWarning, match="parts of one domain") if folded else nullcontext():
        assert domains(tmp_path / "laws") == expected
        assert domains(*files) == expected
    table = [{"domain": name} for name in names]
    (tmp_path / "laws" / "table.json").write_text(json.dumps(table))
    assert domains(tmp_path / "laws") == sorted(names)


def test_a_file_named_after_a_domain_of_the_table_is_no_part(tmp_path: Path) -> None:
    names = ["law-00001", "law-00002", "web-00001"]
    for name in names:
        rows(tmp_path / f"{name}.jsonl", f"text of {name}")
    assert domains(tmp_path) == ["law", "web"]
    table = [{"domain": name} for name in (*names[:2], "web")]
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert domains(tmp_path) == ["law-00001", "law-00002", "web"]
    assert domains(tmp_path / "law-00002.jsonl", tmp_path / "web-00001.jsonl") == [
        "law-00002",
        "web",
    ]


@pytest.mark.parametrize(
    "held_out", ["test.jsonl", "validation-00000-of-00001.jsonl", "dev/a.jsonl", "Val.jsonl"]
)
def test_files_named_after_a_split_are_remarked(tmp_path: Path, held_out: str) -> None:
    """A folder as the Hub has it, without the marks of its client: nothing says what it is."""
    rows(tmp_path / "train-00000-of-00001.jsonl", "one")
    rows(tmp_path / held_out, "two")
    with pytest.warns(UserWarning, match="will be a domain like any other, and be trained on"):
        domains(tmp_path)
    table = [{"domain": name} for name in ("test", "validation", "dev", "Val", "train")]
    (tmp_path / "table.json").write_text(json.dumps(table))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        domains(tmp_path)


def test_many_names_that_differ_by_a_number_are_remarked(tmp_path: Path) -> None:
    for i in range(4):
        rows(tmp_path / f"web_{i}.jsonl", f"text {i}")
    with pytest.warns(UserWarning, match="4 domains differ by a number only"):
        domains(tmp_path)
    table = [{"domain": f"web_{i}"} for i in range(4)]
    (tmp_path / "table.json").write_text(json.dumps(table))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(domains(tmp_path)) == 4, "the table says that they are domains"


def test_a_build_without_a_good_row_says_what_was_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text('{"body": "x"}\n' * 30 + "not json\n")
    with pytest.raises(CorpusError) as error:
        build([path], tmp_path / "corpus", SETTINGS, workers=1)
    for part in ("30 of 31", "no key 'text'; the row has 'body'", "quarantine.jsonl"):
        assert part in str(error.value)
    assert "share kept" not in str(error.value)


def tokenizer(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if kind == "prepend":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind.startswith("metaspace"):
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.split("-")[1])
        made.decoder = decoders.Metaspace()
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "byte-prefix")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind.startswith("byte") else []
    special = ["<unk>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False, initial_alphabet=alphabet
    )
    made.train_from_iterator(
        ["the water house of a city and people in time day night"] * 9, trainer
    )
    return made


@pytest.mark.parametrize("kind", ["byte", "byte-prefix", "prepend", "metaspace-first",
                                  "metaspace-always", "metaspace-never"])  # fmt: skip
def test_long_documents_have_the_ids_of_the_whole(kind: str) -> None:
    made = tokenizer(kind)
    encoder = Encoder(made, 1, np.dtype("<i4"))
    for text in (
        "the water  of a\n\n city " * 8000,
        "abc\n" * 40_000,
        "の水家" * 30_000,
        "a" * 140_000,
    ):
        assert (
            encoder.encode([text])[0][:-1].tolist()
            == made.encode(text, add_special_tokens=False).ids
        )
    assert bool(encoder._cuts) == (kind != "prepend")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version":"1.0"}', "[" * 100_000,
    '{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}',
    '{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":-1},"unk_token":"u"}}',
    '{"version":"1.0","model":{"type":"Unigram","vocab":[],"unk_id":9}}'])  # fmt: skip
def test_a_tokenizer_file_that_is_none_is_a_named_error(text: str) -> None:
    with pytest.raises(CorpusError, match="here is no tokenizer"):
        parse_tokenizer(text, "here")
