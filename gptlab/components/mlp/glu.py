"""Gated linear units: activation(gate(x)) * up(x), then a projection. Shazeer 2020, arXiv:2002.05202."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.activations import Activation
from gptlab.components.mlp.gates import make_gate
from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "glu")
class GLU(nn.Module):
    """activation(gate(x)) * up(x), then a projection; with silu it is SwiGLU. Shazeer 2020, arXiv:2002.05202.

    Checked against transformers Llama, Gemma and gpt-oss.
    """

    width: ClassVar[str] = "expand"  # the option that match= may choose
    examples: ClassVar[dict[str, object]] = {"limit": 2.0}  # few entries are so near to it that a small step crosses

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd; 8/3 has the parameters of a plain MLP at 4"] = 8 / 3,
        activation: Activation = "silu",
        limit: Annotated[float | None, "bound of the gate from above and of the linear branch; null: none"] = None,
        offset: Annotated[float, "added to the linear branch"] = 0.0,
        bias: Annotated[bool | None, "a bias in the three projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        bias = shape.bias if bias is None else bias
        hidden = hidden_size(shape, expand)
        self.gate = nn.Linear(shape.n_embd, hidden, bias=bias)
        self.up = nn.Linear(shape.n_embd, hidden, bias=bias)
        self.product = make_gate(activation, limit, offset)
        self.proj = nn.Linear(hidden, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(activation(gate(x)) * up(x))."""
        return self.proj(self.product(self.gate(x), self.up(x)))
