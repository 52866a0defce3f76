"""The squared rectifier: relu(x)^2 between two linear maps. So et al. 2021 (Primer), arXiv:2109.08668."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "relu2")
class ReLU2(nn.Module):
    """Linear, squared ReLU, linear: sparse and cheap. So et al. 2021 (Primer), arXiv:2109.08668."""

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd"] = 4.0,
        bias: Annotated[bool | None, "a bias in both projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        bias = shape.bias if bias is None else bias
        self.up = nn.Linear(shape.n_embd, hidden_size(shape, expand), bias=bias)
        self.proj = nn.Linear(self.up.out_features, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(relu(up(x))^2)."""
        return self.proj(torch.relu(self.up(x)).square())
