"""AdamW: mean gradient over root mean square, decay apart from both. Loshchilov & Hutter 2017, arXiv:1711.05101."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from gptlab.optimizer.rule import Group, Memory, Rule, Step, must_be
from gptlab.registry import register


@register("optimizer", "adamw")
class AdamW(Rule):
    """Adam with decoupled weight decay, one fused kernel a step. Loshchilov & Hutter 2017, arXiv:1711.05101."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: Annotated[float, "peak learning rate; about 6e-4 for GPT-2 124M"] = 2e-3,
        beta1: Annotated[float, "decay of the mean of gradients, per step"] = 0.9,
        beta2: Annotated[float, "decay of the mean of their squares, per step"] = 0.95,
        eps: Annotated[float, "added to the root of the mean square"] = 1e-8,
        **options: Any,
    ) -> None:
        must_be("at least 0 and below 1", beta1=beta1, beta2=beta2)
        must_be("above 0 and finite", eps=eps)
        super().__init__(groups, {"lr": lr, "betas": (beta1, beta2), "eps": eps, "fused": True}, **options)

    def memory(self, p: Tensor, group: Group) -> Memory:
        """Both means, and the number of steps that corrects them; on the device, as the fused kernel wants it."""
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def advance(self, parameters: list[Tensor], group: Group) -> None:
        """torch's fused kernel; a compiler, which cannot look into it, is given the formula and fuses that itself."""
        if torch.compiler.is_compiling():
            return super().advance(parameters, group)
        means, squares, steps = ([self.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None], means, squares, [], steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=group["weight_decay"], fused=True, amsgrad=False, maximize=False,
            grad_scale=getattr(self, "grad_scale", None), found_inf=self.found_inf,
        )  # fmt: skip
        return None

    def direction(self, p: Tensor, gradient: Tensor, memory: Memory, group: Group) -> Step:
        """m / (sqrt(v) + eps), each mean divided by the weight that its gradients have by now."""
        beta1, beta2 = group["betas"]
        step = memory["step"] + 1
        mean = memory["exp_avg"].lerp(gradient, 1 - beta1)
        square = memory["exp_avg_sq"].lerp(gradient.square(), 1 - beta2)
        root = (square / (1 - beta2**step)).sqrt() + group["eps"]
        return mean / (1 - beta1**step) / root, {"step": step, "exp_avg": mean, "exp_avg_sq": square}
