"""Activation checkpointing: a block is computed again in the backward pass. Chen et al. 2016, arXiv:1604.06174."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import gptlab.components.mlp.grouped  # noqa: F401  (registers its product)
from gptlab.components.context import Context

Left = dict[Any, Any]  # what parts leave in a context, by name
aten = torch.ops.aten
KEPT = [  # by selective checkpointing: what is dear to compute
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.gptlab.grouped_product.default,
]  # fmt: skip


def recomputed(
    block: Callable[[Tensor, Context], Tensor], x: Float[Tensor, "B T C"], context: Context, *, selective: bool
) -> Float[Tensor, "B T C"]:
    """`block(x, context)`, which keeps `x` alone for the backward pass; `selective`, the products too."""
    before = _copied(context)

    def run(x: Tensor) -> tuple[Tensor, Left, Left, Left]:
        own = _copied(before)  # the second time as the first
        y = block(x, own)
        return y, own.shared, own.losses, own.metrics  # left in a list out there, no compiler could follow

    more: dict[str, Any] = {}
    if selective:
        more["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    y, shared, losses, metrics = checkpoint(run, x, use_reentrant=False, **more)
    context.shared.update(shared)
    context.losses.update(losses)
    context.metrics.update(metrics)
    return y  # type: ignore[no-any-return]


def _copied(context: Context) -> Context:
    """The same places, and what parts left so far, to which others may add without being seen here."""
    return replace(context, shared=dict(context.shared), losses=dict(context.losses), metrics=dict(context.metrics))
