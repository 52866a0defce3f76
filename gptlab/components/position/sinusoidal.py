"""Sines and cosines of geometric wavelengths, added to the embedding. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.position.hooks import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "sinusoidal")
class Sinusoidal(Position):
    """Fixed sines and cosines added to sqrt(n_embd) times the embedding. Vaswani et al. 2017, arXiv:1706.03762."""

    def __init__(
        self,
        shape: Shape,
        *,
        theta: Annotated[float, "longest wavelength over 2 pi, in tokens"] = 10000.0,
        scale: Annotated[
            float | None, "factor of the embedding; null: sqrt(n_embd); 1 leaves it to model.embedding_scale"
        ] = None,
    ) -> None:
        super().__init__(shape)
        if shape.n_embd % 2:
            raise ConfigError(f"Sines and cosines come in pairs, so n_embd must be even, but is {shape.n_embd}.")
        if theta <= 1:
            raise ConfigError(f"position.theta must be above 1, but is {theta}.")
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(f"position.scale must be above 0, but is {scale}.")
        self.theta = theta
        self.scale = math.sqrt(shape.n_embd) if scale is None else scale

    def embed(self, x: Float[Tensor, "B T C"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T C"]:
        """scale x + [sin, cos, sin, cos, ...](position / theta^(2i/C))."""
        width = x.shape[-1]
        frequencies = self.theta ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
        angles = positions[..., None] * frequencies
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return self.scale * x + waves.to(x.dtype)
