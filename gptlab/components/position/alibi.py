"""Linear biases: each head subtracts its slope times the distance. Press et al. 2021, arXiv:2108.12409."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptlab.components.position.hooks import Position, Term
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("position", "alibi")
class ALiBi(Position):
    """ALiBi: each head's scores fall linearly with distance. Press et al. 2021, arXiv:2108.12409."""

    relative = True
    slopes: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.register_buffer("slopes", torch.tensor(slopes(shape.n_head)), persistent=False)

    def terms(self) -> tuple[Term, ...]:
        """-slope[head] * distance."""
        return (self.fall,)

    def fall(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The term, in logits."""
        return -self.slopes[head] * (q_pos - k_pos)


def slopes(n_head: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... for a power of two n; else those of the one below and every other one of twice it."""
    n = 2 ** math.floor(math.log2(n_head))
    first = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    return first + [2 ** (-4 * (2 * i + 1) / n) for i in range(n_head - n)]
