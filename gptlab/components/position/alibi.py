"""Linear biases: each head subtracts its slope times the distance. Press et al. 2021, arXiv:2108.12409."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gptlab.components.position.hooks import Position, Term
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "alibi")
class ALiBi(Position):
    """ALiBi: each head's scores fall linearly with distance. Press et al. 2021, arXiv:2108.12409.

    Checked against transformers build_mpt_alibi_tensor, Bloom, MPT and Falcon.
    """

    relative = True
    slopes: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        max_bias: Annotated[float, "the gentlest slope is 2^-max_bias"] = 8.0,
        scale: Annotated[float, "factor of all slopes; 1 / sqrt(head size) scales them as scores are"] = 1.0,
    ) -> None:
        super().__init__(shape)
        for name, value in (("max_bias", max_bias), ("scale", scale)):
            if not value > 0:
                raise ConfigError(f"position.{name} must be above 0, but is {value}.")
        self.register_buffer("slopes", scale * torch.tensor(slopes(shape.n_head, max_bias)), persistent=False)

    def terms(self) -> tuple[Term, ...]:
        """-slope[head] * distance."""
        return (self.fall,)

    def fall(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The term, in logits."""
        return -self.slopes[head] * (q_pos - k_pos)


def slopes(n_head: int, max_bias: float = 8.0) -> list[float]:
    """2^(-m/n), 2^(-2m/n), ... for a power of two n; else those of the one below and every other one of twice it."""
    n = 2 ** math.floor(math.log2(n_head))
    first = [2 ** (-max_bias * (i + 1) / n) for i in range(n)]
    return first + [2 ** (-max_bias / 2 * (2 * i + 1) / n) for i in range(n_head - n)]
