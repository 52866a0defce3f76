"""Rows sorted into groups, each multiplied by the matrix of its group: (M, C), (E, F, C) -> (M, F).

Static shapes whatever the sizes of the groups, and the FLOPs of M rows. Gale et al. 2022, arXiv:2211.15841.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ALIGNED = 8  # torch's grouped kernel reads rows of a multiple of 16 bytes


class Groups(NamedTuple):
    """Which group each row is of, in ascending order, and the row after the last of each group."""

    of_row: Int[Tensor, " M"]
    ends: Int[Tensor, " E"]

    @property
    def sizes(self) -> Int[Tensor, " E"]:
        """How many rows each group has."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))


def groups_of(sorted_groups: Int[Tensor, " M"], n_group: int) -> Groups:
    """The groups of rows that say in ascending order which one they are of."""
    every = torch.arange(n_group, device=sorted_groups.device)
    return Groups(sorted_groups, torch.searchsorted(sorted_groups, every, right=True, out_int32=True))


class GroupedLinear(nn.Module):
    """`n_group` linear maps as one tensor, drawn from N(0, std): a row goes through the map of its group."""

    def __init__(self, n_group: int, n_in: int, n_out: int, *, bias: bool, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(n_group, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_group, n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, std), biases 0."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "M C"], groups: Groups) -> Float[Tensor, "M F"]:
        """x @ weight[group].T + bias[group], in the precision that autocast has for products."""
        dtype = _product_dtype(x)
        y = grouped_product(x.to(dtype), self.weight.to(dtype), groups.ends)
        return y if self.bias is None else y + self.bias.to(dtype)[groups.of_row]


def product_by_loop(
    x: Float[Tensor, "M C"], weight: Float[Tensor, "E F C"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "M F"]:
    """x[m] @ weight[e].T for each row m of group e. Waits for CUDA, where bf16 in eights alone does without it."""
    stops = ends.tolist()
    spans = zip([0, *stops], stops, weight, strict=False)
    return torch.cat([x[start:stop] @ matrix.T for start, stop, matrix in spans])


def outer_by_loop(y: Float[Tensor, "M F"], x: Float[Tensor, "M C"], ends: Int[Tensor, " E"]) -> Float[Tensor, "E F C"]:
    """The sum of y[m] x[m]^T over the rows m of each group: the gradient of the group's matrix."""
    stops = ends.tolist()
    return torch.stack([y[start:stop].T @ x[start:stop] for start, stop in zip([0, *stops], stops, strict=False)])


# To a compiler and to a counter of FLOPs these are single operators: the sizes of the groups stay inside.
grouped_product = torch.library.custom_op(
    "gptlab::grouped_product",
    product_by_loop,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor",
)
grouped_outer = torch.library.custom_op(
    "gptlab::grouped_outer", outer_by_loop, mutates_args=(), schema="(Tensor y, Tensor x, Tensor ends) -> Tensor"
)


@grouped_product.register_kernel("cuda")
def _product_on_cuda(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if _fits_kernel(x.dtype, *weight.shape[1:]):
        return F.grouped_mm(x.contiguous(), weight.mT, offs=ends).contiguous()
    return product_by_loop(x, weight, ends)


@grouped_outer.register_kernel("cuda")
def _outer_on_cuda(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    if _fits_kernel(x.dtype, y.shape[1], x.shape[1]):
        return F.grouped_mm(y.contiguous().mT, x.contiguous(), offs=ends).contiguous()
    return outer_by_loop(y, x, ends)


@grouped_product.register_fake
def _product_shape(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _outer_shape(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], y.shape[1], x.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, ends = ctx.saved_tensors
    return grouped_product(gradient, weight.mT, ends), grouped_outer(gradient, x, ends), None


grouped_product.register_autograd(_backward, setup_context=_remember)


@register_flop_formula([torch.ops.gptlab.grouped_product, torch.ops.gptlab.grouped_outer])
def _flops(first: tuple[int, ...], second: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """2 M F C: (M, C) with (E, F, C), or (M, F) with (M, C)."""
    return 2 * first[0] * first[1] * second[1]


def _fits_kernel(dtype: torch.dtype, *sizes: int) -> bool:
    return dtype is torch.bfloat16 and all(size % ALIGNED == 0 for size in sizes)


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast, which does not know our operators, would cast the operands of a product to."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype is not torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
