"""The program that one rank of `test_integrations_distributed.py` runs under torchrun.

Usage: `steered_rank.py CORPUS OUT`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainingArguments

from cuvee.core.errors import TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller
from cuvee.integrations.huggingface import Steering
from cuvee.methods.odm import ODM
from cuvee.training.distributed import Ranks
from cuvee.training.model import build_model

SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def steered(corpus: Corpus, out: Path, rows: int, resume: str | None = None) -> dict[str, Any]:
    """AC-ODM over 8 rows a step, in whatever number of processes this is."""
    steer = Steering(corpus, "ac_odm", interval=4, sequence_length=32)
    args = steer.arguments(
        TrainingArguments(
            str(out / "run"),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=2,
            max_steps=10,
            learning_rate=1e-2,
            save_steps=1,
            save_strategy="steps" if resume is None else "no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
    )
    model = build_model(SMALL, corpus, seed=1)
    trainer = Trainer(model, args, **steer.trainer_kwargs())
    trainer.train(resume_from_checkpoint=resume and steer.resume(out / "run" / resume))
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return {"trajectory": steer.controller.trajectory.to_json(), "weights": weights.tolist()}


def group_sum() -> float:
    """Whether the host's own group still works."""
    number = torch.ones(())
    dist.all_reduce(number)
    return float(number)


def begin(corpus: Corpus, timeout: float) -> Controller:
    stream = MixtureStream(
        corpus,
        Mixture.natural(corpus.domains),
        batch_size=4,
        sequence_length=32,
        seed=0,
        rank=dist.get_rank(),
        world_size=2,
    )
    model, ranks = build_model(SMALL, corpus, seed=1), Ranks.adopt(timeout=timeout)
    policy = ODM().commit(corpus, ())
    controller = Controller(policy, stream, model, interval=4, steps=8, ranks=ranks)
    controller.begin()
    return controller


def diverged(corpus: Corpus) -> dict[str, Any]:
    controller = begin(corpus, timeout=60.0)
    if dist.get_rank() == 1:
        controller._updates = [controller.stream.set_mixture(Mixture.uniform(corpus.names), 0)]
    try:
        controller.begin_step()
    except TrainingError as error:
        return {"error": str(error), "sum": group_sum()}
    return {}


def missing(corpus: Corpus) -> dict[str, Any]:
    controller = begin(corpus, timeout=2.0)
    if dist.get_rank() == 1:
        time.sleep(8.0)
        return {"sum": group_sum()}
    try:
        controller.begin_step()
    except TrainingError as error:
        return {"error": str(error), "sum": group_sum()}
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    corpus, out = Corpus.open(sys.argv[1]), Path(sys.argv[2])
    found = {"whole": steered(corpus, out, rows=2)}
    for stop in (4, 6):
        found[f"from {stop}"] = steered(corpus, out, rows=2, resume=f"checkpoint-{stop}")
    found |= {"diverged": diverged(corpus), "missing": missing(corpus)}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
