"""Two linear maps with a nonlinearity between: the MLP of the Transformer. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.activations import ACTIVATIONS, Activation
from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "plain")
class Plain(nn.Module):
    """Linear, nonlinearity, linear: the MLP of GPT-2. Vaswani et al. 2017, arXiv:1706.03762.

    Checked against transformers GPT-2, OPT and GPT-NeoX.
    """

    width: ClassVar[str] = "expand"  # the option that match= may choose

    def __init__(
        self,
        shape: Shape,
        *,
        expand: Annotated[float, "hidden size over n_embd"] = 4.0,
        activation: Activation = "gelu",
        bias: Annotated[bool | None, "a bias in both projections; null: model.bias"] = None,
    ) -> None:
        super().__init__()
        bias = shape.bias if bias is None else bias
        self.up = nn.Linear(shape.n_embd, hidden_size(shape, expand), bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.proj = nn.Linear(self.up.out_features, shape.n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """proj(activation(up(x)))."""
        return self.proj(self.activation(self.up(x)))
