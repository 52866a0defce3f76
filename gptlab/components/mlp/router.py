"""Which experts a token goes to, and with what weights: the k best by a linear score. Shazeer et al. 2017.

arXiv:1701.06538; sigmoid scores and groups of experts: DeepSeek-AI 2024 (V3), arXiv:2412.19437.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.mlp.balance import Balance
from gptlab.components.precision import without_autocast
from gptlab.errors import ConfigError


@dataclass(frozen=True)
class Routing:
    """The rule: the `top_k` best of `n_expert` experts, from the `top_group` best of `n_group` groups of them."""

    n_expert: int
    top_k: int
    scores: str
    renormalise: bool
    scale: float
    bias: bool
    n_group: int
    top_group: int

    def __post_init__(self) -> None:
        if self.n_expert < 2:
            raise ConfigError(f"n_expert must be 2 or more, but is {self.n_expert}: for one take model/mlp=glu.")
        if not 1 <= self.top_k <= self.n_expert:
            raise ConfigError(f"top_k must be from 1 to n_expert, but {self.top_k} is not from 1 to {self.n_expert}.")
        if self.top_k == 1 and self.renormalise:
            raise ConfigError("renormalise makes every weight 1 where top_k is 1: set renormalise=false, or top_k=2.")
        if (self.n_group, self.top_group) != (1, 1):
            self._check_groups()

    def _check_groups(self) -> None:
        size, rest = divmod(self.n_expert, max(1, self.n_group))
        if rest or size < 2 or self.n_group < 1:
            raise ConfigError(
                f"n_group must divide n_expert into groups of 2 or more, but is {self.n_group} for {self.n_expert}."
            )
        if not 1 <= self.top_group < self.n_group:
            raise ConfigError(
                f"top_group must be at least 1 and below n_group, but is {self.top_group} of {self.n_group}."
            )
        if self.top_k > self.top_group * size:
            raise ConfigError(
                f"The top_group groups must hold top_k experts, but {self.top_group} of {size} do not hold "
                f"{self.top_k}: lower top_k or n_group."
            )


class Route(NamedTuple):
    """The scores of all experts for each token, the chosen ones, and their weights."""

    scores: Float[Tensor, "*N E"]
    chosen: Int[Tensor, "*N K"]
    weights: Float[Tensor, "*N K"]


class Router(nn.Module):
    """Scores of the experts, the best chosen, weighted by their scores. Computed in float32 at least."""

    roles: ClassVar[Mapping[str, str]] = {"linear.weight": "vector"}  # a row an expert, no map of hidden states

    def __init__(self, n_embd: int, routing: Routing, balance: Balance) -> None:
        super().__init__()
        self.top_k, self.scale, self.balance = routing.top_k, routing.scale, balance
        self.linear = nn.Linear(n_embd, routing.n_expert, bias=routing.bias)
        self.activation = {"softmax": nn.Softmax(-1), "sigmoid": nn.Sigmoid()}[routing.scores]
        self.candidates = BestGroups(routing.n_group, routing.top_group) if routing.n_group > 1 else nn.Identity()
        self.share = functools.partial(F.normalize, p=1.0, dim=-1) if routing.renormalise else nn.Identity()

    def forward(self, x: Float[Tensor, "*N C"]) -> Route:
        """Choose by the scores as the balance prefers them; weigh by the scores themselves."""
        scores = self.activation(self.logits(x))
        chosen = self.candidates(self.balance.prefer(scores)).topk(self.top_k, dim=-1).indices
        weights = self.scale * self.share(scores.gather(-1, chosen))
        return Route(scores, chosen, weights.to(x.dtype))

    def logits(self, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N E"]:
        """linear(x) in float32: between experts that are nearly equal, rounding would choose."""
        exact = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.linear.bias is None else self.linear.bias.to(exact)
        with without_autocast(x.device):
            return F.linear(x.to(exact), self.linear.weight.to(exact), bias)


class BestGroups(nn.Module):
    """-inf for experts outside the best groups; a group is as good as its two best experts. DeepSeek-AI 2024."""

    def __init__(self, n_group: int, top_group: int) -> None:
        super().__init__()
        self.n_group, self.top_group = n_group, top_group

    def forward(self, scores: Float[Tensor, "*N E"]) -> Float[Tensor, "*N E"]:
        """The scores of the experts that may be chosen."""
        grouped = scores.unflatten(-1, (self.n_group, -1))
        quality = grouped.topk(2, dim=-1).values.sum(-1)
        best = quality.topk(self.top_group, dim=-1).indices
        others = torch.ones_like(quality, dtype=torch.bool).scatter(-1, best, False)
        return grouped.masked_fill(others.unsqueeze(-1), -torch.inf).flatten(-2)
