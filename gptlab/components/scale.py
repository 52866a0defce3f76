"""A fixed factor, as Gemma has on embeddings, Granite on residuals and logits. Gemma team 2024, arXiv:2403.08295."""

from __future__ import annotations

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor


class Scale(nn.Module):
    """x times a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "*sizes"]) -> Float[Tensor, "*sizes"]:
        """x times the factor."""
        return self.factor * x


class Softcap(nn.Module):
    """c tanh(x / c): values bounded by c. Gemma team 2024, arXiv:2408.00118."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Float[Tensor, "*sizes"]) -> Float[Tensor, "*sizes"]:
        """Bounded."""
        return self.cap * (x / self.cap).tanh()


def scaled(factor: float) -> nn.Module:
    """A factor, which costs nothing where it is 1."""
    return nn.Identity() if factor == 1 else Scale(factor)
