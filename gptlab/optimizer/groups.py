"""What a parameter is to an optimizer: a hidden matrix, an embedding, the head or a vector."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from torch import Tensor

ROLES = ("matrix", "embedding", "head", "vector")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """One group for each role that some trained parameter has, in the order of ROLES. A tied head is an embedding.

    A module may say in `roles` what its parameters are, by name: a router's matrix is none that Muon is for.
    """
    said: dict[Tensor, str] = {}
    for module in model.modules():
        roles = {"weight": "embedding"} if isinstance(module, nn.Embedding) else getattr(module, "roles", {})
        said |= {p: roles[name] for name, p in module.named_parameters() if name in roles}
    groups: dict[str, dict[str, Any]] = {role: {"role": role, "params": []} for role in ROLES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = said.get(parameter) or _role(name, parameter)
            groups[role]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _role(name: str, parameter: Tensor) -> str:
    # Biases of stacked experts are (E, F), depthwise filters (C, 1, K): more sides, but no matrices.
    if name.endswith("bias") or parameter.ndim < 2 or 1 in parameter.shape[-2:]:
        return "vector"
    return "head" if name.startswith("head.") else "matrix"
