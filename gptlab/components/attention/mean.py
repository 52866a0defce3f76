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
    """The sum of the values seen, (B, 1, C), how many they are, (B or 1, 1, 1), and their document, (B, 1)."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0
        self.document: Tensor | int = -1


@register("attention", "mean")
class Mean(Attention):
    """Uniform average of the values so far: no queries, no keys. Karpathy 2023, "Let's build GPT"."""

    honours = frozenset()
    orderless = True
    separates_documents = True
    cached = 0

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
        past = cache or RunningSum()
        v = self.v(x)
        wide = torch.promote_types(v.dtype, torch.float32)
        ones = torch.ones(1, x.shape[1], x.shape[1], device=x.device, dtype=wide).tril()
        continues: Tensor | float = 1.0
        if context.documents is not None:
            ones = ones * (context.documents[:, :, None] == context.documents[:, None, :])
            continues = (context.documents == past.document)[..., None]
            past.document = context.documents[:, -1:]
        sums = (ones.to(v.dtype) @ v).to(wide) + continues * past.total
        counts = ones.sum(-1, keepdim=True) + continues * past.count
        past.total, past.count = sums[:, -1:], counts[:, -1:]
        return self.proj((sums / counts).to(v.dtype))

    def new_cache(self, batch_size: int, max_len: int) -> RunningSum:
        """The sum is all that the past amounts to, whatever its length."""
        return RunningSum()
