"""TargetGain against a backward pass for each row, and what it must never do to training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from alignment_reference import (
    DOWN,
    LENGTH,
    ROWS,
    VOCAB,
    K,
    domains,
    model_of,
    rows_of_one_domain,
    token_losses,
    train_step,
)
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.probes.base import Context, MicroBatch
from cuvee.probes.target_gain import TargetGain, TargetGainMeter

TEXT = {
    f"d{k}": np.random.default_rng(k).integers(VOCAB, size=40 * LENGTH).astype(np.uint16)
    for k in range(2)
}


def attach(model: nn.Module, text: Any = TEXT, **options: Any) -> TargetGainMeter:
    probe = TargetGain(**{"rows": 4, "every": 1, "kept": 0.0, "precondition": False, **options})
    meter = probe.attach(
        Context(model, torch.device("cpu"), valid_tokens=lambda: text, row_tokens=LENGTH)
    )
    meter.begin_interval(domains())
    return meter


def by_hand(
    model: nn.Module, meter: TargetGainMeter, batch: MicroBatch, layers: list[str]
) -> np.ndarray:
    """(B,) ⟨G, ∇ℓ_r⟩ by one backward pass for each row."""
    weights = [model.get_parameter(f"{layer}.weight") for layer in layers]
    gains = []
    for loss_L, counted_L in zip(token_losses(model, batch), batch.counted_BL, strict=True):
        gradients = torch.autograd.grad(loss_L.sum() / counted_L.sum(), weights, retain_graph=True)
        named = zip(layers, gradients, strict=True)
        turned = {
            name: g if isinstance(meter._layers[name], nn.Linear) else g.t() for name, g in named
        }
        gains.append(sum(float((meter._target[name] * g).sum()) for name, g in turned.items()))
    return np.array(gains)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_agrees_with_a_backward_pass_for_each_row(kind: str) -> None:
    model, batch = model_of(kind), rows_of_one_domain()
    meter = attach(model, layers=("*mlp.*",))
    train_step(model, [batch], meter)
    gain_B = by_hand(model, meter, batch, list(meter._layers))
    domain_B = batch.domain_BL[:, 0].numpy()
    found = meter.read(meter.sums())
    scale = np.sqrt((gain_B**2).mean())
    for k in range(K):
        own = gain_B[domain_B == k] / scale
        assert found["target_gain_rows"].values[k] == len(own)
        assert found["target_gain"].values[k] == pytest.approx(own.mean(), rel=1e-4)
        assert found["target_gain_square"].values[k] == pytest.approx((own**2).mean(), rel=1e-4)


def test_sums_add_over_micro_batches_and_absent_domains_are_absent() -> None:
    model, batches = model_of(), [rows_of_one_domain(seed, used=3) for seed in range(2)]
    meter = attach(model, layers=(DOWN["llama"],))
    train_step(model, batches, meter)
    gain_B = np.concatenate([by_hand(model, meter, batch, [DOWN["llama"]]) for batch in batches])
    domain_B = np.concatenate([batch.domain_BL[:, 0].numpy() for batch in batches])
    found = meter.read(meter.sums())["target_gain"]
    assert found.present.tolist() == [True, True, True, False, False]
    expected = [gain_B[domain_B == k].mean() / np.sqrt((gain_B**2).mean()) for k in range(3)]
    np.testing.assert_allclose(found.values[:3], expected, rtol=1e-4)


def test_training_gets_the_same_gradients_with_and_without() -> None:
    batch, found = rows_of_one_domain(), []
    for measured in (False, True):
        model = model_of()
        if measured:
            train_step(model, [batch], attach(model, layers=("*mlp.*", "*attn.*")))
        else:
            (token_losses(model, batch).sum() / batch.bound()).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_targets_gradient_is_that_of_the_domains_that_count() -> None:
    model = model_of()
    meter = attach(model, objective={"d1": 1.0}, rows=8)
    meter.begin_step(0)
    rows_BL = torch.from_numpy(TEXT["d1"].reshape(-1, LENGTH).astype(np.int64))
    assert all((row == rows_BL).all(dim=1).any() for row in meter._draw())


@pytest.mark.parametrize(
    ("every", "share", "expected"), [(1, 1 / 4, 4), (2, 1.0, 2), (3, 1 / 4, 6)]
)
def test_small_batches_are_read_for_less_often(every: int, share: float, expected: int) -> None:
    """As many rows are read for G as a batch has: a share of 1/4 affords them every fourth step."""
    model, batch = model_of(), rows_of_one_domain()
    meter = attach(model, rows=ROWS, every=every, share=share)
    refreshed = []
    for step in range(13):
        if step == 7:  # after a restart, the cadence goes on
            meter.close()
            state = meter.state_dict()
            meter = attach(model, rows=ROWS, every=every, share=share)
            meter.load_state_dict(state)
        before = meter._refreshes
        train_step(model, [batch], meter, step)
        if meter._refreshes > before:
            refreshed.append(step)
    assert refreshed == list(range(0, 13, expected))


def test_it_is_divided_by_what_adam_divides_by_and_goes_on_after_a_restart() -> None:
    model, batch = model_of(), rows_of_one_domain()
    meter = attach(model, precondition=True, kept=0.5)
    for step in range(3):
        model.zero_grad()
        train_step(model, [batch], meter, step)
    again = attach(model, precondition=True, kept=0.5)
    again.load_state_dict(meter.state_dict())
    for one in (meter, again):
        one.begin_interval(domains())
        model.zero_grad()
        train_step(model, [batch], one, 3)
    name = DOWN["llama"]
    expected = meter._target[name] / (meter._squares[name].sqrt() + 1e-8)
    torch.testing.assert_close(meter._preconditioned(name), expected)
    assert torch.equal(meter.sums(), again.sums())
    meter.close()


def test_it_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="validation text"):
        TargetGain().attach(Context(model_of(), torch.device("cpu")))
    with pytest.raises(ConfigError, match="row of 24 tokens"):
        attach(model_of(), text={"d0": np.zeros(3, np.uint16)})
    with pytest.raises(ConfigError, match="row of 24 tokens"):
        attach(model_of(), objective={"d7": 1.0})
    with pytest.raises(ConfigError, match="rows"):
        TargetGain(rows=0)
    with pytest.raises(ConfigError, match="share 0"):
        TargetGain(share=0)


def test_flat_parts_of_a_weight_are_refused() -> None:
    """As FSDP1 keeps them."""
    model = model_of()
    meter = attach(model, precondition=True)
    meter.begin_step(0)
    layer = model.get_submodule(DOWN["llama"])
    layer.weight = nn.Parameter(layer.get_parameter("weight").detach().flatten()[:5])
    layer.weight.grad = torch.ones(5)
    with pytest.raises(TrainingError, match="use FSDP2 or DDP"):
        meter.before_update()


@pytest.mark.parametrize("part", ["model", "layers"])
def test_a_model_compiled_in_place_gives_the_same_gains(part: str) -> None:
    """As torchtitan and the Trainer compile. Layers of one type share code, which knows no hook."""
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = model_of()
        layers = next(one for one in model.modules() if isinstance(one, nn.ModuleList))
        for one in ([model] if part == "model" else layers) if compiled else []:
            one.compile(backend="aot_eager")
        meter = attach(model)
        train_step(model, [rows_of_one_domain()], meter)
        found.append(meter.read(meter.sums())["target_gain"].values)
        meter.close()
    torch.compiler.reset()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert np.abs(found[0]).max() > 0.1


def test_reentrant_checkpointing_is_refused_by_name() -> None:
    model = model_of().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(TrainingError, match="use_reentrant=False"):
        train_step(model, [rows_of_one_domain()], attach(model))


def test_dropout_in_a_refresh_does_not_move_the_generator() -> None:
    model = model_of("gpt2").train()
    for one in model.modules():
        if isinstance(one, nn.Dropout):
            one.p = 0.1
    meter = attach(model)
    before = torch.get_rng_state()
    meter.begin_step(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layer", ["transformer.h.1.mlp.c_proj", "transformer.h.1.attn.c_proj"])
def test_a_checkpoint_of_before_continues_in_a_conv1d_layer(layer: str) -> None:
    """It has the arrays of a Conv1D as the weight has them, (in, out), and no `trained`."""
    model, batch = model_of("gpt2").eval(), rows_of_one_domain()
    options: dict[str, Any] = {"layers": (layer,), "precondition": True, "kept": 0.5}
    meter = attach(model, **options)
    train_step(model, [batch], meter)
    state = meter.state_dict()
    old = {"refreshes": state["refreshes"]}
    old |= {
        part: {name: one.T for name, one in state[part].items()} for part in ("target", "squares")
    }
    again = attach(model, **options)
    again.load_state_dict(old)
    for one in (meter, again):
        one.begin_interval(domains())
        model.zero_grad()
        train_step(model, [batch], one, 1)
    np.testing.assert_allclose(again.sums().numpy(), meter.sums().numpy(), rtol=1e-5)


@pytest.mark.parametrize("other", [False, True])
# torch's default, which taps change
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # type: ignore[untyped-decorator]
def test_a_model_that_was_compiled_and_run_before_is_refused(other: bool) -> None:
    """Also if it was another model of the same class."""
    torch.compiler.reset()
    model = model_of()
    compiled = torch.compile(model, backend="aot_eager")
    before = torch.compile(model_of(), backend="aot_eager") if other else compiled
    token_losses(before, rows_of_one_domain()).sum().backward()
    model.zero_grad()
    with pytest.raises(TrainingError, match="compiled and run before the probe was attached"):
        train_step(compiled, [rows_of_one_domain()], attach(model))
    torch.compiler.reset()
