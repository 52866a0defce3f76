"""A learned bias for each head and bucket of distances, buckets widening with distance. Raffel et al. 2019.

arXiv:1910.10683; the causal half: nothing is added for what comes later, which no token sees.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Int
from torch import Tensor

from gptlab.components.position.hooks import Position, Term
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "t5")
class T5(Position):
    """T5: a learned bias for each head and bucket of distances. Raffel et al. 2019, arXiv:1910.10683.

    Checked against transformers T5Attention.
    """

    relative = True
    buckets: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        n_buckets: Annotated[int, "half of them for one distance each, half for ever wider ranges"] = 32,
        max_distance: Annotated[int, "tokens; all distances from here on share the last bucket"] = 128,
    ) -> None:
        super().__init__(shape)
        if n_buckets < 2 or max_distance <= n_buckets // 2:
            raise ConfigError(
                "T5 needs n_buckets of at least 2 and max_distance above half of them, "
                f"but they are {n_buckets} and {max_distance}."
            )
        self.std = shape.n_embd**-0.5
        self.table = nn.Embedding(n_buckets, shape.n_head)
        self.register_buffer("buckets", buckets(n_buckets, max_distance), persistent=False)

    def reset_parameters(self) -> None:
        """As T5 draws them."""
        nn.init.normal_(self.table.weight, std=self.std)

    def terms(self) -> tuple[Term, ...]:
        """table[bucket of the distance, head]."""
        return (self.bias,)

    def bias(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The term, in logits."""
        distance = (q_pos - k_pos).clamp(0, len(self.buckets) - 1)
        return self.table.weight[self.buckets[distance], head]


def buckets(n_buckets: int, max_distance: int) -> Int[Tensor, " distances"]:
    """The bucket of each distance from 0 to max_distance: n/2 of their own, then log-spaced, the last for the rest."""
    n_exact = n_buckets // 2
    distance = torch.arange(max_distance + 1)
    octaves = torch.log(distance.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    wide = (n_exact + (octaves * (n_buckets - n_exact)).long()).clamp(max=n_buckets - 1)
    return torch.where(distance < n_exact, distance, wide)
