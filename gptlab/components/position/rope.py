"""Rotary encoding, theta^(-2i/R) radians a token. Su et al. 2021, arXiv:2104.09864.

Positions divided by a factor fit longer texts into the angles known: Chen et al. 2023, arXiv:2306.15595.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.components.position.rotary import Rotary, at_least
from gptlab.components.shape import Shape
from gptlab.registry import register


@register("position", "rope")
class RoPE(Rotary):
    """Rotary: q and k turn with the position, so scores see distances alone. Su et al. 2021, arXiv:2104.09864.

    Checked against transformers Llama, GPT-NeoX, GPT-J and Cohere.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        factor: Annotated[float, "positions are divided by it (position interpolation)"] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        at_least(1, factor=factor)
        self.factor = factor

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """theta^(-2i/R) / factor."""
        return super().frequencies(n_turned, device) / self.factor
