"""SGD with momentum. Polyak 1964; with Nesterov's look ahead as in Sutskever et al. 2013 (ICML)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gptlab.errors import ConfigError
from gptlab.optimizer.rule import Group, Memory, Rule, Step, WeightDecay, must_be
from gptlab.registry import register


@register("optimizer", "sgd")
class SGD(Rule):
    """The gradient itself, with momentum; the decay is decoupled. Robbins & Monro 1951, Polyak 1964."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: Annotated[float, "peak learning rate; about 0.1 with a momentum of 0.9"] = 0.1,
        momentum: Annotated[float, "share of the last velocity that is kept, per step"] = 0.9,
        nesterov: Annotated[bool, "look ahead: go by the velocity after the next step"] = False,
        weight_decay: WeightDecay = 1e-3,
        **options: Any,
    ) -> None:
        must_be("at least 0 and below 1", momentum=momentum)
        if nesterov and not momentum:
            raise ConfigError("optimizer.nesterov looks ahead by the momentum, but momentum is 0: raise it.")
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov}, weight_decay=weight_decay, **options
        )

    def memory(self, p: Tensor, group: Group) -> Memory:
        """A velocity."""
        return {"momentum_buffer": torch.zeros_like(p)}

    def direction(self, p: Tensor, gradient: Tensor, memory: Memory, group: Group) -> Step:
        """v <- momentum v + g; go by v, or ahead by g + momentum v."""
        velocity = gradient + group["momentum"] * memory["momentum_buffer"]
        ahead = gradient + group["momentum"] * velocity if group["nesterov"] else velocity
        return ahead, {"momentum_buffer": velocity}
