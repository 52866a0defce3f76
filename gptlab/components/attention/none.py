"""No attention: the sublayer is left out. An ablation of Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context
from gptlab.registry import register


@register("attention", "none")
class NoAttention(Attention):
    """No attention at all: the block leaves the sublayer out. An ablation of Vaswani et al. 2017, arXiv:1706.03762."""

    honours = frozenset()
    orderless = True
    absent = True

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Nothing to add."""
        return torch.zeros_like(x)

    def new_cache(self, batch_size: int, max_len: int) -> None:
        """Nothing to remember."""
        return
