"""U-net skips: a layer of the second half adds what its mirror in the first put out. Jordan 2024 (modded-nanoGPT)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.block.prenorm import PreNorm
from gptlab.components.block.wiring import Parts
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("block", "unet")
class UNet(PreNorm):
    """Pre-norm, with skips from layer i to layer n - 1 - i. Ronneberger 2015, arXiv:1505.04597; Jordan 2024."""

    def __init__(self, shape: Shape, parts: Parts, **options: Any) -> None:
        super().__init__(shape, parts, **options)
        self.layer, self.mirror = shape.layer, shape.n_layer - 1 - shape.layer
        self.skip = nn.Parameter(torch.ones(())) if self.mirror < self.layer else None

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """x + skip * mirror, then the block; the first half leaves what it puts out for the second."""
        kept = context.shared.get(("unet", self.mirror))
        if self.skip is not None and kept is not None:
            x = x + self.skip * kept
        y = super().forward(x, context, cache)
        context.shared["unet", self.layer] = y
        return y
