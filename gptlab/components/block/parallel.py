"""Parallel: x + attention(norm(x)) + mlp(norm(x)), one norm for both. Wang & Komatsuzaki 2021 (GPT-J)."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention import trait
from gptlab.components.block.wiring import Block, Parts
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("block", "parallel")
class Parallel(Block):
    """x + attention(norm(x)) + mlp(norm(x)): GPT-J, PaLM. Wang & Komatsuzaki 2021; Chowdhery 2022, arXiv:2204.02311."""

    def __init__(self, shape: Shape, parts: Parts) -> None:
        super().__init__(shape, parts)
        present = not (trait(parts.attention, "absent") and getattr(parts.mlp, "absent", False))
        self.norm = parts.norm() if present else nn.Identity()

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Both sublayers read the same normalized stream."""
        h = self.norm(x)
        return x + self.dropout(self.mix(h, context, cache)) + self.dropout(self.mlp(h))
