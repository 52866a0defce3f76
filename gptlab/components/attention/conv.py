"""A causal dilated convolution over time, gated as in WaveNet. van den Oord et al. 2016, arXiv:1609.03499.

y_t = proj(tanh(F . taps) * sigmoid(G . taps)), taps: the tokens t, t - dilation, t - 2 dilation, ...
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.taps import Inputs, Taps
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "conv")
class Conv(Taps):
    """WaveNet: a causal dilated convolution over time, gated. van den Oord et al. 2016, arXiv:1609.03499."""

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        kernel_size: Annotated[int, "tokens that a token looks at, itself included"] = 2,
        dilation: Annotated[
            int | None, "tokens from one to the next; null: kernel_size^layer, from 1 again where it passes block_size"
        ] = None,
        gated: Annotated[bool, "tanh times a sigmoid of a filter of its own; false: relu"] = True,
        bias: Annotated[bool | None, "a bias in the filters and the projection; null: model.bias"] = None,
    ) -> None:
        bias = shape.bias if bias is None else bias
        if kernel_size < 2:
            raise ConfigError(f"model.attention.kernel_size must be at least 2, but is {kernel_size}.")
        dilation = _cycled(shape, kernel_size) if dilation is None else dilation
        if dilation < 1:
            raise ConfigError(f"model.attention.dilation must be at least 1, but is {dilation}.")
        super().__init__(shape, position, kernel_size, dilation)
        if self.reach > shape.block_size:
            raise ConfigError(
                f"A convolution must fit into block_size, but kernel_size {kernel_size} with dilation {dilation} "
                f"spans {self.reach} tokens, and block_size is {shape.block_size}: make one of the first two smaller."
            )
        self.filters = nn.Linear(kernel_size * shape.n_embd, (1 + gated) * shape.n_embd, bias=bias)
        self.activation = _gate if gated else torch.relu
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Inputs | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(activation(filters @ taps)), oldest tap first."""
        return self.proj(self.activation(self.filters(self.taps(x, context, cache))))


def _cycled(shape: Shape, kernel_size: int) -> int:
    """kernel_size^layer, counted from 0 again after the last that fits into block_size."""
    n_fitting = 1
    while (kernel_size - 1) * kernel_size**n_fitting < shape.block_size:
        n_fitting += 1
    return kernel_size ** (shape.layer % n_fitting)


def _gate(x: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
    signal, gate = x.chunk(2, dim=-1)
    return torch.tanh(signal) * torch.sigmoid(gate)
