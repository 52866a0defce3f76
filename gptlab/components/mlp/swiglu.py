"""SwiGLU: a SiLU gate times a linear branch, then a projection. Shazeer 2020, arXiv:2002.05202."""

from __future__ import annotations

from typing import Annotated

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "swiglu")
class SwiGLU(nn.Module):
    """SwiGLU: a SiLU gate times a linear branch. Shazeer 2020, arXiv:2002.05202."""

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd; 8/3 has the parameters of a plain MLP at 4"] = 8 / 3,
        bias: Annotated[bool | None, "a bias in the three projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        bias = shape.bias if bias is None else bias
        hidden = hidden_size(shape, expand)
        self.gate = nn.Linear(shape.n_embd, hidden, bias=bias)
        self.up = nn.Linear(shape.n_embd, hidden, bias=bias)
        self.proj = nn.Linear(hidden, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(silu(gate(x)) * up(x))."""
        return self.proj(F.silu(self.gate(x)) * self.up(x))
