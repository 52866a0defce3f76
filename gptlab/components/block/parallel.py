"""Parallel: x + attention(norm(x)) + mlp(norm(x)), with one norm or two. Wang & Komatsuzaki 2021 (GPT-J)."""

from __future__ import annotations

from typing import Annotated, Any

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
    """x + attention(norm(x)) + mlp(norm(x)): GPT-J, PaLM. Wang & Komatsuzaki 2021; Chowdhery 2022, arXiv:2204.02311.

    Checked against transformers GPT-J, GPT-NeoX, Falcon and Cohere.
    """

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        *,
        two_norms: Annotated[bool, "a norm for each sublayer; false: one for both"] = False,
        **options: Any,
    ) -> None:
        super().__init__(shape, parts, **options)
        present = [not trait(parts.attention, "absent"), not getattr(parts.mlp, "absent", False)]
        self.norm = parts.norm() if (present[0] if two_norms else any(present)) else nn.Identity()
        self.mlp_norm = parts.norm() if two_norms and present[1] else nn.Identity()
        self.read_twice = two_norms

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Both sublayers read the same stream."""
        h = self.norm(x)
        return x + self.attend(h, context, cache) + self.reflect(self.mlp_norm(x) if self.read_twice else h, context)
