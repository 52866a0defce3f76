"""Optimizers, built as `Variant(groups, *, options)`; matrices decay, vectors (gains, biases) do not."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn as nn

from gptlab.errors import ConfigError
from gptlab.registry import register


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: tensors of two or more dimensions, with the optimizer's weight decay, and the rest, without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    return [group for group in ({"params": matrices}, {"params": vectors, "weight_decay": 0.0}) if group["params"]]


@register("optimizer", "adamw")
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay, one fused kernel a step. Loshchilov & Hutter 2017, arXiv:1711.05101."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: Annotated[float, "peak learning rate; about 6e-4 for GPT-2 124M"] = 2e-3,
        beta1: Annotated[float, "decay of the mean of gradients, per step"] = 0.9,
        beta2: Annotated[float, "decay of the mean of their squares, per step"] = 0.95,
        weight_decay: Annotated[float, "of matrices, times the learning rate, per step"] = 0.1,
        eps: Annotated[float, "added to the root of the mean square"] = 1e-8,
    ) -> None:
        for name, value, holds in (
            ("lr", lr, 0 < lr < math.inf),
            ("beta1", beta1, 0 <= beta1 < 1),
            ("beta2", beta2, 0 <= beta2 < 1),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("eps", eps, eps > 0),
        ):
            if not holds:
                raise ConfigError(
                    f"optimizer.{name} is out of its range: lr, eps > 0; 0 <= betas < 1; decay >= 0; got {value}."
                )
        super().__init__(groups, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, eps=eps, fused=True)
