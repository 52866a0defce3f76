"""No position encoding: only the causal mask tells the order. Kazemnejad et al. 2023 (NoPE), arXiv:2305.19466."""

from __future__ import annotations

from gptlab.components.position.hooks import Position
from gptlab.registry import register


@register("position", "none")
class NoPosition(Position):
    """NoPE: no position encoding, the causal mask alone tells order. Kazemnejad et al. 2023, arXiv:2305.19466."""

    relative = True
