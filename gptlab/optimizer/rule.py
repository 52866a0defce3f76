"""What optimizers share: p <- (1 - lr decay) p - lr direction, by role, left out on the device when not finite.

Decoupled weight decay: Loshchilov & Hutter 2017, arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from gptlab.errors import ConfigError, did_you_mean
from gptlab.optimizer.groups import ROLES

WeightDecay = Annotated[float, "share of a weight lost per step, over the learning rate; for the roles in decay"]
Group = dict[str, Any]  # torch's: parameters and what holds for them
Memory = dict[str, Tensor]  # what is remembered of one parameter
Step = tuple[Tensor, Memory]  # what to go against, and what is remembered after it

RANGES: dict[str, Callable[[float], bool]] = {
    "above 0 and finite": lambda x: 0 < x < math.inf,
    "at least 0 and finite": lambda x: 0 <= x < math.inf,
    "at least 0 and below 1": lambda x: 0 <= x < 1,
}


def must_be(rule: str, **values: float) -> None:
    """ConfigError with the first of the options that is outside the range of RANGES."""
    for name, value in values.items():
        if not RANGES[rule](value):
            raise ConfigError(f"optimizer.{name} must be {rule}, but is {value}.")


class Rule(torch.optim.Optimizer):
    """Base of every optimizer. A variant says in `direction` where to go, or overrides `advance` for a whole group.

    `settings` are the defaults of a group, with `lr`. The trainer sets a group's `lr` to the rate times its `lr_scale`.
    """

    _step_supports_amp_scaling = True  # GradScaler hands found_inf over, where it would else wait for the device
    found_inf: Tensor | None = None  # not 0: leave this step out

    def __init__(
        self,
        groups: list[Group],
        settings: dict[str, Any],
        *,
        weight_decay: WeightDecay = 0.1,
        decay: Annotated[
            list[str] | None, "roles that decay: matrix, embedding, head, vector; null: all but vector"
        ] = None,
        rates: Annotated[dict[str, float] | None, "role -> factor of the learning rate; null: 1 for each"] = None,
    ) -> None:
        decay, rates = ["matrix", "embedding", "head"] if decay is None else decay, rates or {}
        must_be("above 0 and finite", lr=settings["lr"])
        must_be("at least 0 and finite", weight_decay=weight_decay)
        _check_roles(decay, rates)
        defaults = {**settings, "weight_decay": weight_decay, "role": "vector", "lr_scale": 1.0}
        super().__init__([dict(group) for group in groups], defaults)
        for group in self.param_groups:
            self.scale_rate(group, float(rates.get(group["role"], 1.0)))
            group["weight_decay"] = weight_decay if group["role"] in decay else 0.0

    def scale_rate(self, group: Group, factor: float) -> None:
        """Let a group learn at `factor` of its rate."""
        group["lr_scale"] *= factor
        group["lr"] = self.defaults["lr"] * group["lr_scale"]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the trainer has the gradients
        """One step, or none where `found_inf` is not 0."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            self.remember(parameters, group)
            if parameters:
                self.advance(parameters, group)

    def remember(self, parameters: list[Tensor], group: Group) -> None:
        """Make the memory of those that have none yet."""
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(self.memory(p, group))

    def advance(self, parameters: list[Tensor], group: Group) -> None:
        """Step parameters that have a gradient and a memory."""
        grad_scale = getattr(self, "grad_scale", None)  # GradScaler's
        gradients = [p.grad for p in parameters if p.grad is not None]
        if grad_scale is not None:
            gradients = [gradient / grad_scale for gradient in gradients]
        for p, (direction, memory) in self.directions(parameters, gradients, group):
            after = (1 - group["lr"] * group["weight_decay"]) * p - group["lr"] * direction
            for old, new in ((p, after), *((self.state[p][key], value) for key, value in memory.items())):
                old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Group
    ) -> Iterable[tuple[Tensor, Step]]:
        """Each parameter with its `direction` and its memory after it, in any order."""
        for p, gradient in zip(parameters, gradients, strict=True):
            yield p, self.direction(p, gradient, self.state[p], group)

    def memory(self, p: Tensor, group: Group) -> Memory:
        """What is remembered of a parameter before its first step."""
        raise NotImplementedError

    def direction(self, p: Tensor, gradient: Tensor, memory: Memory, group: Group) -> Step:
        """What to go against, at a learning rate of 1, and the memory after it. Changes nothing in place."""
        raise NotImplementedError


def _check_roles(decay: list[str], rates: dict[str, Any]) -> None:
    for option, roles in (("decay", decay), ("rates", rates)):
        for role in roles:
            if role not in ROLES:
                raise ConfigError(
                    f"optimizer.{option} is about roles, but {role!r} is none. {did_you_mean(role, ROLES)}"
                )
    for role, factor in rates.items():
        if type(factor) not in (int, float):
            raise ConfigError(f"optimizer.rates.{role} must be a number, but {factor!r} is not.")
        must_be("at least 0 and finite", **{f"rates.{role}": factor})
