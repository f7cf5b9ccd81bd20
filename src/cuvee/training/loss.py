"""Next-token loss at every position, without storing all logits at once.

Output projection, cross-entropy and their gradients are computed in one pass over blocks of
positions (as in Hsu et al., "Liger Kernel", arXiv 2410.10989). In a small model with a real
vocabulary, the logits take most of the memory and time. A block of logits stays in the processor's
cache, and a step is about twice as fast as with whole logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cuvee.core.errors import ConfigError

# Logits stored at a time. On a CPU they should fit in the cache; on a GPU, large products are fast.
_CPU_BLOCK, _GPU_BLOCK = 2**20, 2**26


class NextTokenLoss:
    """Computes the loss to backpropagate and the loss at each position from tokens_BL.

    It works in blocks for a model whose logits are its last hidden states times its output
    embeddings; this is tested once on a few tokens. Any other model (with an output bias or capped
    logits, for example) computes its own logits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        compute: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.compute = compute
        self.head = model.get_output_embeddings()
        self.blockwise = _has_plain_head(model)
        run: Any = model.base_model if self.blockwise else model
        self.run = torch.compile(run) if compiled else run

    def __call__(
        self, tokens_BL: Tensor, counted_BL: Tensor, denominator: float
    ) -> tuple[Tensor, Tensor]:
        """Return Σ counted losses / `denominator`, to backpropagate, and the detached loss_BL.

        `counted_BL` marks the positions whose next-token loss counts. It is False at the end of
        each row. Where it is False, loss_BL is 0.
        """
        device = tokens_BL.device.type
        with torch.autocast(device, dtype=self.compute, enabled=self.compute != torch.float32):
            output = self.run(input_ids=tokens_BL, use_cache=False)
        if not self.blockwise:
            targets_BL = tokens_BL.roll(-1, dims=1)
            loss_BL = functional.cross_entropy(
                output.logits.float().mT, targets_BL, reduction="none"
            )
            loss_BL = loss_BL.masked_fill(~counted_BL, 0.0)
            return loss_BL.sum() / denominator, loss_BL.detach()
        return self.of_hidden(
            output.last_hidden_state.flatten(0, 1), tokens_BL, counted_BL, denominator
        )

    def of_hidden(
        self, hidden_NH: Tensor, tokens_BL: Tensor, counted_BL: Tensor, denominator: float
    ) -> tuple[Tensor, Tensor]:
        """The same from the last hidden states (B·L, H) at these tokens. Needs `blockwise`."""
        assert self.blockwise
        apply: Any = _BlockwiseLoss.apply  # untyped in torch
        total, loss_N = apply(
            hidden_NH,
            self.head.weight,
            tokens_BL.roll(-1, dims=1).flatten(),
            counted_BL.flatten() / denominator,
            self.compute,
            torch.is_grad_enabled(),
        )
        return total, loss_N.view_as(tokens_BL).masked_fill(~counted_BL, 0.0)


class _BlockwiseLoss(torch.autograd.Function):
    """Σ_n weight_n · (logsumexp(h_n Wᵀ) − h_n · W[target_n]) over N positions.

    The forward pass also computes the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        targets_N: Tensor,
        weight_N: Tensor,
        compute: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden_NH.to(compute)
        head = head_VH.to(compute)
        loss_N = torch.empty(len(hidden), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if with_gradient else None
        block = max(64, (_CPU_BLOCK if hidden.device.type == "cpu" else _GPU_BLOCK) // len(head))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), block):
                rows = slice(start, start + block)
                logits = (hidden[rows] @ head.T).float()
                target = targets_N[rows, None]
                # Computed from the largest logit and the largest probability. The target's
                # probability may underflow, and its log would be −∞.
                highest = logits.amax(1)
                chosen = logits.gather(1, target)[:, 0]
                probability = torch.softmax(logits, 1)
                loss_N[rows] = highest - chosen - probability.amax(1).log()
                if hidden_gradient is not None and head_gradient is not None:
                    probability.scatter_add_(1, target, probability.new_full(target.shape, -1.0))
                    gradient = probability.mul_(weight_N[rows, None]).to(compute)
                    hidden_gradient[rows] = gradient @ head
                    _add_product(head_gradient, gradient.T, hidden[rows])
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.hidden_dtype = hidden_NH.dtype
        ctx.mark_non_differentiable(loss_N)
        return (loss_N * weight_N).sum(), loss_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        upstream = gradients[0]
        return (
            (hidden_gradient * upstream).to(ctx.hidden_dtype),
            head_gradient * upstream,
            None,
            None,
            None,
            None,
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


@torch.no_grad()
def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits = hidden · Wᵀ.

    Raises `ConfigError` if the logits of an earlier position depend on a later token.
    """
    training = model.training
    device = model.device
    tokens = torch.arange(8, device=device).remainder(model.config.vocab_size).repeat(2, 1)
    tokens[1, -1] = 0
    try:
        model.eval()
        logits = model(input_ids=tokens, use_cache=False).logits
        if not torch.allclose(logits[0, :-1], logits[1, :-1], rtol=1e-4, atol=1e-5):
            raise ConfigError(
                f"this {model.config.model_type} model uses later tokens: it cannot be trained to "
                "predict next tokens"
            )
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            return False
        hidden = model.base_model(input_ids=tokens, use_cache=False)[0]
        return hidden.shape[-1] == head.in_features and torch.allclose(
            hidden @ head.weight.T, logits, rtol=1e-4, atol=1e-5
        )
    finally:
        model.train(training)
