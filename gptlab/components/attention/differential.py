"""Differential attention: the difference of two softmax maps, so that noise common to both cancels.

Ye et al. 2024, arXiv:2410.05258.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.attention.softmax import Softmax
from gptlab.components.context import Places
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


class Weight(nn.Module):
    """The learned weight of the second map, exp(q1 . k1) - exp(q2 . k2) + start. Ye et al. 2024."""

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(torch.empty(size)) for _ in range(4))
        self.start = start
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' N(0, 0.1)."""
        for vector in self.parameters():
            nn.init.normal_(vector, std=0.1)

    def forward(self) -> Float[Tensor, ""]:
        """lambda."""
        return (self.q1 * self.k1).sum().exp() - (self.q2 * self.k2).sum().exp() + self.start


@register("attention", "differential")
class Differential(Softmax):
    """(softmax 1 - lambda softmax 2) v, each head normalized: the Diff Transformer. Ye et al. 2024, arXiv:2410.05258.

    The maps of the first half of the heads less those of the second, each pair on values of twice the size: n_head / 2
    heads are put out, with the parameters of n_head usual ones.

    Checked against transformers DiffLlamaAttention.
    """

    maps = 2
    examples: ClassVar[dict[str, object]] = {**Softmax.examples, "out_norm": "layernorm"}

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        lambda_init: Annotated[
            float | None, "weight of the second map at the start; null: 0.8 - 0.6 exp(-0.3 layer), layers from 0"
        ] = None,
        out_norm: Annotated[str | dict[str, Any], "the norm of what a pair of maps puts out"] = "rmsnorm",
        **options: Any,
    ) -> None:
        super().__init__(shape, position, **options)
        if self.n_kv_head % 2:
            raise ConfigError(
                f"differential attention pairs heads: n_head and n_kv_head must be even, but are {self.n_head} and "
                f"{self.n_kv_head}."
            )
        start = 0.8 - 0.6 * math.exp(-0.3 * shape.layer) if lambda_init is None else lambda_init
        if not 0 <= start < 1:
            raise ConfigError(f"model.attention.lambda_init must be in [0, 1), but is {start}.")
        self.weight = Weight(self.head_size, start)
        self.out_norm = registry.build("norm", out_norm, 2 * self.head_size, where="model.attention.out_norm")

    def attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G S D"], v: Float[Tensor, "B G S D"],
        queries: Places, keys: Places,
    ) -> Float[Tensor, "B ..."]:  # fmt: skip
        """(1 - start) norm(map 1 - lambda map 2), (B, H/2, T, 2D)."""
        pairs = torch.cat(v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # both maps of a pair look at the same values
        signal, noise = super().attend(q, k, pairs, queries, keys).chunk(2, dim=1)
        return (1 - self.weight.start) * self.out_norm(signal - self.weight() * noise)
