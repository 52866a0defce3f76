"""ScaleNorm: x / |x| times one learned length. Nguyen & Salazar 2019, arXiv:1910.05895."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.norm.l2 import L2
from gptlab.registry import register


@register("norm", "scalenorm")
class ScaleNorm(L2):
    """x / |x| times one learned length, sqrt(size) at first. Nguyen & Salazar 2019, arXiv:1910.05895."""

    def __init__(self, size: int, *, eps: Annotated[float, "added to the squared length"] = 1e-5) -> None:
        super().__init__(size, eps=eps)
        self.length = nn.Parameter(torch.full((1,), math.sqrt(size)))

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """length * x / sqrt(|x|^2 + eps)."""
        return (self.length * super().forward(x)).to(x.dtype)
