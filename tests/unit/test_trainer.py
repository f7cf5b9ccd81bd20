"""The language-model trainer: exact losses by domain, exact resume, refusals before an update,
export."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from cuvee.core.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm
from cuvee.testing.trainer import TrainerSuite, assert_same_state
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import NAMES, stdlib_corpus

pytestmark = pytest.mark.training
torch.set_num_threads(1)

UNIFORM = Mixture.uniform(NAMES)
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SETTINGS = TrainerSettings(
    steps=7,
    batch_size=6,
    sequence_length=32,
    interval=3,
    learning_rate=3e-3,
    validate_every=1,
    validation_tokens=256,
    device="cpu",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("corpus"))


Make = Callable[..., LMTrainer]


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> Make:
    def made(model: Any = SMALL, **changes: Any) -> LMTrainer:
        settings = dataclasses.replace(SETTINGS, **changes)
        stream = MixtureStream(
            corpus,
            UNIFORM,
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
            seed=11,
        )
        return LMTrainer(build_model(model, corpus, seed=2), stream, corpus, settings)

    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 4, "schedule": "wsd", "validate_every": 2},
        {"model": {**SMALL, "attention_dropout": 0.2}},
        {"model": "pythia-0.1m", "precision": "bf16"},
    ],
    ids=["llama", "accumulated", "dropout", "neox-bf16"],
)
class TestLMTrainer(TrainerSuite):
    probes = (WeightNorms(), GradientNorm())

    @pytest.fixture(autouse=True)
    def _made(self, make: Make, changes: dict[str, Any]) -> None:
        self.make = lambda: make(**changes)  # type: ignore[method-assign]


def weights(trainer: LMTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def losses_by_domain(trainer: LMTrainer, batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts by domain, from the model's own logits, one row at a time."""
    sums_K, counts_K = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for batch in batches:
        for tokens_L, domain, real_L in zip(
            batch.tokens_BL, batch.domain_B, batch.counted_BL, strict=True
        ):
            tokens_L = torch.from_numpy(tokens_L[real_L])
            logits = trainer.model(tokens_L[None]).logits[0]
            sums_K[domain] += functional.cross_entropy(
                logits[:-1].double(), tokens_L[1:], reduction="sum"
            ).item()
            counts_K[domain] += len(tokens_L) - 1
    return sums_K, counts_K


@pytest.mark.parametrize("micro_batch_size", [None, 1, 4])
def test_loss_by_domain_is_that_of_each_row_alone(make: Make, micro_batch_size: int | None) -> None:
    trainer = make(micro_batch_size=micro_batch_size, learning_rate=1e-12, weight_decay=0.0)
    trainer.start(())
    signals = trainer.advance(UNIFORM)
    stream = make().stream
    batches = [next(stream) for _ in range(3)]
    with torch.no_grad():
        sums_K, counts_K = losses_by_domain(trainer, batches)
    np.testing.assert_allclose(signals.loss.values, sums_K / counts_K, rtol=1e-5)
    drawn_K = sum(batch.tokens_K() for batch in batches)
    np.testing.assert_array_equal(signals.tokens_K, drawn_K)


def test_the_update_is_that_of_the_mean_token_loss(make: Make) -> None:
    """Against PyTorch's own loss, clipping and AdamW, on unequal rows and with accumulation."""
    for rows in (None, 4):
        trainer = make(micro_batch_size=rows, max_grad_norm=0.05, warmup_ratio=0.0)
        reference = make().model
        trainer.start(())
        batch = next(make().stream)
        assert trainer._meters is not None
        trainer._train_step(trainer._meters, trainer.stream.domains)
        tokens, real = torch.from_numpy(batch.tokens_BL), torch.tensor(batch.counted_BL)
        labels = tokens.masked_fill(~real, -100)
        reference(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        s = SETTINGS
        plain = [p for n, p in reference.named_parameters() if p.ndim < 2 or "embed_tokens" in n]
        decayed = [
            p for n, p in reference.named_parameters() if p.ndim >= 2 and "embed_tokens" not in n
        ]
        groups = [
            {"params": decayed, "weight_decay": s.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        torch.optim.AdamW(groups, lr=s.learning_rate, betas=s.betas).step()
        for own, expected in zip(trainer.model.parameters(), reference.parameters(), strict=True):
            # Adam's first step is nearly the sign of the gradient. Where the gradient is 0 up to
            # rounding, the two may differ.
            off = (own - expected).abs() > 1e-6
            assert off.float().mean() < 0.01


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_gradient_alignment_comes_out_of_the_same_step(
    make: Make, micro_batch_size: int | None
) -> None:
    trainer = make(interval=1, micro_batch_size=micro_batch_size)
    trainer.start([GradientAlignment()])
    batch = next(make().stream)
    model = make().model
    gradients = []
    for k in range(len(NAMES)):
        model.zero_grad()
        labels = torch.from_numpy(batch.tokens_BL).masked_fill(
            ~torch.tensor(batch.counted_BL), -100
        )
        labels[torch.from_numpy(batch.domain_B) != k] = -100
        model(input_ids=torch.from_numpy(batch.tokens_BL), labels=labels).loss.backward()
        gradients.append(model.base_model.layers[-1].mlp.down_proj.weight.grad.double().flatten())
    expected_KK = torch.stack(gradients) @ torch.stack(gradients).T
    signals = trainer.advance(UNIFORM)
    np.testing.assert_allclose(
        signals.probes["alignment"].values, expected_KK, rtol=1e-4, atol=1e-9
    )


def test_a_compiled_model_trains_and_measures_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for any compiler, without the minutes that generating code takes."""
    monkeypatch.setattr(
        torch._dynamo.config, "skip_nnmodule_hook_guards", True
    )  # to be as it was after this test
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    measured = []
    for compiled in (False, True):
        trainer = make(compile=compiled)
        signals = [trainer.start([GradientAlignment(), GradientNorm()])]
        while not trainer.done:
            signals.append(trainer.advance(UNIFORM))
        measured.append(signals)
    torch.compiler.reset()
    for plain, compiled in zip(*measured, strict=True):
        np.testing.assert_allclose(plain.loss.values, compiled.loss.values, rtol=1e-5)
        assert set(plain.probes) == set(compiled.probes)
        for name in plain.probes:
            np.testing.assert_allclose(
                plain.probes[name].values,
                compiled.probes[name].values,
                rtol=1e-4,
                atol=1e-7,
                err_msg=name,
            )


def test_the_loss_falls_and_the_last_interval_is_shorter(make: Make) -> None:
    trainer = make(
        "llama-0.1m", steps=25, interval=10, batch_size=8, sequence_length=64, learning_rate=1e-2
    )
    signals = [trainer.start(())]
    while not trainer.done:
        signals.append(trainer.advance(UNIFORM))
    assert [s.step for s in signals] == [0, 10, 20, 25]
    assert int(signals[1].tokens_K.sum()) == 10 * 8 * 64
    valid = [s.probes["valid_loss"].values for s in signals]
    assert (valid[0] > 6).all()
    assert (valid[-1] < valid[0] - 0.7).all()


def test_validation_is_the_token_weighted_loss_of_fixed_windows(make: Make, corpus: Corpus) -> None:
    trainer = make(validation_tokens=10**6, micro_batch_size=5)
    valid = trainer.start(()).probes["valid_loss"].values
    with torch.no_grad():
        for k, name in enumerate(NAMES):
            tokens = torch.from_numpy(np.array(corpus.pool(name, "valid").tokens, dtype=np.int64))
            windows = tokens[: len(tokens) // 32 * 32].view(-1, 32)
            loss = trainer.model(input_ids=windows, labels=windows).loss.item()
            assert valid[k] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("every", "expected"), [(1, {0, 3, 6, 7}), (2, {0, 6, 7}), (0, {0, 7})])
def test_validation_happens_at_both_ends_and_when_it_is_due(
    make: Make, every: int, expected: set[int]
) -> None:
    trainer = make(validate_every=every)
    signals: list[Signals] = [trainer.start(())]
    while not trainer.done:
        signals.append(trainer.advance(UNIFORM))
    assert {s.step for s in signals if "valid_loss" in s.probes} == expected
    assert trainer.settings.validations == len(expected)


def test_cost_counts_validation_and_what_probes_compute(make: Make, tmp_path: Path) -> None:
    """A forward pass costs a third of training. Alignment costs one product per measured
    position and inner products per interval."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "def f(x):", "answer": " return x"}')
    trainer = make(validate_every=2)
    signals = [trainer.start([GradientAlignment(stride=2), EvaluationSet({"code": [questions]})])]
    while not trainer.done:
        signals.append(trainer.advance(UNIFORM))
    validated = 3 * len(NAMES) * 256  # at the start, after two intervals of three, at the end
    asked = sum(float(s.probes["evaluation_tokens"].values) for s in signals)
    passes = trainer.cost.tokens + (validated + asked) / 3
    layer = 16 * 32  # hidden size and intermediate size of SMALL
    products = 2 * layer * 6 * 32 * (2 + 2 + 1) + 2 * layer * len(NAMES) ** 2 * len(signals)
    assert trainer.cost.flops == pytest.approx(
        passes * trainer.size.flops_per_token + products, rel=1e-12
    )


def test_a_loss_that_is_not_finite_is_refused_before_the_weights_are_touched(make: Make) -> None:
    trainer = make(batch_size=3)
    trainer.start(())
    trainer.advance(UNIFORM)
    batches = make(batch_size=3).stream
    batch = [next(batches) for _ in range(4)][-1]
    poisoned = batch.tokens_BL[batch.domain_B == 1][0, 0]
    elsewhere = {
        int(t)
        for row, k in zip(batch.tokens_BL, batch.domain_B, strict=True)
        if k != 1
        for t in row
    }
    if int(poisoned) in elsewhere:
        poisoned = next(
            t for t in batch.tokens_BL[batch.domain_B == 1].ravel() if int(t) not in elsewhere
        )
    trainer.model.get_input_embeddings().weight.data[int(poisoned)] = torch.nan
    before = weights(trainer)
    with pytest.raises(
        DivergedError, match=f"step 3: .*loss of {NAMES[1]} is not finite.*learning_rate"
    ):
        trainer.advance(UNIFORM)
    assert trainer.step == 3
    for name, weight in trainer.model.named_parameters():
        np.testing.assert_array_equal(weight.detach(), before[name])


def test_a_gradient_that_is_not_finite_is_refused(make: Make) -> None:
    trainer = make()
    trainer.start(())
    trainer.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weights(trainer)
    with pytest.raises(TrainingError, match=r"step 0: the gradient.*norm (inf|nan)"):
        trainer.advance(UNIFORM)
    assert all(
        torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters()
    )


def test_running_out_of_memory_names_what_to_lower(make: Make) -> None:
    trainer = make()
    trainer.start(())

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 8 GiB.")

    trainer.model.get_input_embeddings().register_forward_hook(no_memory)
    with pytest.raises(
        TrainingError, match=r"step 0: tried to allocate 8 GiB\. Lower micro_batch_size"
    ):
        trainer.advance(UNIFORM)


def test_training_leaves_the_callers_random_numbers_alone(make: Make) -> None:
    trainer = make({**SMALL, "attention_dropout": 0.2})
    trainer.start(())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer.advance(UNIFORM)
    assert torch.equal(torch.rand(3), expected)


def test_state_is_a_copy(make: Make) -> None:
    trainer = make()
    trainer.start(())
    state, again = trainer.state_dict(), trainer.state_dict()
    trainer.advance(UNIFORM)
    assert_same_state(state, again)


def test_a_checkpoint_of_something_else_is_refused(make: Make) -> None:
    trainer = make()
    trainer.start(())
    state = trainer.state_dict()
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.003, not 0\.1"):
        make(learning_rate=0.1).restore(state, ())
    with pytest.raises(CheckpointError, match=r"another model: .* has shape"):
        make("llama-0.1m").restore(state, ())
    make(device="auto", compile=False).restore(state, ())
    state["update"]["weights"]["model.norm.weight"][3] = np.nan
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is not finite"):
        make().restore(state, ())


def test_domains_that_come_and_are_renamed_mid_run_are_measured_and_restored(
    make: Make, corpus: Corpus, tmp_path: Path
) -> None:
    other = stdlib_corpus(tmp_path / "other")
    other.fingerprint = "another"

    def with_other() -> LMTrainer:
        trainer = make(steps=20)
        return LMTrainer(trainer.model, trainer.stream, corpus, trainer.settings, others=[other])

    trainer = with_other()
    so_far = Trajectory.start(trainer.start(()))
    trainer.stream.retire_domain("network")
    trainer.stream.add_domain("network", other)
    before = Mixture.of({"algorithms": 0.5, "mail": 0.5})
    so_far = so_far.append(before, trainer.advance(before))
    assert so_far.names == NAMES
    assert so_far.last.tokens_K[2] == 0
    assert not so_far.last.loss.present[2]
    trainer.stream.rename_domain("network", "web")
    trainer.stream.add_domain("network", corpus)
    mixture = Mixture.uniform(("algorithms", "mail", "web"))
    so_far = so_far.append(mixture, trainer.advance(mixture))
    assert so_far.names == ("algorithms", "mail", "web", "network")
    assert so_far.last_mixture == mixture.to(so_far.names)
    valid = so_far.last.probes["valid_loss"]
    assert valid.present.all()
    assert valid.values[2] == valid.values[3]  # the same text under two names
    resumed = with_other()
    resumed.restore(trainer.state_dict(), ())
    assert resumed.advance(mixture.to(so_far.names)) == trainer.advance(mixture.to(so_far.names))


def test_settings_that_cannot_work_are_named(make: Make) -> None:
    with pytest.raises(
        ConfigError, match="sequence_length 64 is more than the model's 48 positions"
    ):
        make({**SMALL, "max_position_embeddings": 48}, sequence_length=64)
    with pytest.raises(ConfigError, match="max_grad_norm is -1"):
        make(max_grad_norm=-1.0)
    trainer = make()
    with pytest.raises(ConfigError, match="batch_size is 5, the stream's 6"):
        LMTrainer(
            trainer.model,
            trainer.stream,
            trainer.corpus,
            dataclasses.replace(SETTINGS, batch_size=5),
        )
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            make(device="cuda")


def test_a_corpus_without_a_tokenizer_can_be_trained_on(
    make: Make, corpus: Corpus, tmp_path: Path
) -> None:
    bare = Corpus.open(corpus.folder)
    unknown = bare.manifest.tokenizer.model_copy(update={"sha256": None})
    bare.manifest = bare.manifest.model_copy(update={"tokenizer": unknown})
    trainer = make()
    trainer = LMTrainer(trainer.model, trainer.stream, bare, SETTINGS)
    trainer.start(())
    trainer.advance(UNIFORM)
    trainer.export(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "tokenizer.json").exists()


def test_the_trained_model_is_an_ordinary_hugging_face_folder(
    make: Make, corpus: Corpus, tmp_path: Path
) -> None:
    trainer = make()
    trainer.start(())
    trainer.advance(UNIFORM)
    trainer.export(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "def push(heap, item):\n    é"
    ids = tokenizer(text)["input_ids"]
    assert ids == corpus.tokenizer().encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == corpus.end_of_text
    tokens = torch.tensor([ids])
    assert torch.equal(model(tokens).logits, trainer.model.eval()(tokens).logits)
    assert not list((tmp_path / "model").glob("*.bin"))
    continued = build_model(tmp_path / "model", corpus)
    assert torch.equal(continued(tokens).logits, model(tokens).logits)
