"""`EvaluationSet`: how well the model answers questions, as log-probabilities of reference answers.

It is the evaluation environment of Data Mixing Agent (arXiv 2507.15640). After each interval, sets
of questions (fields), such as a general and a target field, are scored. The score is the mean
log-probability of the tokens of a reference answer, given the question. Rewards subtract the base
model's score and weight the fields.

The score of a field is the mean of its files' scores, so that a file with long answers does not
dominate. The cost is limited: a forward pass costs a third of a training step on the same tokens,
so `share` of an interval's cost pays for 3 · share · (tokens of the interval) tokens of questions.
This budget is divided evenly between the fields, and within a field between its files.

Questions are selected by a hash of their text only. Every interval, run, rank count and order of
files uses the same questions, so differences between intervals are differences of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import ConfigError, CorpusError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import FORWARD_SHARE, Context, Meter
from cuvee.probes.questions import Question, read_questions

NAME = "evaluation"
_BATCH_TOKENS = 4096
_BATCH_LOGITS = 2**26


@register_probe("evaluation")
@dataclass(frozen=True)
class EvaluationSet:
    """Settings of the probe. It reports these signals, with F fields in the order of `fields`:

    "evaluation" (F,)           mean log-probability of an answer token in nats, over all answer
                                tokens of a file; then the mean over the field's files
    "evaluation_accuracy" (F,)  only with `accuracy`: the share of multiple-choice questions whose
                                right answer has the highest mean log-probability per token; then
                                the mean over files that have such questions, absent if none has
    "evaluation_tokens" ()      tokens read to evaluate, without padding
    """

    files: Mapping[str, Sequence[Path | str]]
    """JSONL files of each field, such as {"general": […], "target": […]}.

    `read_questions` describes their rows.
    """
    share: float = 0.02
    """The highest cost of evaluation, as a share of the cost of training an interval."""
    max_items: int = 256
    """The most questions per field. Every file contributes at least one."""
    max_tokens: int = 512
    """Prompts are cut at the beginning to fit. A question whose answer is too long is left out."""
    accuracy: bool = False
    """Whether to score the wrong choices too. A question then costs as many passes as choices."""
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    name: str = field(default=NAME, init=False)

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError(
                "files is empty: give JSONL files for each field, such as "
                '{"general": [...], "target": [...]}'
            )
        for name, paths in self.files.items():
            if isinstance(paths, (str, Path)) or not paths:
                raise ConfigError(
                    f"files of field {name!r} must be a list of JSONL files, got {paths!r}"
                )
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share}: it must be above 0 and not above 1")
        if self.max_items < 1 or self.max_tokens < 2:
            raise ConfigError("max_items must be 1 or more, and max_tokens 2 or more")

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.files)

    def attach(self, context: Context) -> EvaluationMeter:
        """Read the files and select the questions.

        Raises `CorpusError` with file and line for a bad row, and `ConfigError` if the context has
        no tokenizer.
        """
        if context.tokenizer is None:
            raise ConfigError(
                "an evaluation set needs a tokenizer: set Context.tokenizer in the trainer"
            )
        return EvaluationMeter(self, context)


@dataclass(frozen=True)
class Encoded:
    """One question in tokens: one sequence per answer, the prompt's tokens first."""

    file: int
    """Index of the question's file among the files of all fields."""
    sequences: tuple[tuple[int, ...], ...]
    prompt: int
    """Number of prompt tokens at the beginning of each sequence."""
    reference: int

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        return max(len(sequence) for sequence in self.sequences)


class EvaluationMeter(Meter):
    """Runs the evaluation when `sums` is called, at the end of an interval."""

    def __init__(self, probe: EvaluationSet, context: Context) -> None:
        self._probe = probe
        self._context = context
        self._tokenizer: Any = context.tokenizer
        limit = getattr(getattr(context.model, "config", None), "max_position_embeddings", None)
        self._limit = min(probe.max_tokens, limit or probe.max_tokens)
        self.questions: list[Encoded] = []
        self._field_N: list[int] = []
        for number in range(len(probe.files)):
            self.questions += self._pick(number)
        self._batches = self._bucketed()
        self._read = 0

    @torch.no_grad()
    def sums(self) -> Tensor:
        """Flat (N files, 4) of the sums below over this rank's questions, then the tokens read.

        The four columns: Σ log-probability, answer tokens, right choices, questions with choices.
        """
        model = self._context.model
        ranks = self._context.place.data_ranks
        device = self._context.device
        sums_N4 = torch.zeros(len(self._field_N), 4, dtype=torch.float64, device=device)
        self._read = 0
        was_training = model.training
        model.eval()
        try:
            # Sharded models need every rank in every pass, so all ranks run equally many passes.
            # A rank without a batch repeats the last one and discards its scores.
            for start in range(0, len(self._batches), ranks):
                mine = start + self._context.place.data_rank
                batch = self._batches[min(mine, len(self._batches) - 1)]
                scores_N4 = self._score(batch)
                if mine < len(self._batches):
                    sums_N4 += scores_N4
                    self._read += sum(question.tokens for question in batch)
        finally:
            model.train(was_training)
        return torch.cat([sums_N4.reshape(-1), sums_N4.new_tensor([self._read])])

    def flops(self) -> float:
        return self._read * FORWARD_SHARE * self._context.flops_per_token

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        sums_N4 = sums[:-1].view(-1, 4).cpu().numpy()
        tokens = float(sums[-1])
        found = {
            NAME: self._by_field(sums_N4[:, 0], sums_N4[:, 1]),
            f"{NAME}_tokens": Measured.all(tokens),
        }
        if self._probe.accuracy:
            found[f"{NAME}_accuracy"] = self._by_field(sums_N4[:, 2], sums_N4[:, 3])
        return found

    def _by_field(self, sums_N: FloatArray, counts_N: FloatArray) -> Measured:
        """(F,): for each file sum / count, then the mean over the files of each field."""
        files_NF = np.eye(len(self._probe.files))[self._field_N] * (counts_N > 0)[:, None]
        return Measured.mean((sums_N / np.maximum(counts_N, 1)) @ files_NF, files_NF.sum(axis=0))

    def _pick(self, number: int) -> Iterator[Encoded]:
        """Select questions of field `number` until its budget or `max_items` is used up.

        The questions of a file are in a fixed random order. The next one is always from the file
        with the fewest tokens so far.
        """
        probe = self._probe
        interval = self._context.interval_tokens
        name, paths = list(probe.files.items())[number]
        files = [
            (
                sorted(
                    read_questions(Path(path), probe.prompt_key, probe.answer_key),
                    key=attrgetter("rank"),
                ),
                path,
            )
            for path in paths
        ]
        files.sort(key=lambda file: file[0][0].rank)
        budget = (
            math.inf
            if interval is None
            else probe.share * interval / FORWARD_SHARE / len(probe.files)
        )
        waiting = {
            i: self._encode(len(self._field_N) + i, questions)
            for i, (questions, _) in enumerate(files)
        }
        self._field_N += [number] * len(files)
        spent = dict.fromkeys(waiting, 0)
        picked = 0
        while waiting:
            i = min(waiting, key=spent.__getitem__)
            encoded = next(waiting[i], None)
            if encoded is None:
                if not spent[i]:
                    raise CorpusError(
                        f"no answer in {files[i][1]}, of field {name!r}, is shorter than "
                        f"{self._limit} tokens: raise max_tokens, or remove the file"
                    )
                del waiting[i]
                continue
            if spent[i] and (
                picked >= probe.max_items or sum(spent.values()) + encoded.tokens > budget
            ):
                return
            spent[i] += encoded.tokens
            picked += 1
            yield encoded

    def _encode(self, file: int, questions: Sequence[Question]) -> Iterator[Encoded]:
        """Encode questions. Prompt and answer are encoded apart, so their boundary is exact."""
        for question in questions:
            score_all = self._probe.accuracy and question.has_choices
            answers = question.answers if score_all else (question.answers[question.reference],)
            texts = self._tokenizer.encode_batch(
                [question.prompt, *answers], add_special_tokens=False
            )
            prompt, *endings = (text.ids for text in texts)
            room = self._limit - max(len(ending) for ending in endings)
            if room < 1 or not prompt or not all(endings):
                continue
            prompt = prompt[-room:]
            sequences = tuple((*prompt, *ending) for ending in endings)
            yield Encoded(file, sequences, len(prompt), question.reference if score_all else 0)

    def _bucketed(self) -> list[list[Encoded]]:
        """Batches of whole questions of similar length, limited by tokens and by logits."""
        vocabulary = self._tokenizer.get_vocab_size()
        most = min(_BATCH_TOKENS, _BATCH_LOGITS // vocabulary)
        batches: list[list[Encoded]] = []
        rows = 0
        for question in sorted(self.questions, key=lambda question: question.longest):
            rows += len(question.sequences)
            if not batches or rows * question.longest > most:
                batches.append([])
                rows = len(question.sequences)
            batches[-1].append(question)
        return batches

    def _score(self, batch: Sequence[Encoded]) -> Tensor:
        """(N, 4): the columns of `sums` for one batch."""
        context = self._context
        rows = [(question, sequence) for question in batch for sequence in question.sequences]
        longest = max(len(sequence) for _, sequence in rows)
        # Padding on the right has no effect on earlier positions under causal attention.
        tokens_BL = torch.tensor(
            [[*sequence, *[0] * (longest - len(sequence))] for _, sequence in rows]
        )
        answer_BL = torch.zeros(tokens_BL.shape, dtype=torch.bool)
        for row, (question, sequence) in enumerate(rows):
            answer_BL[row, question.prompt - 1 : len(sequence) - 1] = (
                True  # the logits at a position predict the next token
            )
        tokens_BL = tokens_BL.to(context.device)
        answer_BL = answer_BL.to(context.device)
        with torch.autocast(
            context.device.type, context.compute, enabled=context.compute != torch.float32
        ):
            output: Any = context.model(input_ids=tokens_BL)
        logits_BLV = output if isinstance(output, Tensor) else output.logits
        chosen_N = tokens_BL.roll(-1, dims=1)[answer_BL]
        logprob_N = torch.log_softmax(logits_BLV[answer_BL].float(), -1).gather(
            1, chosen_N[:, None]
        )[:, 0]
        row_N = answer_BL.nonzero()[:, 0]
        sum_B = (
            logprob_N.new_zeros(len(rows), dtype=torch.float64)
            .index_add_(0, row_N, logprob_N.double())
            .cpu()
        )
        return self._tally(batch, sum_B, answer_BL.sum(1).cpu()).to(context.device)

    def _tally(self, batch: Sequence[Encoded], sum_B: Tensor, count_B: Tensor) -> Tensor:
        scores_N4 = torch.zeros(len(self._field_N), 4, dtype=torch.float64)
        first = 0
        for question in batch:
            rows = slice(first, first + len(question.sequences))
            reference = first + question.reference
            first = rows.stop
            scores_N4[question.file, 0] += sum_B[reference]
            scores_N4[question.file, 1] += count_B[reference]
            if len(question.sequences) > 1:
                best = int((sum_B[rows] / count_B[rows]).argmax())
                scores_N4[question.file, 2] += best == question.reference
                scores_N4[question.file, 3] += 1
        return scores_N4
