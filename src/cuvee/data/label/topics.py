"""Topics: cluster a sample of documents, name each cluster by its words, and assign all documents.

By default, documents are represented by latent semantic analysis: TF-IDF weights of their words,
projected on the `DIMENSIONS` strongest singular directions (Deerwester et al. 1990) and scaled to
length 1. K-means clusters these vectors. A sentence-transformers model can provide the vectors
instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import CorpusError, pip_install
from cuvee.core.state import load_state, save_state
from cuvee.data.corpus.model_folder import ModelFolder, check_weights, find_model
from cuvee.data.label.labelers import SAMPLE_CHARS, Item, Labeller, Way, check_topics, domain_name

DIMENSIONS = 100
_STARTS = 5
_MOST_TERMS = 30_000
_WORD = r"(?u)\b[^\W\d_]\w+\b"
_NAME_WORDS = 3
_TOPIC_WORDS = 8
_NAME_CHARS = 48

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ByTopics(Way):
    """K-means clusters of a sample of `documents` documents.

    `embeddings` is a model that provides document vectors; None means latent semantic analysis.
    """

    topics: int
    seed: int
    documents: int = 20_000
    embeddings: ModelFolder | None = None

    def __post_init__(self) -> None:
        check_topics(self.topics)
        if self.documents < self.topics:
            raise CorpusError(
                f"{self.topics} topics cannot be found in a sample of {self.documents} documents: "
                "draw more"
            )
        if self.embeddings is not None:
            load_embedder(self.embeddings)

    @property
    def sample(self) -> int:  # type: ignore[override]
        return self.documents

    @property
    def parallel(self) -> bool:  # type: ignore[override]
        return self.embeddings is None

    @property
    def step_blocks(self) -> int:  # type: ignore[override]
        return 32 if self.embeddings is None else 4

    def to_json(self) -> dict[str, Any]:
        embeddings = self.embeddings and self.embeddings.to_json()
        return {
            "way": "cluster",
            "topics": self.topics,
            "seed": self.seed,
            "sample": self.documents,
            "embeddings": embeddings,
        }

    def fit(self, texts: Sequence[str], work: Path) -> None:
        if len(texts) < self.topics:
            raise CorpusError(
                f"{self.topics} topics cannot be found in {len(texts)} different training "
                "documents: ask for fewer"
            )
        words, weights_DV = fit_words(texts)
        if self.embeddings is None:
            directions_VS = _directions(weights_DV, self.seed)
            points_DS = _unit(weights_DV @ directions_VS)
            kept: dict[str, Any] = {
                "terms": words.terms,
                "idf_V": words.idf_V,
                "directions_VS": directions_VS,
            }
        else:
            points_DS = load_embedder(self.embeddings)(texts)
            kept = {}
        labels_D, centres_KS = _cluster(points_DS, self.topics, self.seed)
        topic_words = _topic_words(weights_DV, labels_D, words.terms, self.topics)
        save_state(
            work / "topics",
            {
                **kept,
                "centres_KS": centres_KS,
                "words": topic_words,
                "names": _names(topic_words),
            },
        )

    def labeller(self, work: Path) -> Labeller:
        state = load_state(work / "topics")
        names = state["names"]
        centres_KS = state["centres_KS"]
        place: Callable[[Sequence[str]], Points]
        if self.embeddings is None:
            words = Words(state["terms"], state["idf_V"])
            directions_VS = state["directions_VS"]

            def place(texts: Sequence[str]) -> Points:
                return _unit(words.weights(texts) @ directions_VS)
        else:
            place = load_embedder(self.embeddings)
        half_norms_K = (centres_KS**2).sum(1) / 2

        def label(items: Sequence[Item]) -> list[str]:
            points_BS = place([item.document.text[:SAMPLE_CHARS] for item in items])
            nearest_B = np.argmax(points_BS @ centres_KS.T - half_norms_K, axis=1)
            return [names[k] for k in nearest_B]

        return label

    def words(self, work: Path) -> dict[str, list[str]]:
        state = load_state(work / "topics")
        return dict(zip(state["names"], state["words"], strict=True))


class Words:
    """TF-IDF weights of documents over a fixed vocabulary of V terms."""

    def __init__(self, terms: list[str], idf_V: npt.NDArray[np.float64]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.terms = terms
        self.idf_V = idf_V
        self._vectorizer = TfidfVectorizer(vocabulary=terms, **_COUNTING)
        self._vectorizer.idf_ = idf_V

    def weights(self, texts: Sequence[str]) -> Any:
        """Return (D, V) sparse weights; each row has length 1, or 0 without a known word."""
        return self._vectorizer.transform(texts)


_COUNTING: dict[str, Any] = {"token_pattern": _WORD, "sublinear_tf": True, "dtype": np.float64}


def fit_words(texts: Sequence[str]) -> tuple[Words, Any]:
    """Return the vocabulary of `texts` and their (D, V) sparse weights over it.

    The vocabulary consists of words that occur in at least two texts and in at most half of them.
    Raises `CorpusError` if there are none.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(min_df=2, max_df=0.5, max_features=_MOST_TERMS, **_COUNTING)
    try:
        weights_DV = vectorizer.fit_transform(texts)
    except ValueError as error:  # the vocabulary is empty
        raise CorpusError(
            f"words do not distinguish any topics: {error}; label by column, folder or "
            "classifier instead"
        ) from error
    return Words(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_), weights_DV


_EMBEDDER = "sentence-transformers:"
_EMBEDDER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def find_embedder(spec: str) -> ModelFolder:
    """Return the model that `spec` names.

    `spec` is sentence-transformers:FOLDER or sentence-transformers:NAME@COMMIT. Raises
    `CorpusError`.
    """
    if not spec.startswith(_EMBEDDER):
        raise CorpusError(
            f"{spec!r} names no embeddings: write {_EMBEDDER}FOLDER or {_EMBEDDER}NAME@COMMIT"
        )
    return find_model(spec.removeprefix(_EMBEDDER), _EMBEDDER_FILES)


_PLAIN_MODULES: Mapping[str, tuple[str, ...]] = {
    "Transformer": ("",),
    "Pooling": ("1_Pooling",),
    "Normalize": ("", "2_Normalize"),
}
"""The allowed modules of an embedder, with the paths where they may lie in its folder.

Other modules of the library can import code that a file names (Router, the activation of Dense) or
read pickled weights. Files in other paths would not be part of the folder's digest."""


def _check_complete(model: ModelFolder) -> None:
    """Raise `CorpusError` if a weight is missing, which would be random, or not finite.

    The pooler of BERT is often missing. No module that is allowed here reads it.
    """
    from transformers import AutoModel

    _, loaded = AutoModel.from_pretrained(
        str(model.path),
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(name for name in loaded["missing_keys"] if "pooler." not in name)
    if missing:
        raise CorpusError(
            f"{model.spec} lacks the weights {', '.join(missing[:4])}: they would be random, so it "
            "is not used"
        )
    check_weights(model)


@lru_cache(maxsize=1)
def load_embedder(model: ModelFolder) -> Callable[[Sequence[str]], Points]:
    """Load a sentence-transformers model: D texts → (D, S) vectors of length 1.

    Only Transformer, Pooling and Normalize modules are loaded, with weights from safetensors.
    Raises `CorpusError` if the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise CorpusError(
            "embeddings need the sentence-transformers library, which is not installed: "
            f"{pip_install('embeddings')}, or leave out --embeddings to cluster by words"
        ) from None
    try:
        modules = json.loads((model.path / "modules.json").read_bytes())
        foreign = [
            f"{row['type']} in {row.get('path', '')!r}" for row in modules if not _is_plain(row)
        ]
        if not foreign:
            _check_complete(model)
            encoder = SentenceTransformer(
                str(model.path),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except CorpusError:
        raise
    except Exception as error:  # untrusted files can fail in any way
        raise CorpusError(
            f"{model.spec} cannot be loaded as a sentence-transformers model: {error}"
        ) from error
    if foreign:
        plain = ", ".join(
            f"{name} in {' or '.join(map(repr, paths))}" for name, paths in _PLAIN_MODULES.items()
        )
        raise CorpusError(
            f"{model.spec} asks for {foreign[0]}, which may run code; cuvee accepts only {plain}"
        )

    def place(texts: Sequence[str]) -> Points:
        points = encoder.encode(
            list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True
        )
        return _unit(np.asarray(points, dtype=np.float64))

    return place


def _is_plain(row: Mapping[str, str]) -> bool:
    library, _, name = row["type"].rpartition(".")
    return library.split(".")[0] == "sentence_transformers" and row.get(
        "path", ""
    ) in _PLAIN_MODULES.get(name, ())


def _directions(weights_DV: Any, seed: int) -> Points:
    from sklearn.decomposition import TruncatedSVD
    from threadpoolctl import threadpool_limits

    dimensions = min(DIMENSIONS, weights_DV.shape[1] - 1, weights_DV.shape[0] - 1)
    if dimensions < 1:
        raise CorpusError(
            "the documents have too few words in common to find topics: label by column or "
            "folder instead"
        )
    with threadpool_limits(1):  # one order of summation on every machine
        svd = TruncatedSVD(dimensions, random_state=seed).fit(weights_DV)
    return np.ascontiguousarray(svd.components_.T)


def _cluster(points_DS: Points, topics: int, seed: int) -> tuple[npt.NDArray[np.int64], Points]:
    """Return each point's cluster (D,) and the centres (K, S), the best of several starts."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct points than clusters: reported below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(topics, n_init=_STARTS, random_state=seed).fit(points_DS)
    distinct = len(np.unique(found.labels_))
    if distinct < topics:
        raise CorpusError(
            f"{topics} topics cannot be found: the documents fall into {distinct}; "
            f"ask for at most {distinct}"
        )
    return found.labels_.astype(np.int64), np.asarray(found.cluster_centers_, dtype=np.float64)


def _topic_words(
    weights_DV: Any, labels_D: npt.NDArray[np.int64], terms: list[str], topics: int
) -> list[list[str]]:
    """Return by topic the words whose mean weight exceeds that in all documents the most.

    English function words are left out.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    content_V = np.array([term not in ENGLISH_STOP_WORDS for term in terms])
    everywhere_V = np.asarray(weights_DV.mean(axis=0)).ravel()
    topic_words = []
    for k in range(topics):
        above_V = np.asarray(weights_DV[labels_D == k].mean(axis=0)).ravel() - everywhere_V
        above_V[~content_V] = 0
        best = np.argsort(-above_V, kind="stable")[:_TOPIC_WORDS]
        topic_words.append([terms[v] for v in best if above_V[v] > 0])
    return topic_words


def _names(topic_words: list[list[str]]) -> list[str]:
    """Return a unique name for each topic, made of its first words.

    If two names would be equal, the later topic gets more words or a number.
    """
    names: list[str] = []
    for words in topic_words:
        plain = [name for word in words if (name := domain_name(word))] or ["topic"]
        tried = ["-".join(plain[:n]) for n in range(min(_NAME_WORDS, len(plain)), len(plain) + 1)]
        numbered = [f"{tried[0][: _NAME_CHARS - 5]}-{n}" for n in range(2, len(topic_words) + 2)]
        names.append(
            next(
                name
                for name in [*(name[:_NAME_CHARS] for name in tried), *numbered]
                if name not in names
            )
        )
    return names


def _unit(points: Any) -> Points:
    """Scale each row to length 1; rows of zeros stay."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(norms == 0, 1, norms), dtype=np.float64)
