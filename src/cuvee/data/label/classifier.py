"""Label documents with a domain classifier such as `nvidia/domain-classifier`.

That model is DeBERTa-v3-base with a linear head for 26 topics. The layout follows its model card:
`model` (the backbone), dropout, and `fc` on the features of the first token, saved with
huggingface_hub's PyTorchModelHubMixin. `AutoModelForSequenceClassification` is not used, because it
would load the backbone and silently initialize a random head. For the same reason, the names and
shapes of all weights are compared with the model before anything is loaded.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PretrainedConfig

from cuvee.core.errors import CorpusError
from cuvee.data.corpus.model_folder import TOKENIZER, WEIGHTS, ModelFolder, check_weights
from cuvee.data.label.labelers import Item, Labeller, Way, domain_name

MAX_TOKENS = 512
"""The number of tokens of a document that are classified: the model's context."""
_CHARS_A_TOKEN = 16
_BATCH = 32

_DEBERTA_V3 = {
    "model_type": "deberta-v2",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "microsoft/deberta-v3-base": {**_DEBERTA_V3, "vocab_size": 128_100},
    "microsoft/mdeberta-v3-base": {**_DEBERTA_V3, "vocab_size": 251_000},
}
"""Configurations of backbones. Their weights come with the classifier; nothing else is fetched."""

_KINDS = ("bert", "deberta", "deberta-v2", "electra")
"""Model types that a config.json may name: text encoders that download nothing themselves."""

_NO_SHAPE = {
    "base_model",
    "fc_dropout",
    "id2label",
    "label2id",
    "architectures",
    "attn_implementation",
    "dtype",
}
_NO_SHAPE |= {"quantization_config", "torch_dtype", "transformers_version"}


class DomainClassifier(nn.Module, PyTorchModelHubMixin):
    """The class of the model card. The backbone is built from its configuration, not downloaded."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = AutoModel.from_config(backbone_config(config), attn_implementation="eager")
        self.dropout = nn.Dropout(config["fc_dropout"])
        self.fc = nn.Linear(self.model.config.hidden_size, len(config["id2label"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (B, labels) probabilities for (B, L) token ids and mask."""
        features_BLH = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        outputs_BLK = self.fc(self.dropout(features_BLH))
        return torch.softmax(outputs_BLK[:, 0, :], dim=1)


@dataclass(frozen=True)
class ByClassifier(Way):
    """The most probable label of a document's first 512 tokens."""

    parallel: ClassVar[bool] = False
    step_blocks: ClassVar[int] = 4

    model: ModelFolder

    def __post_init__(self) -> None:
        load_classifier(self.model)  # reject a bad model before hours of reading

    def to_json(self) -> dict[str, Any]:
        return {"way": "classifier", **self.model.to_json()}

    def labeller(self, work: Path) -> Labeller:
        classifier, tokenizer, labels = load_classifier(self.model)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        classifier.to(device)
        longest = min(MAX_TOKENS, classifier.model.config.max_position_embeddings)
        tokenizer.enable_truncation(longest)
        tokenizer.no_padding()

        def label(items: Sequence[Item]) -> list[str]:
            texts = [item.document.text[: _CHARS_A_TOKEN * longest] for item in items]
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            by_length = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
            best = [0] * len(ids)
            for start in range(0, len(ids), _BATCH):
                chosen = by_length[start : start + _BATCH]
                rows = [torch.tensor(ids[i], device=device) for i in chosen]
                ids_BL = pad_sequence(rows, batch_first=True)
                mask_BL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
                with torch.inference_mode():
                    probabilities_BK = classifier(ids_BL, mask_BL)
                if not torch.isfinite(probabilities_BK).all():
                    raise CorpusError(
                        f"{self.model.spec} gives probabilities that are not finite: its weights "
                        "are damaged"
                    )
                for i, k in zip(chosen, probabilities_BK.argmax(1).tolist(), strict=True):
                    best[i] = k
            return [labels[k] for k in best]

        return label


@lru_cache(maxsize=1)
def load_classifier(model: ModelFolder) -> tuple[DomainClassifier, Tokenizer, list[str]]:
    """Return the classifier on the CPU, its tokenizer and its labels by index.

    Raises `CorpusError` if any weight of the model, most importantly the head, is missing or has
    another shape.
    """
    config = model.config()
    labels = _labels(config, model.spec)
    if not {"base_model", "fc_dropout"} <= set(config):
        raise CorpusError(
            f"{model.spec} is no classifier like nvidia/domain-classifier: config.json lacks "
            "base_model or fc_dropout"
        )
    try:
        with torch.device("meta"):
            expected = {
                name: tuple(weights.shape)
                for name, weights in DomainClassifier(config).state_dict().items()
            }
        with safe_open(model.path / WEIGHTS, framework="pt") as file:
            names = file.keys()
            given = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except CorpusError:
        raise
    except Exception as error:  # untrusted files can fail in any way
        raise CorpusError(
            f"{model.spec} cannot be loaded as a domain classifier: {error}"
        ) from error
    _compare(expected, given, model.spec)
    check_weights(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints
            classifier = DomainClassifier.from_pretrained(str(model.path), local_files_only=True)
        tokenizer = Tokenizer.from_file(str(model.path / TOKENIZER))
    except Exception as error:
        raise CorpusError(
            f"{model.spec} cannot be loaded as a domain classifier: {error}"
        ) from error
    tokens = max(tokenizer.get_vocab().values()) + 1
    rows = classifier.model.config.vocab_size
    if tokens > rows:
        raise CorpusError(
            f"{model.spec} has a tokenizer of {tokens} tokens and embeddings for {rows}: "
            "use the tokenizer that it was trained with"
        )
    return classifier.eval(), tokenizer, labels


def backbone_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """Return the configuration of a known `base_model`, else that in config.json itself.

    Raises `CorpusError` if it is neither.
    """
    shape = _BACKBONES.get(config["base_model"], config)
    if "hidden_size" not in shape or shape.get("model_type") not in _KINDS:
        raise CorpusError(
            f"the backbone {config['base_model']!r} is none of {', '.join(_BACKBONES)}: "
            "copy the content of its config.json into "
            f"the classifier's config.json (model_type may be {', '.join(_KINDS)})"
        )
    sizes = {
        key: value
        for key, value in shape.items()
        if key not in _NO_SHAPE and not key.startswith("_")
    }
    return AutoConfig.for_model(**sizes)


def _labels(config: Mapping[str, Any], spec: str) -> list[str]:
    by_index = config.get("id2label")
    if (
        not isinstance(by_index, dict)
        or set(by_index) != {str(k) for k in range(len(by_index))}
        or len(by_index) < 2
    ):
        raise CorpusError(
            f"{spec} names no labels: config.json needs id2label for 0, 1, … without a gap"
        )
    labels = [by_index[str(k)] for k in range(len(by_index))]
    names = [domain_name(label) if isinstance(label, str) else "" for label in labels]
    if "" in names or len(set(names)) < len(names):
        raise CorpusError(
            f"{spec} has labels that do not give distinct domain names: "
            f"{', '.join(map(repr, labels))}"
        )
    return labels


def _compare(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], spec: str
) -> None:
    # Older versions of transformers saved this table of 0, 1, 2, …
    ignored = {name for name in given if name.endswith(".position_ids")}
    if missing := sorted(set(expected) - set(given)):
        raise CorpusError(
            f"{spec} lacks the weights {', '.join(missing[:4])}: they would be random, so it is "
            "not used"
        )
    if unknown := sorted(set(given) - set(expected) - ignored):
        raise CorpusError(
            f"{spec} has weights that the model does not have: {', '.join(unknown[:4])}"
        )
    for name, shape in expected.items():
        if given[name] != shape:
            raise CorpusError(
                f"{spec} has {name} of shape {given[name]} where its config.json makes it {shape}"
            )
