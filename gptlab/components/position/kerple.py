"""Learned kernels of distance, subtracted from scores: its log, or a power. Chi et al. 2022, arXiv:2205.09921."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab.components.position.hooks import Position, Term
from gptlab.components.shape import Shape
from gptlab.registry import register

SMALLEST = 0.01  # of what r1 and r2 start at


@register("position", "kerple")
class KERPLE(Position):
    """KERPLE: scores fall with the log, or a power, of distance, learned by head. Chi et al. 2022, arXiv:2205.09921."""

    relative = True

    def __init__(
        self,
        shape: Shape,
        *,
        kernel: Annotated[Literal["log", "power"], "-r1 log(1 + r2 distance), or -r1 distance^r2 with r2 < 2"] = "log",
    ) -> None:
        super().__init__(shape)
        self.kernel = kernel
        self.r1 = nn.Parameter(torch.empty(shape.n_head))  # these two before softplus and sigmoid, which keep them
        self.r2 = nn.Parameter(torch.empty(shape.n_head))  # where the kernel is conditionally positive definite
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initial values: uniform, up to 2 for the scale of `log` and the exponent, else up to 1."""
        top1, top2 = (2.0, 1.0) if self.kernel == "log" else (1.0, 2.0)
        with torch.no_grad():
            r1, r2 = (torch.empty_like(r).uniform_(SMALLEST, top) for r, top in ((self.r1, top1), (self.r2, top2)))
            self.r1.copy_(r1.expm1().log())
            self.r2.copy_(r2.expm1().log() if self.kernel == "log" else torch.logit(r2 / 2, eps=SMALLEST))

    def terms(self) -> tuple[Term, ...]:
        """The kernel."""
        return (self.log if self.kernel == "log" else self.power,)

    def log(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The logarithmic kernel, in logits."""
        distance = (q_pos - k_pos).clamp(min=0)
        return -F.softplus(self.r1[head]) * torch.log1p(F.softplus(self.r2[head]) * distance)

    def power(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The power kernel, in logits."""
        distance = (q_pos - k_pos).clamp(min=0)
        return -F.softplus(self.r1[head]) * distance ** (2 * torch.sigmoid(self.r2[head]))
