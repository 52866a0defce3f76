"""E MLPs as stacked matrices, each applied to the rows of its group; and one that every token goes through."""

from __future__ import annotations

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.gates import Gate
from gptlab.components.mlp.grouped import GroupedLinear, Groups
from gptlab.components.shape import Shape


class Experts(nn.Module):
    """proj(inner(branches(x))) with matrices of its own for each group: glu where `inner` is a Gate, else plain."""

    def __init__(self, shape: Shape, n_expert: int, hidden: int, inner: nn.Module, bias: bool) -> None:
        super().__init__()

        def linear(n_in: int, n_out: int, std: float) -> GroupedLinear:
            return GroupedLinear(n_expert, n_in, n_out, bias=bias, std=std)

        names = ("gate", "up") if isinstance(inner, Gate) else ("up",)
        self.branches = nn.ModuleDict({name: linear(shape.n_embd, hidden, shape.init_std) for name in names})
        self.inner = inner
        self.proj = linear(hidden, shape.n_embd, shape.proj_std)

    def forward(self, x: Float[Tensor, "M C"], groups: Groups) -> Float[Tensor, "M C"]:
        """Each row through the MLP of its group."""
        return self.proj(self.inner(*(branch(x, groups) for branch in self.branches.values())), groups)


class GatedMLP(nn.Module):
    """sigmoid(gate(x)) * mlp(x), one gate for a token: the shared expert of Qwen1.5-MoE. Qwen Team 2024."""

    def __init__(self, shape: Shape, mlp: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.n_embd, 1, bias=False)
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """sigmoid(gate(x)) * mlp(x)."""
        return torch.sigmoid(self.gate(x)) * self.mlp(x)
