"""No MLP: the sublayer is left out. Attention-only models: Elhage et al. 2021, "A Mathematical Framework"."""

from __future__ import annotations

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.shape import Shape
from gptlab.registry import register


@register("mlp", "none")
class NoMLP(nn.Module):
    """No MLP: the block leaves the sublayer out. Elhage et al. 2021, "A Mathematical Framework"."""

    absent = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Nothing to add."""
        return torch.zeros_like(x)
