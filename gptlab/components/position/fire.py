"""A learned function of log-distance over the log of the query's position. Li et al. 2023, arXiv:2310.04418."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab.components.position.hooks import Position, Term
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "fire")
class FIRE(Position):
    """FIRE: an MLP of log-distance over the log of the query's position. Li et al. 2023, arXiv:2310.04418."""

    pointwise = False
    roles: ClassVar[Mapping[str, str]] = {"outer.weight": "vector"}  # as small as the inner one

    def __init__(
        self,
        shape: Shape,
        *,
        hidden: Annotated[int, "hidden size of the MLP"] = 32,
        threshold: Annotated[float, "initial L, in tokens: queries up to it share one scale; learned"] = 512.0,
    ) -> None:
        super().__init__(shape)
        if hidden < 1 or not threshold >= 1:
            raise ConfigError(f"FIRE needs hidden and threshold of at least 1, but they are {hidden} and {threshold}.")
        self.threshold = threshold
        self.inner = nn.Linear(1, hidden)
        self.outer = nn.Linear(hidden, shape.n_head, bias=False)  # softmax ignores a bias, which all keys share
        self.log_c = nn.Parameter(torch.empty(1))  # as logarithms: c and the threshold L are above 0
        self.log_threshold = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's: c = 0.1, L as asked for, and torch's own draws for the MLP."""
        nn.init.constant_(self.log_c, math.log(0.1))
        nn.init.constant_(self.log_threshold, math.log(self.threshold))
        self.inner.reset_parameters()
        self.outer.reset_parameters()

    def terms(self) -> tuple[Term, ...]:
        """MLP(log(1 + c distance) / log(1 + c max(L, position)))."""
        return (self.bias,)

    def bias(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The term, in logits: one MLP for all heads, so `head` may vary along dimension 1 alone."""
        c = self.log_c.exp()
        span = torch.maximum(self.log_threshold.exp(), q_pos)
        nearness = torch.log1p(c * (q_pos - k_pos).clamp(min=0)) / torch.log1p(c * span)
        hidden = self.inner(nearness[..., None]).relu()  # (#B, 1, T, S, F)
        return F.linear(hidden, self.outer.weight[head.flatten()]).movedim(-1, 1).squeeze(2)
