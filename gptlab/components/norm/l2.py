"""Unit length: x over its length, times a constant. Henry et al. 2020, arXiv:2010.04245; nGPT, arXiv:2410.01131."""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.registry import register


@register("norm", "l2")
class L2(nn.Module):
    """x / |x| times a constant: on the unit sphere, as in nGPT. Henry 2020; Loshchilov 2024, arXiv:2410.01131."""

    def __init__(
        self,
        size: int,
        *,
        scale: Annotated[float, "the length"] = 1.0,
        eps: Annotated[float, "added to the squared length"] = 1e-5,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.eps = size, scale, eps

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """scale * x / sqrt(|x|^2 + eps), by way of the root mean square, which torch takes in float32 at least."""
        return self.scale / math.sqrt(self.size) * F.rms_norm(x, (self.size,), eps=self.eps / self.size)
