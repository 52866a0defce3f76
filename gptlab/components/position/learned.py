"""A learned vector for each position, added to the token's embedding. GPT: Radford et al. 2018."""

from __future__ import annotations

import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.position.hooks import Position
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("position", "learned")
class Learned(Position):
    """A learned vector per position, added to the embedding; ends at block_size. GPT-2: Radford et al. 2019.

    Checked against transformers GPT-2 and OPT.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.limit = shape.block_size
        self.table = nn.Embedding(shape.block_size, shape.n_embd)

    def embed(self, x: Float[Tensor, "B T C"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T C"]:
        """x + table[position]."""
        return x + self.table(positions)
