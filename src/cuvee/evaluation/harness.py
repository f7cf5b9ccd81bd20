"""Evaluates a model with lm-evaluation-harness and keeps the figures of every question.

    scores = evaluate(model, tokenizer, [Path("quiz.jsonl")], limit=200)
    scores[0].means()["accuracy_per_byte"]

The harness computes all log-probabilities and generates all texts. From its samples, this module
takes the figures that `evaluation.items` names. Needs the extra `eval`.

Source: Gao et al., "The Language Model Evaluation Harness", github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.errors import ConfigError, pip_install
from cuvee.evaluation.items import Item, Kind, TaskScore
from cuvee.evaluation.published_tasks import offline, published_task
from cuvee.evaluation.question_tasks import GENERATED, question_sets
from cuvee.probes.questions import Question


def harness_version() -> str:
    """Return the version of lm-evaluation-harness. Raises `ConfigError` if it is missing."""
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError(f"evaluation needs `{pip_install('eval')}`: {error}") from None
    return str(lm_eval.__version__)


def evaluate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Path] = (),
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[TaskScore]:
    """Return the model's scores on question files and on tasks of the harness, in this order.

    `model` is a causal language model of transformers and `tokenizer` its tokenizer. `limit` is the
    most questions of each task. Raises `CorpusError` for a bad row, and `ConfigError` for an
    unknown task, one that would run code, or one whose data are not on this machine.
    """
    version = harness_version()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    was_training = model.training
    model.eval()
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        trust_remote_code=False,
    )
    asked = question_sets(questions, lambda question, kind: _fits(lm, question, kind), limit)
    built = {one.name: one.task() for one in asked}
    built |= {name: published_task(name) for name in dict.fromkeys(tasks)}
    try:
        with offline():
            found = evaluator.evaluate(
                lm, {"tasks": built}, limit=limit, bootstrap_iters=0, log_samples=True
            )
    finally:
        model.train(was_training)
    sources = {
        one.name: {"file": str(one.file), "sha256": one.sha256, "limit": limit} for one in asked
    }
    kinds = {one.name: one for one in asked}
    return [
        TaskScore(
            name,
            kinds[name].kind if name in kinds else "published",
            {**sources.get(name, {"limit": limit, "version": task.VERSION}), "lm_eval": version},
            _items(lm, task, found["samples"][name]),
            kinds[name].left_out if name in kinds else 0,
        )
        for name, task in built.items()
    ]


def _fits(lm: Any, question: Question, kind: Kind) -> bool:
    """Whether every answer has a token and leaves room for at least one token of the prompt."""
    lengths = [_tokens(lm, question.prompt, answer) for answer in question.answers]
    longest = max(lengths) if kind != "short" else GENERATED
    return min(lengths) > 0 and longest < lm.max_length


def _tokens(lm: Any, prompt: str, answer: str) -> int:
    """The number of tokens that the harness scores as the answer.

    It encodes prompt and answer together, and counts white space at the prompt's end to the answer.
    """
    if not prompt:
        return len(lm.tok_encode(answer, add_special_tokens=False))
    return len(lm.tok_encode(prompt + answer)) - len(lm.tok_encode(prompt.rstrip()))


def _items(lm: Any, task: Any, samples: Sequence[Mapping[str, Any]]) -> tuple[Item, ...]:
    """Return one item per question. Tasks with several filters give each figure once a filter."""
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    found: dict[int, tuple[str, dict[str, float]]] = {}
    for sample in samples:
        names = found.setdefault(
            sample["doc_id"], (str(sample["doc"].get("id") or sample["doc_hash"])[:32], {})
        )[1]
        suffix = f".{sample['filter']}" if len(filters) > 1 else ""
        figures = _figures(lm, task, sample)
        names.update({f"{name}{suffix}": value for name, value in figures.items()})
    return tuple(Item(one, figures) for one, figures in found.values())


def _figures(lm: Any, task: Any, sample: Mapping[str, Any]) -> dict[str, float]:
    if task.OUTPUT_TYPE == "multiple_choice":
        return _accuracies(lm, task, sample)
    if task.OUTPUT_TYPE == "loglikelihood":
        return _logprobs(lm, sample)
    if task.config.metric_list is None:
        said = str(sample["filtered_resps"][0]).strip()
        return {"exact_match": float(said == str(sample["target"]).strip())}
    measured = {name: sample[name] for name in sample["metrics"]}
    return {k: float(v) for k, v in measured.items() if isinstance(v, (int, float, np.number))}


def _accuracies(lm: Any, task: Any, sample: Mapping[str, Any]) -> dict[str, float]:
    choices = task.doc_to_choice(sample["doc"])
    pairs = [tuple(pair) for pair in sample["arguments"]][: len(choices)]
    logprob_C = np.array([float(one[0]) for one in sample["filtered_resps"]])[: len(choices)]
    tokens_C = np.array([_tokens(lm, *pair) for pair in pairs])
    bytes_C = np.array([_bytes(answer) for _, answer in pairs])
    target = sample["target"]
    right = [choices.index(target)] if isinstance(target, str) else np.atleast_1d(target).tolist()
    return {
        "accuracy_summed": float(int(logprob_C.argmax()) in right),
        "accuracy_per_byte": float(int((logprob_C / bytes_C).argmax()) in right),
        "accuracy_per_token": float(int((logprob_C / tokens_C).argmax()) in right),
    }


def _logprobs(lm: Any, sample: Mapping[str, Any]) -> dict[str, float]:
    prompt, answer = sample["arguments"][0]
    logprob = float(sample["filtered_resps"][0][0])
    return {
        "logprob_summed": logprob,
        "logprob_per_byte": logprob / _bytes(answer),
        "logprob_per_token": logprob / _tokens(lm, prompt, answer),
    }


def _bytes(answer: str) -> int:
    """UTF-8 bytes of the answer without the white space that separates it from the prompt."""
    return max(1, len(answer.lstrip().encode()))
