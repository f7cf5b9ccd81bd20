"""Domain classifiers like nvidia/domain-classifier are loaded or refused, never executed or
unpickled."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import tokenizers
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModel, BertConfig, DebertaV2Config, PretrainedConfig

from cuvee.core.errors import CorpusError
from cuvee.data.corpus.model_folder import find_model
from cuvee.data.ingest import reading
from cuvee.data.ingest.documents import Document
from cuvee.data.label import classifier as module
from cuvee.data.label.classifier import ByClassifier, DomainClassifier, load_classifier
from cuvee.data.label.labelers import Item
from cuvee.data.label.labels import LabelSettings, label
from labelled_text import content_of, read_text, sections, write_text

LABELS = ("Arts_and_Entertainment", "Computers_and_Electronics", "Science", "News")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOCABULARY = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "def",
    "return",
    "self",
    "the",
    "import",
    "for",
    "in",
    "if",
]

DEBERTA = DebertaV2Config(
    vocab_size=len(VOCABULARY),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    relative_attention=True,
    position_buckets=8,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    position_biased_input=False,
    type_vocab_size=0,
    initializer_range=0.5,
)
BERT = BertConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    initializer_range=0.5,
)


class Published(nn.Module, PyTorchModelHubMixin):
    """The published architecture of such classifiers: backbone, dropout, linear head on the
    first token."""

    def __init__(self, config: dict[str, Any], backbone: PretrainedConfig) -> None:
        super().__init__()
        self.model = AutoModel.from_config(backbone)
        self.dropout = nn.Dropout(config["fc_dropout"])
        self.fc = nn.Linear(backbone.hidden_size, len(config["id2label"]))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.softmax(self.fc(self.dropout(features))[:, 0, :], dim=1)


def publish(folder: Path, backbone: PretrainedConfig, seed: int = 0) -> Published:
    """Saves a classifier with a tokenizer in `folder`. Its labels are balanced over documents."""
    torch.manual_seed(seed)
    config = {
        "base_model": "somebody/backbone",
        "fc_dropout": 0.2,
        "id2label": {str(i): name for i, name in enumerate(LABELS)},
    }
    published = Published(config, backbone).eval()
    with torch.no_grad():
        features = published.model(
            input_ids=torch.randint(4, len(VOCABULARY), (64, 24))
        ).last_hidden_state
        published.fc.bias.sub_(published.fc(features)[:, 0, :].mean(0))
    published.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(json.loads(backbone.to_json_string(use_diff=False)) | config)
    )
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **special}
        )
    )
    return published


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "tiny"
    publish(folder, DEBERTA)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def items(texts: list[str]) -> list[Item]:
    return [
        Item(Document("d", "train", text, len(text), i), "source", None)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("backbone", [DEBERTA, BERT], ids=["deberta", "bert"])
def test_it_answers_what_the_published_model_answers(
    backbone: PretrainedConfig, tmp_path: Path
) -> None:
    published = publish(tmp_path / "m", backbone)
    texts = sections("mail")[:40]  # more than a batch, of all lengths
    asked = ByClassifier(find_model(str(tmp_path / "m"))).labeller(tmp_path)(items(texts))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    expected = []
    for text in texts:  # one by one: padding and the order of batches must not matter
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            expected.append(LABELS[int(published(ids, torch.ones_like(ids)).argmax())])
    assert list(asked) == expected
    assert len(set(expected)) > 1


def test_text_beyond_the_context_is_not_looked_at(original: Path, tmp_path: Path) -> None:
    labeller = ByClassifier(find_model(str(original))).labeller(tmp_path)
    start = "return self the for " * 40
    first, second = labeller(items([start + "def " * 500, start + "if in " * 9000]))
    assert first == second


def test_labels_of_a_corpus_resume_and_repeat(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "raw", most=90)
    monkeypatch.setattr(reading, "BLOCK_ROWS", 20)
    way = ByClassifier(find_model(str(original)))
    found = label([text], tmp_path / "whole", way, LabelSettings(by_role=True))
    topics = {row.name.split(".")[0] for row in found.labels}
    assert topics <= set(LABELS)
    assert len(topics) > 1
    assert {row.role for row in found.labels} == {"source", "target"}
    asked = 0
    forward = DomainClassifier.forward

    def fails(self: DomainClassifier, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(ids)
        if asked > 150:
            raise KeyboardInterrupt
        return forward(self, ids, mask)

    monkeypatch.setattr(DomainClassifier, "forward", fails)
    with pytest.raises(KeyboardInterrupt):
        label([text], tmp_path / "out", way, LabelSettings(by_role=True))
    asked = -(10**9)
    label([text], tmp_path / "out", way, LabelSettings(by_role=True))
    documents = sum(1 for _ in read_text(tmp_path / "out"))
    assert 0 < asked + 10**9 < documents - 70, "what was labelled before is not classified again"
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc.weight": None}, "lacks the weights fc.weight: they would be random"),
        ({"fc.bias": None}, "lacks the weights fc.bias"),
        (
            {"fc.weight": "classifier.weight", "fc.bias": "classifier.bias"},
            "lacks the weights fc.bias, fc.weight",
        ),
        (
            {"model.encoder.rel_embeddings.weight": None},
            "lacks the weights model.encoder.rel_embeddings.weight",
        ),
        (
            {"+": "pooler.dense.weight"},
            "has weights that the model does not have: pooler.dense.weight",
        ),
    ],
)
def test_no_weight_is_left_to_chance(
    change: dict[str, str | None], said: str, folder: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    for old, new in change.items():
        taken = weights.pop(old, torch.zeros(2))
        if new:
            weights[new] = taken
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CorpusError, match=said):
        ByClassifier(find_model(str(folder)))


def test_a_head_for_other_labels_is_refused(folder: Path) -> None:
    edit(folder, id2label={"0": "A", "1": "B"})
    with pytest.raises(
        CorpusError, match=r"has fc\.(weight|bias) of shape \(4.*where its config.json makes it \(2"
    ):
        ByClassifier(find_model(str(folder)))


def test_a_table_of_positions_from_older_versions_is_no_obstacle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"model.embeddings.position_ids": torch.arange(64)[None]},
        folder / "model.safetensors",
    )
    ByClassifier(find_model(str(folder)))


def test_pickles_are_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    weights = folder / "model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    ByClassifier(find_model(str(folder)))
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(
        CorpusError, match=r"has no model.safetensors, only pytorch_model.bin, a pickle"
    ):
        find_model(str(folder))
    weights.write_bytes((folder / "pytorch_model.bin").read_bytes())
    with pytest.raises(CorpusError, match="cannot be loaded as a domain classifier"):
        ByClassifier(find_model(str(folder)))
    weights.write_bytes(content[:-8])
    with pytest.raises(CorpusError, match="cannot be loaded as a domain classifier"):
        ByClassifier(find_model(str(folder)))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(file: str, folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    edit(
        folder,
        file,
        auto_map={
            "AutoConfig": "evil.C",
            "AutoModel": "evil.M",
            "AutoTokenizer": ["evil.T", "evil.T"],
        },
    )
    with pytest.raises(CorpusError, match=f"asks to run code of its own \\(auto_map in {file}\\)"):
        find_model(str(folder))


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model": None}, "no classifier like nvidia/domain-classifier"),
        ({"id2label": None}, "names no labels"),
        ({"id2label": {"0": "a", "2": "b"}}, "names no labels"),
        (
            {"id2label": {"0": "a b", "1": "a-b", "2": "c", "3": "d"}},
            "labels that do not give distinct domain names",
        ),
        (
            {"id2label": {"0": 1, "1": "b", "2": "c", "3": "d"}},
            "labels that do not give distinct domain names",
        ),
        (
            {"hidden_size": None},
            "the backbone 'somebody/backbone' is none of microsoft/deberta-v3-base",
        ),
        ({"hidden_size": "large"}, "cannot be loaded as a domain classifier"),
        ({"fc_dropout": 7}, "cannot be loaded as a domain classifier"),
        ({"model_type": "maskformer"}, "the backbone 'somebody/backbone' is none of"),
        ({"num_hidden_layers": 3}, "lacks the weights model.encoder.layer.2"),
        ({"vocab_size": 5}, "of shape"),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], said: str, folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(CorpusError, match=said):
        ByClassifier(find_model(str(folder)))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{i}": len(VOCABULARY) + i for i in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match="has a tokenizer of 21 tokens and embeddings for 12"):
        ByClassifier(find_model(str(folder)))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="cannot be loaded as a domain classifier"):
        ByClassifier(find_model(str(folder)))


@pytest.mark.parametrize("name", ["fc.bias", "model.embeddings.word_embeddings.weight"])
@pytest.mark.parametrize("bad", ["nan", "-inf", "int8"])
def test_weights_that_are_no_finite_numbers_are_refused(folder: Path, name: str, bad: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if bad == "int8":
        weights[name] = weights[name].to(torch.int8)
    else:
        weights[name].view(-1)[-1] = float(bad)
    save_file(weights, folder / "model.safetensors")
    said = "floating-point" if bad == "int8" else "contains NaN or infinity"
    with pytest.raises(CorpusError, match=rf"{re.escape(name)} .*{said}"):
        ByClassifier(find_model(str(folder)))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nvidia/domain-classifier", "add the full commit hash of 40 digits"),
        ("nvidia/domain-classifier@main", "add the full commit hash"),
        ("nvidia/domain-classifier@0123456", "add the full commit hash"),
        (f"nvidia/domain-classifier@{COMMIT.upper()}", "add the full commit hash"),
        ("nowhere", "there is no folder nowhere"),
        ("../../etc/x@" + COMMIT, "there is no folder"),
        (
            f"nobody/nothing@{COMMIT}",
            "config.json of nobody/nothing@0123.* is not cached and the hub cannot",
        ),
    ],
)
def test_names_of_the_hub_are_pinned(
    spec: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match=said):
        find_model(spec)


def test_a_name_that_was_fetched_before_needs_no_network(
    original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--maker--topics" / "snapshots" / COMMIT
    shutil.copytree(original, snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = find_model(f"maker/topics@{COMMIT}")
    assert found.path == snapshot
    assert found.digest == find_model(str(original)).digest
    assert found.to_json() == {"model": f"maker/topics@{COMMIT}", "sha256": found.digest}
    ByClassifier(found)


def test_the_same_model_elsewhere_is_the_same_and_another_is_not(
    original: Path, folder: Path
) -> None:
    assert find_model(str(folder)).digest == find_model(str(original)).digest
    publish(folder / "other", DEBERTA, seed=1)
    assert find_model(str(folder / "other")).digest != find_model(str(original)).digest


def test_the_published_backbones_have_their_published_size() -> None:
    """DeBERTa-v3-base has 183.8 million weights; nvidia/domain-classifier with 26 labels is 735
    MB."""
    config = {"fc_dropout": 0.2, "id2label": {str(k): "x" for k in range(26)}}
    sizes = {}
    for name in module._BACKBONES:
        with torch.device("meta"):
            sizes[name] = sum(
                w.numel() for w in DomainClassifier({"base_model": name, **config}).parameters()
            )
    assert sizes["microsoft/deberta-v3-base"] * 4 / 1e6 == pytest.approx(735, abs=0.9)
    assert (
        sizes["microsoft/mdeberta-v3-base"] - sizes["microsoft/deberta-v3-base"]
        == (251_000 - 128_100) * 768
    )


def test_dropout_is_off_and_nothing_is_printed(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, _, labels = load_classifier(find_model(str(original)))
    assert labels == list(LABELS)
    assert not any(part.training for part in loaded.modules())
    assert capsys.readouterr().out == ""
