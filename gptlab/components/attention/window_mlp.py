"""An MLP over the last few tokens, put side by side: the first neural language model.

Bengio et al. 2003, "A Neural Probabilistic Language Model" (JMLR 3): tanh of a linear map of the joined embeddings.
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


@register("attention", "window_mlp")
class WindowMLP(Taps):
    """A tanh MLP over the last few tokens, joined. Bengio et al. 2003, "A Neural Probabilistic Language Model"."""

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        window: Annotated[int, "tokens that a token looks at, itself included"] = 3,
        hidden: Annotated[int | None, "hidden units; null: 4 n_embd"] = None,
        bias: Annotated[bool | None, "a bias in both maps; null: model.bias"] = None,
    ) -> None:
        super().__init__(shape, position, window)
        bias = shape.bias if bias is None else bias
        hidden = 4 * shape.n_embd if hidden is None else hidden
        if not 1 <= window <= shape.block_size:
            raise ConfigError(
                f"model.attention.window must be from 1 to block_size = {shape.block_size}, but is {window}."
            )
        if hidden < 1:
            raise ConfigError(f"model.attention.hidden must be at least 1, but is {hidden}.")
        self.up = nn.Linear(window * shape.n_embd, hidden, bias=bias)
        self.proj = nn.Linear(hidden, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Inputs | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(tanh(up @ taps)), oldest tap first."""
        return self.proj(torch.tanh(self.up(self.taps(x, context, cache))))
