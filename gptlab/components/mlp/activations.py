"""The nonlinearities of MLPs, by name, with their sources; elementwise, any shape to the same shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Activation = Annotated[
    Literal[
        "gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2", "tanh", "sigmoid", "xielu", "identity",
    ],
    "the nonlinearity",
]  # fmt: skip


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), near to GELU. Hendrycks & Gimpel 2016, arXiv:1606.08415."""

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """x sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


class ReLU2(nn.Module):
    """relu(x)^2: sparse and cheap. So et al. 2021 (Primer), arXiv:2109.08668."""

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """relu(x)^2."""
        return torch.relu(x).square()


class XIELU(nn.Module):
    """A learned parabola above 0, a learned exponential below, both of slope 1/2 at 0. Huang & Schlag 2024.

    arXiv:2411.13010. The two learned factors are kept positive by a softplus, and begin at 0.8.
    """

    slope = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.full((1,), math.log(math.expm1(0.8))))
        self.alpha_n = nn.Parameter(torch.full((1,), math.log(math.expm1(0.8 - self.slope))))

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """a_p x^2 + x/2 where x > 0, a_n (e^x - 1 - x) + x/2 elsewhere."""
        above = F.softplus(self.alpha_p) * x.square()
        low = x.clamp(max=0)  # e^x of what `where` leaves out must not overflow: its gradient would be NaN
        below = (self.slope + F.softplus(self.alpha_n)) * (torch.expm1(low) - low)
        return (torch.where(x > 0, above, below) + self.slope * x).to(x.dtype)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu2": ReLU2,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "xielu": XIELU,
    "identity": nn.Identity,
}
