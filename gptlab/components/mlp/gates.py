"""How a gate and a linear branch become one: activation(gate) * up. Dauphin et al. 2016, arXiv:1612.08083."""

from __future__ import annotations

import math

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.mlp.activations import ACTIVATIONS
from gptlab.errors import ConfigError


class Gate(nn.Module):
    """activation(gate) * up. Dauphin et al. 2016, arXiv:1612.08083."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, gate: Float[Tensor, "*any"], up: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """activation(gate) * up."""
        return self.activation(gate) * up


class ClampedGate(Gate):
    """The gate of gpt-oss: both branches are bounded, and the linear one is shifted. OpenAI 2025, arXiv:2508.10925."""

    def __init__(self, activation: str, limit: float, offset: float) -> None:
        super().__init__(activation)
        self.limit, self.offset = limit, offset

    def forward(self, gate: Float[Tensor, "*any"], up: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """activation(min(gate, limit)) * (clamp(up, -limit, limit) + offset)."""
        return self.activation(gate.clamp(max=self.limit)) * (up.clamp(-self.limit, self.limit) + self.offset)


def make_gate(activation: str, limit: float | None, offset: float) -> Gate:
    """The gate of these options. ConfigError for a limit that leaves nothing."""
    if limit is None and offset == 0:
        return Gate(activation)
    if limit is not None and limit <= 0:
        raise ConfigError(f"model.mlp.limit must be above 0, but is {limit}. null is no limit.")
    return ClampedGate(activation, math.inf if limit is None else limit, offset)
