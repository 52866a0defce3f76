"""Every token takes the average of the values up to itself: the matrix trick of the lectures.

Karpathy 2023, "Let's build GPT" (the lower-triangular matrix of ones, each row divided by its sum).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.registry import register


class RunningSum:
    """The sum of the values seen, (B, 1, C), and how many they are."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0


@register("attention", "mean")
class Mean(Attention):
    """Uniform average of the values so far: no queries, no keys. Karpathy 2023, "Let's build GPT"."""

    honours = frozenset()
    orderless = True

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        bias: Annotated[bool | None, "a bias in the two projections; null: model.bias"] = None,
    ) -> None:
        super().__init__(shape, position)
        bias = shape.bias if bias is None else bias
        self.v = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: RunningSum | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj((lower triangle of ones / row sums) @ v), continued from the sum that the cache holds."""
        cache = cache or RunningSum()
        v = self.v(x)
        n_new = x.shape[1]
        sums = (torch.ones(n_new, n_new, device=x.device, dtype=v.dtype).tril() @ v).to(
            self.v.weight.dtype
        ) + cache.total
        counts = torch.arange(cache.count + 1, cache.count + n_new + 1, device=x.device)
        cache.total, cache.count = sums[:, -1:], cache.count + n_new
        return self.proj((sums / counts[:, None]).to(v.dtype))

    def new_cache(self, batch_size: int, max_len: int) -> RunningSum:
        """The sum is all that the past amounts to, whatever its length."""
        return RunningSum()
