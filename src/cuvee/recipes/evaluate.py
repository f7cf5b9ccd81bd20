"""`evaluate`: a run's model, or a model folder, on question files and published tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.errors import CheckpointError, ConfigError, StoreError
from cuvee.data.corpus.corpus import Corpus
from cuvee.evaluation.harness import evaluate as evaluate_model
from cuvee.evaluation.harness import harness_version
from cuvee.evaluation.items import TaskScore
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.probes.questions import read_questions
from cuvee.recipes.config.schema import sha256_of_model
from cuvee.recipes.stores import find_runs, open_store
from cuvee.training.base_model import load_base, no_progress_bars
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.model import build_model
from cuvee.training.update import load_weights, trained_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model folder, or the last checkpoint of a run that has none yet."""

    id: str
    """The run's id, or "sha256:" and the digest of the folder's weights and configuration."""
    folder: Path | None
    run: RunSummary | None


def evaluate(
    model: str,
    questions: Sequence[Path] = (),
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    batch_size: int = 16,
    corpus: Path | None = None,
    store: str | None = None,
) -> tuple[str, list[TaskScore]]:
    """Evaluate a run or a model folder, record the scores in the store, and return id and scores.

    `model` is a run's id or its beginning, or a folder. `corpus` is needed for a run that has a
    checkpoint but no exported model. Raises `ConfigError`, `StoreError` or `CorpusError` before the
    model is loaded, for anything that is missing or wrong.
    """
    if not questions and not tasks:
        raise ConfigError("nothing to evaluate on: give --questions FILE or --tasks NAME")
    harness_version()
    for file in questions:
        read_questions(file)
    is_folder = Path(model).is_dir()
    with open_store(store, must_exist=not is_folder) as opened:
        subject = _of_folder(Path(model), opened) if is_folder else _of_run(model, opened)
        loaded, tokenizer = _load(subject, corpus)
        with no_progress_bars():
            scores = evaluate_model(
                loaded, tokenizer, questions, tasks, limit=limit, batch_size=batch_size
            )
        opened.add_evaluations(subject.id, scores)
    return subject.id, scores


def _of_folder(folder: Path, store: Store) -> Subject:
    digest = f"sha256:{sha256_of_model(folder)}"
    place = str(folder.absolute())
    run = next((run for run in store.runs() if run.model == place), None)
    return Subject(run.id if run else digest, folder, run)


def _of_run(name: str, store: Store) -> Subject:
    try:
        run = find_runs(store, [name])[0]
    except StoreError as error:
        raise StoreError(f"{name} is no model folder either; {error}") from None
    folder = Path(run.model) if run.model else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            f"the model of run {run.id} is not in {folder} any more: give the folder in which it is"
        )
    return Subject(run.id, folder, run)


def _load(subject: Subject, corpus: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    if subject.folder is None:
        assert subject.run is not None
        return _from_checkpoint(subject.run, corpus)
    return load_base(subject.folder), _tokenizer(subject.folder)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the folder's tokenizer.json. Code and files of other formats are never read."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json: save the model's tokenizer there")
    try:
        found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # files of unknown origin can fail in any way
        raise ConfigError(f"the tokenizer of {folder} cannot be loaded: {error}") from error
    if found.eos_token is None:
        raise ConfigError(f"{folder / 'tokenizer_config.json'} names no eos_token: add it")
    return found


def _from_checkpoint(
    run: RunSummary, corpus_folder: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    from transformers import PreTrainedTokenizerFast

    if corpus_folder is None:
        raise ConfigError(
            f"run {run.id} has no exported model yet: give --corpus FOLDER, the corpus that it is "
            "trained on, to evaluate its last checkpoint"
        )
    if (trainer := run.config.get("trainer", "lm")) != "lm":
        raise ConfigError(
            f"run {run.id} is trained by {trainer!r}, whose checkpoints cannot be evaluated: give "
            "the folder of an exported model"
        )
    corpus = Corpus.open(corpus_folder)
    if corpus.fingerprint != run.config.get("corpus"):
        raise ConfigError(f"run {run.id} is trained on another corpus than {corpus_folder}")
    if "model_sha256" in run.config:
        raise ConfigError(
            f"run {run.id} continues from another model, which its record does not locate: "
            "evaluate it when it is done"
        )
    weights = _weights(run)
    model = build_model(run.config["model"], corpus)
    try:
        load_weights(trained_weights(model), weights)
    except CheckpointError as error:
        raise CheckpointError(f"run {run.id}: {error}") from None
    end = corpus.tokenizer().id_to_token(corpus.end_of_text)
    return model, PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer(), eos_token=end, bos_token=end
    )


def _weights(run: RunSummary) -> dict[str, Any]:
    if run.checkpoint is None:
        raise ConfigError(f"run {run.id} has neither a model nor a checkpoint yet: wait for one")
    latest = Checkpoints(run.checkpoint).latest()
    if latest is None:
        raise ConfigError(f"run {run.id} has no checkpoint in {run.checkpoint}: wait for one")
    weights: dict[str, Any] = latest[1]["trainer"]["update"]["weights"]
    return weights
