"""GradientAlignment against K separate backward passes, and what it must never do to training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment_reference import (
    DOWN,
    LENGTH,
    ROWS,
    K,
    attach,
    domains,
    error,
    measured,
    mixed_rows,
    model_of,
    rows_of_one_domain,
    separate_backward,
    token_losses,
    train_step,
)
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.probes.base import Meter
from cuvee.probes.domain_runs import DomainRuns


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("batch_of", [rows_of_one_domain, mixed_rows])
def test_agrees_with_separate_backward_passes_under_gradient_accumulation(
    kind: str, batch_of: Any
) -> None:
    model = model_of(kind)
    batches = [batch_of(seed) for seed in range(4)]
    meter = attach(model, stride=1)
    train_step(model, batches[:3], meter, step=0)
    train_step(model, batches[3:], meter, step=1)
    gram = measured(meter)
    assert gram.present.all()
    assert error(gram, separate_backward(model, batches, [DOWN[kind]])) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_any_layers_can_be_chosen_when_rows_are_of_one_domain(kind: str) -> None:
    model = model_of(kind)
    meter = attach(model, layers=("*.mlp.*", "*.layers.0.*att*"))
    batch = rows_of_one_domain()
    train_step(model, [batch], meter)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".mlp." in name or (".0." in name and "att" in name))
    ]
    assert len(layers) > 4
    assert error(measured(meter), separate_backward(model, [batch], layers)) < 1e-5


def test_transposed_layers_of_gpt2_give_the_same_inner_products() -> None:
    model = model_of("gpt2")
    meter = attach(model)
    batch = rows_of_one_domain()
    train_step(model, [batch], meter)
    assert (
        error(measured(meter), separate_backward(model, [batch], ["transformer.h.1.mlp.c_proj"]))
        < 1e-5
    )


def test_training_is_the_same_bit_for_bit_with_and_without() -> None:
    def weights(measure: bool) -> list[Tensor]:
        model = model_of()
        meter = attach(model, stride=1) if measure else Meter()
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(3):
            train_step(model, [rows_of_one_domain(step), mixed_rows(step)], meter, step)
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(True), weights(False), strict=True))


def test_domains_without_a_token_are_absent() -> None:
    model = model_of()
    meter = attach(model)
    train_step(model, [rows_of_one_domain(used=3)], meter)
    present_K = np.array([True, True, True, False, False])
    assert (measured(meter).present == np.outer(present_K, present_K)).all()


def test_an_interval_without_steps_measures_nothing() -> None:
    assert not measured(attach(model_of())).present.any()


def test_only_every_stride_th_step_counts_and_the_first_always() -> None:
    model = model_of()
    meter = attach(model, stride=3)
    for step in range(17, 22):
        train_step(model, [rows_of_one_domain(step)], meter, step)
    expected = separate_backward(
        model, [rows_of_one_domain(17), rows_of_one_domain(20)], [DOWN["llama"]]
    )
    assert error(measured(meter), expected) < 1e-5


def test_intervals_do_not_leak_into_each_other_and_domains_may_change() -> None:
    model = model_of()
    meter = attach(model)
    train_step(model, [mixed_rows(1)], meter)
    meter.begin_interval(domains(3))
    batch = rows_of_one_domain(2, used=3)
    train_step(model, [batch], meter)
    assert measured(meter).shape == (3, 3)
    assert (
        error(measured(meter), separate_backward(model, [batch], [DOWN["llama"]], count=3)) < 1e-5
    )


def test_passes_between_steps_are_not_measured() -> None:
    model = model_of()
    meter = attach(model)
    train_step(model, [rows_of_one_domain(1)], meter)
    before = measured(meter)
    token_losses(model, rows_of_one_domain(2)).sum().backward()
    with torch.no_grad():
        token_losses(model, rows_of_one_domain(3))
    assert measured(meter) == before


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    model = model_of()
    batches = [rows_of_one_domain(1), rows_of_one_domain(2)]
    expected = separate_backward(model, batches, [DOWN["llama"]])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    meter = attach(model)
    train_step(model, batches, meter)
    assert error(measured(meter), expected) < 1e-5


def test_bf16_autocast() -> None:
    model = model_of()
    batch = rows_of_one_domain(1)
    expected = separate_backward(model, [batch], [DOWN["llama"]])
    meter = attach(model)
    with torch.autocast(
        "cpu", dtype=torch.bfloat16
    ):  # around the backward pass too, which it must not reach
        train_step(model, [batch], meter)
    assert 1e-7 < error(measured(meter), expected) < 0.02


def test_closing_removes_every_hook() -> None:
    model = model_of()
    meter = attach(model, layers=("*",))
    meter.close()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("*.down_proj", "*.nowhere")}, r"no linear layer matches '\*\.nowhere'"),
        ({"layers": "mlp"}, "list of layer names"),
        ({"stride": 0}, "stride is 0"),
        ({"sketch": 40}, "sketch of 40 numbers per domain is too small"),
    ],
)
def test_mistakes_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TrainingError), match=message):
        attach(model_of(), **options)


def test_a_model_without_mlp_says_what_to_give() -> None:
    with pytest.raises(TrainingError, match="set `layers`"):
        attach(nn.Sequential(nn.Linear(4, 4)))


def test_layers_that_see_some_positions_only_are_refused() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x[:, ::2])

    model = Half()
    meter = attach(model)
    batch = rows_of_one_domain()
    meter.begin_step(0)
    meter.before_forward(batch)
    with pytest.raises(TrainingError, match="receive every position"):
        model(torch.zeros(ROWS, LENGTH, 4)).sum().backward()


def test_short_runs_are_sorted_and_long_ones_are_left_where_they_are() -> None:
    assert DomainRuns.of(torch.tensor([[0] * 200, [1] * 200, [0] * 200])).runs == (
        (0, 0, 200),
        (1, 200, 400),
        (0, 400, 600),
    )
    runs = DomainRuns.of(torch.tensor([[2, 0, 2, 0]]))
    assert runs.runs == ((0, 0, 2), (2, 2, 4))
    assert runs.flat(torch.arange(4.0).view(1, 4, 1)).flatten().tolist() == [1, 3, 0, 2]


def test_sketched_when_the_sums_would_not_fit_in_memory() -> None:
    model, batch = model_of(), mixed_rows()
    numbers = 1400  # of the layer's 32 × 88 = 2816
    exact, bounded = attach(model), attach(model, memory=4 * K * numbers)
    for meter in (exact, bounded):
        train_step(model, [batch], meter)
    assert bounded._layers[DOWN["llama"]].sums_KM.numel() <= K * numbers
    assert 1e-4 < error(measured(bounded), measured(exact).values) < 4 * (2 / numbers) ** 0.5
