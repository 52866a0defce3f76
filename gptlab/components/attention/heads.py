"""What softmax attention does to heads besides attending: norms of q and k, output gates, values of the first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.context import Context

MakeNorm = Callable[[int], nn.Module]  # size -> norm


def split(x: Float[Tensor, "B T HD"], n_head: int) -> Float[Tensor, "B H T D"]:
    """The heads side by side in the last dimension become a dimension of their own."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def head_norm(spec: Any, over: str, n_head: int, head_size: int) -> nn.Module:
    """A norm of (B, H, T, D) heads: with shared weights, weights for each head, or over all heads at once."""
    if spec is None:
        return nn.Identity()

    def make(size: int) -> nn.Module:
        norm: nn.Module = registry.build("norm", spec, size, where="model.attention.qk_norm")
        return norm

    return {"head": _one, "heads": NormOfEachHead, "projection": NormOfAllHeads}[over](make, n_head, head_size)


def _one(make: MakeNorm, n_head: int, head_size: int) -> nn.Module:
    return make(head_size)


class NormOfEachHead(nn.Module):
    """Each head normalized with weights of its own, as in StableLM 2. Dehghani et al. 2023, arXiv:2302.05442."""

    def __init__(self, make: MakeNorm, n_head: int, head_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(make(head_size) for _ in range(n_head))

    def forward(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        """Head by head."""
        return torch.stack([norm(head) for norm, head in zip(self.norms, x.unbind(1), strict=True)], dim=1)


class NormOfAllHeads(nn.Module):
    """The whole projection normalized as one vector, as in OLMo 2. OLMo team 2025, arXiv:2501.00656."""

    def __init__(self, make: MakeNorm, n_head: int, head_size: int) -> None:
        super().__init__()
        self.norm = make(n_head * head_size)

    def forward(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        """Heads side by side, normalized, and apart again."""
        return split(self.norm(x.transpose(1, 2).flatten(2)), x.shape[1])


class Gate(nn.Module):
    """A sigmoid gate on what each head, or each of its entries, puts out. Qiu et al. 2025, arXiv:2505.06708."""

    def __init__(self, n_embd: int, n_head: int, size: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(n_embd, n_head * size, bias=bias)
        self.n_head = n_head
        self.roles = {"linear.weight": "vector"} if size == 1 else {}  # a row a head, no map of hidden states

    def forward(self, y: Float[Tensor, "B H T D"], x: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T D"]:
        """y * sigmoid(linear(x)), `size` gates a head."""
        return y * torch.sigmoid(split(self.linear(x), self.n_head))


class NoGate(nn.Module):
    """Every head as it is."""

    def forward(self, y: Float[Tensor, "B H T D"], x: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T D"]:
        """y."""
        return y


class FirstValues(nn.Module):
    """Values mixed with those of the first layer that shares them: ResFormer. Zhou et al. 2024, arXiv:2410.17897."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v: Float[Tensor, "B G T D"], context: Context) -> Float[Tensor, "B G T D"]:
        """mix[0] v + mix[1] v_first. Layers of another shape have a first one of their own."""
        first = context.shared.setdefault(("values", v.shape[1], v.shape[3]), v)
        return self.mix[0] * v + self.mix[1] * first


class OwnValues(nn.Module):
    """Values as they are."""

    def forward(self, v: Float[Tensor, "B G T D"], context: Context) -> Float[Tensor, "B G T D"]:
        """v."""
        return v
