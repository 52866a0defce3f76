"""Two linear maps with a GELU between: the MLP of GPT-2. Hendrycks & Gimpel 2016, arXiv:1606.08415."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "gelu")
class GELU(nn.Module):
    """Linear, GELU, linear: the MLP of GPT-2. Hendrycks & Gimpel 2016, arXiv:1606.08415."""

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd"] = 4.0,
        approximate: Annotated[Literal["none", "tanh"], "exact, or GPT-2's tanh formula"] = "none",
        bias: Annotated[bool | None, "a bias in both projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        bias = shape.bias if bias is None else bias
        self.up = nn.Linear(shape.n_embd, hidden_size(shape, expand), bias=bias)
        self.activation = nn.GELU(approximate=approximate)
        self.proj = nn.Linear(self.up.out_features, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(gelu(up(x)))."""
        return self.proj(self.activation(self.up(x)))
