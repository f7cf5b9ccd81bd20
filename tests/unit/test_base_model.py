"""A base model's folder: only checked safetensors are read, all are hashed, and missing weights
are an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cuvee.core.errors import ConfigError
from cuvee.recipes.config.schema import sha256_of_model
from cuvee.training.export import export_model
from cuvee.training.model import build_model
from vocabulary import Words

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model("llama-0.1m", Words(), seed=5).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def save(folder: Path, tensors: Weights, name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def shard(folder: Path, names: Callable[[int], str]) -> Weights:
    """Cuts the weights in two files and writes the index that names them."""
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    table = {name: names(i % 2) for i, name in enumerate(tensors)}
    for file in set(table.values()):
        if file.endswith(".safetensors"):
            save(folder, {n: t for n, t in tensors.items() if table[n] == file}, file)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def updated(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(change)


def refused(folder: Path, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ConfigError, match=match):
        build_model(folder, Words())


def test_a_sharded_model_is_read_whole_and_every_shard_is_part_of_its_identity(
    folder: Path,
) -> None:
    tensors = shard(folder, lambda i: f"model-0000{i}-of-00002.safetensors")
    model = build_model(folder, Words())
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)
    before = sha256_of_model(folder)
    half = folder / "model-00001-of-00002.safetensors"
    save(folder, {name: tensor * 2 for name, tensor in load_file(half).items()}, half.name)
    assert sha256_of_model(folder) != before
    edit(folder, lambda index: index["metadata"].update(x=1), "model.safetensors.index.json")
    assert sha256_of_model(folder) != before


def test_files_that_are_not_read_are_no_part_of_the_identity(folder: Path) -> None:
    before = sha256_of_model(folder)
    save(folder, {"x": torch.zeros(1)}, "other.safetensors")
    (folder / "README.md").write_text("x")
    assert sha256_of_model(folder) == before


@pytest.mark.parametrize(
    "name",
    ["e.bin", "../a.safetensors", "/tmp/a.safetensors", "sub/a.safetensors", "a.safetensors/../b",
     ".a.safetensors", "a.SAFETENSORS", "a.safetensors\0", "", "..\\a.safetensors",
     "missing.safetensors"],
)  # fmt: skip
def test_an_index_names_plain_files_of_its_folder_or_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tensors = shard(folder, lambda _: "a.safetensors")
    torch.save(tensors, folder / "e.bin")
    save(folder.parent, tensors, "a.safetensors")
    edit(
        folder,
        lambda index: index.update(weight_map=dict.fromkeys(tensors, name)),
        "model.safetensors.index.json",
    )
    refused(folder, "only .*safetensors files in the same folder|is missing", monkeypatch)
    with pytest.raises(ConfigError):
        sha256_of_model(folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}',
                                   '{"weight_map": {"a": 1}}', "[" * 100_000])  # fmt: skip
def test_an_index_that_is_none_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    shard(folder, lambda _: "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, "model.safetensors.index.json", monkeypatch)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "code of its own"),
        ({"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}}, "code of its own"),
        ({"transformers_weights": "e.safetensors"}, "another file of weights"),
        ({"transformers_weights": "adapter_model.bin"}, "another file of weights"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ({"vocab_size": "many"}, "cannot be loaded"),
        ({"model_type": "none such"}, "cannot be loaded"),
        ({"hidden_size": 64}, "cannot be loaded"),
    ],
)
def test_a_configuration_that_asks_for_more_than_the_weights_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], match: str
) -> None:
    edit(folder, updated(change))
    refused(folder, match, monkeypatch)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000, but the weights are"),
        ({"hidden_size": 10**9}, r"embed_tokens.weight is \d+ × 32, not \d+ × 1000000000"),
        ({"intermediate_size": 7}, "config.json and weights differ: model.layers.0.mlp.gate_proj"),
        ({"vocab_size": 8}, "weights differ"),
    ],
)
def test_a_configuration_of_other_sizes_is_refused_soon_and_says_which(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], match: str
) -> None:
    edit(folder, updated(change))
    refused(folder, match, monkeypatch)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("depth", [150, 600, 950, 100_000])
def test_deep_json_is_a_named_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, depth: int
) -> None:
    """Python parses 900 levels, and then fails in functions that call themselves."""
    before = (
        (folder / name).read_text().rstrip().removesuffix("}") if name == "config.json" else "{"
    )
    comma = "," if len(before) > 1 else ""
    deep = '{"a":' * depth + "1" + "}" * depth
    (folder / name).write_text(f'{before}{comma} "deep": {deep}}}')
    refused(
        folder, f"{name} cannot be loaded: it is not plain JSON .it is nested deeper", monkeypatch
    )


@pytest.mark.parametrize("fault", ["in both", "swapped", "in none"])
def test_an_index_that_does_not_fit_its_files_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The library reads all files in some order, whatever the index says."""
    tensors = shard(folder, lambda i: f"{'ab'[i]}.safetensors")
    table = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    first = next(iter(tensors))
    if fault == "in both":
        other = load_file(folder / "b.safetensors")
        save(folder, {**other, first: tensors[first] * 2}, "b.safetensors")
    elif fault == "swapped":
        table = {n: "ab"[f == "a.safetensors"] + ".safetensors" for n, f in table.items()}
    else:
        table["more.weight"] = "a.safetensors"
    edit(folder, updated({"weight_map": table}), "model.safetensors.index.json")
    match = "both have the tensor" if fault == "in both" else "which it lacks"
    refused(folder, match, monkeypatch)


def test_an_index_without_metadata_is_read(folder: Path) -> None:
    tensors = shard(folder, lambda i: f"{'ab'[i]}.safetensors")
    edit(folder, lambda index: index.pop("metadata"), "model.safetensors.index.json")
    model = build_model(folder, Words())
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)


def test_weights_that_the_model_does_not_use_are_remarked(folder: Path) -> None:
    tensors = weights(folder)
    more = {n.replace(".0.", ".7."): t.clone() for n, t in tensors.items() if ".layers.0." in n}
    save(folder, {**tensors, **more})
    with pytest.warns(UserWarning, match=rf"{len(more)} tensors that this model does not use"):
        build_model(folder, Words())


def test_a_kernel_that_the_configuration_names_is_not_fetched(folder: Path) -> None:
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        edit(folder, updated({key: "evil-org/kernel"}))
    assert build_model(folder, Words()).config._attn_implementation in ("sdpa", "eager")


def test_an_adapter_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}')
    refused(folder, "adapter", monkeypatch)


def test_a_missing_tensor_is_an_error_and_not_drawn_at_random(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(folder)
    for name in whole:
        save(folder, {other: tensor for other, tensor in whole.items() if other != name})
        refused(folder, f"lacks the tensors .*{name}", monkeypatch)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_not_finite_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in weights(folder).items()}
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name].view(-1)[17] = value
    save(folder, tensors)
    refused(folder, f"{name} contains NaN or infinity", monkeypatch)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.bool]
)
def test_weights_that_are_not_plain_floating_point_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tensors = weights(folder)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name] = tensors[name].to(dtype)
    save(folder, tensors)
    refused(folder, f"{name} as|cannot be loaded", monkeypatch)


def test_links_as_in_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for file in folder.iterdir():
        shutil.copy(file, tmp_path / f"blob-{file.name}")
        os.symlink(f"../blob-{file.name}", tmp_path / "snapshot" / file.name)
    model = build_model(tmp_path / "snapshot", Words())
    assert torch.equal(
        model.state_dict()["model.norm.weight"], weights(folder)["model.norm.weight"]
    )
    assert sha256_of_model(tmp_path / "snapshot") == sha256_of_model(folder)


def test_half_precision_is_read_exactly(folder: Path) -> None:
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights(folder).items()}
    save(folder, tensors)
    state = build_model(folder, Words()).state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in tensors.items())


def finished_base(folder: Path, dtype: torch.dtype) -> PreTrainedTokenizerFast:
    """Gives the folder a tokenizer with a chat template, special tokens and generation settings."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Words().tokenizer(), bos_token="w1", eos_token="w2", pad_token="w3",
        model_max_length=777, padding_side="left",
    )  # fmt: skip
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    save(folder, {name: tensor.to(dtype) for name, tensor in weights(folder).items()})
    edit(folder, updated({"dtype": str(dtype).removeprefix("torch."), "bos_token_id": 1,
                          "eos_token_id": 2, "pad_token_id": 3}))  # fmt: skip
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "do_sample": true}')
    return fast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_export_keeps_what_the_base_model_said(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    before = finished_base(folder, dtype)
    model = build_model(folder, Words())
    with torch.no_grad():
        model.model.norm.weight += 0.5
    export_model(model, Words().tokenizer(), 0, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    for field in ("bos_token", "eos_token", "pad_token", "model_max_length", "padding_side",
                  "chat_template"):  # fmt: skip
        assert getattr(after, field) == getattr(before, field), field
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "chat_template.jinja"):  # fmt: skip
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    old, new = (
        json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out")
    )
    for field in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype"):
        assert new[field] == old[field], field
    stored = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert stored.keys() == weights(folder).keys()
    assert torch.equal(stored["model.norm.weight"], model.model.norm.weight.to(dtype))
    assert "cuvee-base" not in (tmp_path / "out" / "config.json").read_text()


def test_weights_beyond_half_precision_are_exported_in_single(folder: Path, tmp_path: Path) -> None:
    finished_base(folder, torch.float16)
    model = build_model(folder, Words())
    with torch.no_grad():
        model.model.norm.weight += 1e6
    export_model(model, Words().tokenizer(), 0, tmp_path / "out")
    assert weights(tmp_path / "out")["model.norm.weight"].dtype == torch.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_an_export_has_a_vocabulary_whatever_files_the_base_model_has(
    folder: Path, tmp_path: Path
) -> None:
    finished_base(folder, torch.float32)
    whole = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    (folder / "tokenizer.json").unlink()
    extra = {"spiece.model": b"s", "vocab.txt": b"v", "sentencepiece.bpe.model": b"b",
             "tekken.json": b"{}", "LICENSE": b"mine",
             "additional_chat_templates/rag.jinja": b"{{ 1 }}"}  # fmt: skip
    model = build_model(folder, Words())
    export_model(model, Words().tokenizer(), 0, tmp_path / "none")
    assert (tmp_path / "none" / "tokenizer.json").is_file()
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "none" / name).read_bytes() == (folder / name).read_bytes()
    for name, content in {**whole, **extra}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "additional_chat_templates" / ".hidden.jinja").write_text("x")
    export_model(build_model(folder, Words()), Words().tokenizer(), 0, tmp_path / "all")
    for name, content in {**whole, **extra}.items():
        assert (tmp_path / "all" / name).read_bytes() == content, name
    assert len(list((tmp_path / "all" / "additional_chat_templates").iterdir())) == 1


def test_tied_and_sharded_weights_are_exported_once_and_load_again(
    folder: Path, tmp_path: Path
) -> None:
    before = build_model(folder, Words()).state_dict()
    shard(folder, lambda i: f"model-0000{i + 1}-of-00002.safetensors")
    model = build_model(folder, Words())
    export_model(model, Words().tokenizer(), 0, tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*index*"))
    again = build_model(tmp_path / "out", Words()).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
