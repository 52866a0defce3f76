"""A causal dilated convolution over time, gated as in WaveNet. van den Oord et al. 2016, arXiv:1609.03499.

y_t = proj(tanh(F . taps) * sigmoid(G . taps)), taps: the tokens t, t - dilation, t - 2 dilation, ...
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


class Inputs:
    """The newest inputs, (B, reach - 1, C), zeros where there were none, and the document that each is of."""

    def __init__(self, n_rows: int, n_held: int, like: Tensor) -> None:
        self.x = like.new_zeros(n_rows, n_held, like.shape[0])
        self.documents = like.new_full((n_rows, n_held), -1, dtype=torch.long)


@register("attention", "conv")
class Conv(Attention):
    """WaveNet: a causal dilated convolution over time, gated. van den Oord et al. 2016, arXiv:1609.03499."""

    honours = frozenset()
    separates_documents = True
    cached = 0
    reach: int

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
        super().__init__(shape, position)
        bias = shape.bias if bias is None else bias
        if kernel_size < 2:
            raise ConfigError(f"model.attention.kernel_size must be at least 2, but is {kernel_size}.")
        self.dilation = _cycled(shape, kernel_size) if dilation is None else dilation
        if self.dilation < 1:
            raise ConfigError(f"model.attention.dilation must be at least 1, but is {self.dilation}.")
        self.reach = (kernel_size - 1) * self.dilation + 1
        if self.reach > shape.block_size:
            raise ConfigError(
                f"A convolution must fit into block_size, but kernel_size {kernel_size} with dilation {self.dilation} "
                f"spans {self.reach} tokens, and block_size is {shape.block_size}: make one of the first two smaller."
            )
        self.filters = nn.Linear(kernel_size * shape.n_embd, (1 + gated) * shape.n_embd, bias=bias)
        self.activation = _gate if gated else torch.relu
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Inputs | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(activation(filters @ taps)), oldest tap first."""
        past = cache or self.new_cache(len(x), 0)
        n_new = x.shape[1]
        starts = range(0, self.reach, self.dilation)
        seen = torch.cat((past.x.to(x.dtype), x), dim=1)
        taps = [seen[:, start : start + n_new] for start in starts]
        if context.documents is not None:
            documents = torch.cat((past.documents, context.documents), dim=1)
            own = [documents[:, start : start + n_new, None] == context.documents[..., None] for start in starts]
            taps = [tap * mine for tap, mine in zip(taps, own, strict=True)]
            past.documents = documents[:, n_new:]
        past.x = seen[:, n_new:]
        return self.proj(self.activation(self.filters(torch.cat(taps, dim=-1))))

    def new_cache(self, batch_size: int, max_len: int) -> Inputs:
        """The inputs that the next token still reaches."""
        return Inputs(batch_size, self.reach - 1, self.proj.weight)


def _cycled(shape: Shape, kernel_size: int) -> int:
    """kernel_size^layer, counted from 0 again after the last that fits into block_size."""
    n_fitting = 1
    while (kernel_size - 1) * kernel_size**n_fitting < shape.block_size:
        n_fitting += 1
    return kernel_size ** (shape.layer % n_fitting)


def _gate(x: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
    signal, gate = x.chunk(2, dim=-1)
    return torch.tanh(signal) * torch.sigmoid(gate)
