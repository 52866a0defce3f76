"""Muon: hidden matrices go by their momentum made orthogonal, the rest by AdamW. Jordan et al. 2024,

kellerjordan.github.io/posts/muon; steps as large as AdamW's: Liu et al. 2025, arXiv:2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab import distributed
from gptlab.errors import ConfigError
from gptlab.optimizer.adamw import AdamW
from gptlab.optimizer.rule import Group, Memory, Rule, Step, WeightDecay, must_be
from gptlab.registry import register

TOGETHER = 2**26  # entries of matrices that are made orthogonal in one go
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at 0, so that five steps bring singular values near 1


@register("optimizer", "muon")
class Muon(AdamW):
    """Orthogonal steps for hidden matrices, AdamW for the rest. Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.

    A stack of matrices, such as the weights of experts, is made orthogonal matrix by matrix.
    """

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: Annotated[float, "peak learning rate of hidden matrices; about 0.02, or AdamW's with match_rms"] = 0.02,
        adamw_lr: Annotated[float, "peak learning rate of embedding, head and vectors; about 2e-3"] = 2e-3,
        momentum: Annotated[float, "decay of the mean of gradients of hidden matrices, per step"] = 0.95,
        nesterov: Annotated[bool, "look ahead: go by the mean after the next step"] = True,
        ns_steps: Annotated[int, "Newton-Schulz iterations that make a step orthogonal"] = 5,
        match_rms: Annotated[bool, "steps of AdamW's size: 0.2 sqrt(longer side), not sqrt(rows / columns)"] = False,
        weight_decay: WeightDecay = 0.01,
        **options: Any,
    ) -> None:
        must_be("above 0 and finite", lr=lr, adamw_lr=adamw_lr, ns_steps=ns_steps)
        must_be("at least 0 and below 1", momentum=momentum)
        if nesterov and not momentum:
            raise ConfigError("optimizer.nesterov looks ahead by the momentum, but momentum is 0: set nesterov=false.")
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        for group in self.param_groups:
            if group["role"] == "matrix":
                group.update(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, match_rms=match_rms)
            else:
                self.scale_rate(group, adamw_lr / lr)

    def memory(self, p: Tensor, group: Group) -> Memory:
        """A mean of gradients, or what AdamW remembers."""
        return {"momentum_buffer": torch.zeros_like(p)} if group["role"] == "matrix" else super().memory(p, group)

    def advance(self, parameters: list[Tensor], group: Group) -> None:
        """Hidden matrices by `direction`, the rest by AdamW."""
        by = Rule if group["role"] == "matrix" else AdamW
        by.advance(self, parameters, group)

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Group
    ) -> Iterable[tuple[Tensor, Step]]:
        """orthogonal(m), or ahead of m by the gradient, times a scale that its shape decides; for the rest, AdamW's.

        Matrices of one shape are made orthogonal together.
        """
        if group["role"] != "matrix":
            yield from super().directions(parameters, gradients, group)
            return
        for alike in _stacks(list(zip(parameters, gradients, strict=True))):
            means = [self.state[p]["momentum_buffer"].lerp(g, 1 - group["momentum"]) for p, g in alike]
            ahead = [g.lerp(m, group["momentum"]) for (_, g), m in zip(alike, means, strict=True)]
            stack = torch.stack([distributed.whole(x) for x in (ahead if group["nesterov"] else means)])
            turned = _scale(stack, group["match_rms"]) * orthogonal(stack, group["ns_steps"])  # no rank turns a part
            for (p, _), mean, x in zip(alike, means, turned, strict=True):
                yield p, (distributed.like(x, p), {"momentum_buffer": mean})


def _stacks(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterable[list[tuple[Tensor, Tensor]]]:
    """Those of one shape, at most TOGETHER entries of them unless one alone has more."""
    of_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for p, g in pairs:
        of_shape.setdefault(p.shape, []).append((p, g))
    for shape, found in of_shape.items():
        n = max(1, TOGETHER // shape.numel())
        yield from (found[i : i + n] for i in range(0, len(found), n))


def _scale(matrices: Tensor, match_rms: bool) -> float:
    rows, columns = matrices.shape[-2:]
    return 0.2 * math.sqrt(max(rows, columns)) if match_rms else math.sqrt(max(1.0, rows / columns))


def orthogonal(matrices: Float[Tensor, "*stack R C"], steps: int) -> Float[Tensor, "*stack R C"]:
    """Each matrix with all its singular values near 1: X <- a X + (b A + c A A) X, where A = X X^T. In bfloat16."""
    a, b, c = QUINTIC
    x = matrices.bfloat16().reshape(-1, *matrices.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)
