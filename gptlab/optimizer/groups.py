"""What a parameter is to an optimizer: a hidden matrix, an embedding, the head or a vector."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from torch import Tensor

ROLES = ("matrix", "embedding", "head", "vector")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """One group for each role that some trained parameter has, in the order of ROLES. A tied head is an embedding."""
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    groups: dict[str, dict[str, Any]] = {role: {"role": role, "params": []} for role in ROLES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = "embedding" if parameter in tables else _role(name, parameter)
            groups[role]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _role(name: str, parameter: Tensor) -> str:
    # Biases of stacked experts are (E, F), depthwise filters (C, 1, K): more sides, but no matrices.
    if name.endswith("bias") or parameter.ndim < 2 or 1 in parameter.shape[-2:]:
        return "vector"
    return "head" if name.startswith("head.") else "matrix"
