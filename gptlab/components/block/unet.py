"""U-net skips: a layer of the second half adds what its mirror in the first put out. Jordan 2024 (modded-nanoGPT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.block.prenorm import PreNorm
from gptlab.components.block.wiring import Block, Parts
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("block", "unet")
class UNet(PreNorm):
    """Pre-norm, with skips from layer i to layer n - 1 - i. Ronneberger 2015, arXiv:1505.04597; Jordan 2024."""

    def __init__(self, shape: Shape, parts: Parts, **options: Any) -> None:
        super().__init__(shape, parts, **options)
        if shape.n_layer < 2:
            raise ConfigError(f"unet joins layers: n_layer must be at least 2, but is {shape.n_layer}: take prenorm.")
        self.layer, self.mirror = shape.layer, shape.n_layer - 1 - shape.layer
        self.skip = nn.Parameter(torch.ones(1)) if self.mirror < self.layer else None

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """x + skip * mirror, then the block; the first half leaves what it puts out for the second."""
        if self.skip is not None:
            x = x + self.skip * context.shared["unet", self.mirror]
        y = super().forward(x, context, cache)
        context.shared["unet", self.layer] = y
        return y

    def check_stack(self, blocks: Sequence[Block]) -> None:
        """ConfigError where the mirror of this layer is no unet."""
        if not isinstance(blocks[self.mirror], UNet):
            raise ConfigError(
                f"unet joins layer {self.layer} to its mirror, layer {self.mirror}, but that is no unet: "
                "make both one in model.layers, or neither."
            )
