"""Dynamic Tanh: weight * tanh(alpha x) + bias, elementwise, with no statistics. Zhu et al. 2025, arXiv:2503.10622."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.registry import register


@register("norm", "dyt")
class DyT(nn.Module):
    """weight * tanh(alpha x) + bias instead of a norm; alpha is learned. Zhu et al. 2025, arXiv:2503.10622."""

    def __init__(self, size: int, *, alpha: Annotated[float, "initial slope of the tanh"] = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """weight * tanh(alpha x) + bias."""
        return (self.weight * torch.tanh(self.alpha * x) + self.bias).to(x.dtype)
