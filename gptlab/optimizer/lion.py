"""Lion: the sign of an interpolated momentum, found by program search. Chen et al. 2023, arXiv:2302.06675."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gptlab.optimizer.rule import Group, Memory, Rule, Step, WeightDecay, must_be
from gptlab.registry import register


@register("optimizer", "lion")
class Lion(Rule):
    """The sign of a momentum: every weight moves by the learning rate. Chen et al. 2023, arXiv:2302.06675."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: Annotated[float, "peak learning rate; a third to a tenth of AdamW's"] = 6e-4,
        beta1: Annotated[float, "share of the momentum in the step"] = 0.9,
        beta2: Annotated[float, "decay of the momentum, per step"] = 0.99,
        weight_decay: WeightDecay = 0.3,
        **options: Any,
    ) -> None:
        must_be("at least 0 and below 1", beta1=beta1, beta2=beta2)
        super().__init__(groups, {"lr": lr, "betas": (beta1, beta2)}, weight_decay=weight_decay, **options)

    def memory(self, p: Tensor, group: Group) -> Memory:
        """A momentum."""
        return {"exp_avg": torch.zeros_like(p)}

    def direction(self, p: Tensor, gradient: Tensor, memory: Memory, group: Group) -> Step:
        """sign(beta1 m + (1 - beta1) g); then m <- beta2 m + (1 - beta2) g."""
        (beta1, beta2), mean = group["betas"], memory["exp_avg"]
        return gradient.lerp(mean, beta1).sign(), {"exp_avg": gradient.lerp(mean, beta2)}
