"""Cross entropy of many rows in chunks: the float32 logits of all of them, (N, V), are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LARGEST = 2**25  # logits held at once: 128 MiB in float32

Head = Callable[[Tensor], Tensor]  # (N, C) -> (N, V)


def cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Tensor:
    """Sum of the cross entropies (nats), in float32 at least, over the targets that are not -100."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def padded(head: nn.Linear, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N W"]:
    """`head(x)`, then zeros up to the next multiple of 64, at which the product on tensor cores is fast."""
    missing = -head.out_features % 64
    bias = None if head.bias is None else F.pad(head.bias, (0, missing))
    return F.linear(x, F.pad(head.weight, (0, 0, 0, missing)), bias)


def of_tokens(scores: Float[Tensor, "*N W"], n_tokens: int) -> Float[Tensor, "*N _"]:
    """Without the columns that no token has; for a compiler, which reads odd rows slowly, they stay, and are -inf."""
    if scores.shape[-1] == n_tokens or not torch.compiler.is_compiling():
        return scores[..., :n_tokens]
    return scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) >= n_tokens, float("-inf"))


def in_chunks(
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    head: Head,
    parameters: Sequence[Tensor],
    n_rows: int,
) -> Tensor:
    """`cross_entropy(head(hidden), targets)`, `n_rows` at a time; `parameters` are those of the head.

    The gradients are computed on the way, chunk by chunk, and kept for the backward pass, so that nothing is computed
    twice. That pass can run once.
    """
    if not torch.is_grad_enabled():
        pairs = zip(hidden.split(n_rows), targets.split(n_rows), strict=True)
        return torch.stack([cross_entropy(head(rows), wanted) for rows, wanted in pairs]).sum()
    total: Tensor = _Chunks.apply(hidden, targets, head, n_rows, *parameters)
    return total


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, n_rows: int, *parameters: Tensor) -> Tensor:
        learning = [p for p in parameters if p.requires_grad]
        losses, of_rows, summed = [], [], [torch.zeros_like(p) for p in learning]
        for rows, wanted in zip(hidden.detach().split(n_rows), targets.split(n_rows), strict=True):
            with torch.enable_grad():
                loss = cross_entropy(head(rows.requires_grad_()), wanted)
            of_chunk, *gradients = torch.autograd.grad(loss, [rows, *learning])
            losses.append(loss.detach())
            of_rows.append(of_chunk)
            for of_all, gradient in zip(summed, gradients, strict=True):
                of_all += gradient
        ctx.gradients = torch.cat(of_rows), {id(p): gradient for p, gradient in zip(learning, summed, strict=True)}
        ctx.parameters = parameters
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_parameters = ctx.gradients
        ctx.gradients = None  # in place, to hold no third copy of a large matrix: there is no second time
        for gradient in (of_rows, *of_parameters.values()):
            gradient *= outer[0]
        return of_rows, None, None, None, *(of_parameters.get(id(p)) for p in ctx.parameters)
