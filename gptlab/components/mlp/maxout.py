"""Maxout: each hidden unit is the largest of several linear maps. Goodfellow et al. 2013, arXiv:1302.4389."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("mlp", "maxout")
class Maxout(nn.Module):
    """Hidden units learn a convex activation, the largest of n lines. Goodfellow et al. 2013, arXiv:1302.4389."""

    width: ClassVar[str] = "expand"  # the option that match= may choose
    examples: ClassVar[dict[str, object]] = {"n_piece": 3}

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd; 8/3 has the parameters of a plain MLP at 4"] = 8 / 3,
        n_piece: Annotated[int, "linear maps of which a hidden unit is the largest"] = 2,
        bias: Annotated[bool | None, "a bias in both projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        if n_piece < 2:
            raise ConfigError(f"model.mlp.n_piece must be at least 2, but is {n_piece}: one line is no activation.")
        bias = shape.bias if bias is None else bias
        hidden = hidden_size(shape, expand)
        self.n_piece = n_piece
        self.up = nn.Linear(shape.n_embd, n_piece * hidden, bias=bias)
        self.proj = nn.Linear(hidden, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(max over pieces of up(x))."""
        return self.proj(self.up(x).unflatten(-1, (self.n_piece, -1)).amax(-2))
