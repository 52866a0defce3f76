"""Rotary encoding whose scores also decay with distance, the fast pairs soonest. Sun et al. 2022, arXiv:2212.10554."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.position.rotary import Rotary
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register

GAMMA = 0.4  # the paper's: the fastest pair decays by 0.4 / 1.4 in scale_base tokens
LARGEST = 80.0  # e^80 and e^-80 are float32 and bfloat16 numbers


@register("position", "xpos")
class XPos(Rotary):
    """xPos: RoPE in which pair i of a score decays by zeta_i^distance. Sun et al. 2022, arXiv:2212.10554."""

    def __init__(
        self,
        shape: Shape,
        *,
        scale_base: Annotated[float, "distance at which a pair has decayed by its zeta, in tokens"] = 512.0,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        if not scale_base >= shape.block_size / 64:
            raise ConfigError(
                f"position.scale_base must be at least block_size / 64 for keys to stay in range, but is {scale_base} "
                f"for {shape.block_size}."
            )
        self.scale_base = scale_base
        self.centre = shape.block_size / 2  # where q and k keep their size: scores do not depend on it, ranges do

    def rotate(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], positions: Int[Tensor, "#B T"]
    ) -> tuple[Tensor, Tensor]:
        """Turn q and k, scale q by zeta^(position / scale_base) and k by its inverse."""
        cos, sin = self.waves(positions, q.shape[-1])
        scale = self.scales(positions, 2 * cos.shape[-1])
        return self.turned(q, cos * scale, sin * scale), self.turned(k, cos / scale, sin / scale)

    def scales(self, positions: Int[Tensor, "#B T"], n_turned: int) -> Float[Tensor, "#B 1 T pairs"]:
        """zeta_i^((position - centre) / scale_base) with zeta_i = (2i/R + gamma) / (1 + gamma), in float32."""
        pair = torch.arange(0, n_turned, 2, device=positions.device, dtype=torch.float32) / n_turned
        zeta = (pair + GAMMA) / (1 + GAMMA)
        steps = (positions[:, None, :, None] - self.centre) / self.scale_base
        return (steps * zeta.log()).clamp(-LARGEST, LARGEST).exp()
