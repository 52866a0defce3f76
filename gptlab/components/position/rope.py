"""Rotary encoding: pairs of q and k turn in proportion to the position. Su et al. 2021, arXiv:2104.09864."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.position.hooks import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "rope")
class RoPE(Position):
    """Rotary: q and k turn with the position, so scores see distances alone. Su et al. 2021, arXiv:2104.09864."""

    relative = True

    def __init__(
        self,
        shape: Shape,
        *,
        theta: Annotated[float, "longest wavelength over 2 pi, in tokens"] = 10000.0,
        fraction: Annotated[float, "share of each head that turns"] = 1.0,
        layout: Annotated[
            Literal["half", "interleaved"], "pairs are (i, i + R/2) as in GPT-NeoX, or (2i, 2i + 1)"
        ] = "half",
    ) -> None:
        super().__init__(shape)
        self.n_rotated = int(shape.head_size * fraction)
        if not 0 < fraction <= 1 or self.n_rotated < 2 or self.n_rotated % 2:
            raise ConfigError(
                f"RoPE turns pairs: position.fraction of the head size must be an even number, but {fraction} "
                f"of {shape.head_size} is {self.n_rotated}."
            )
        if theta <= 1:
            raise ConfigError(f"position.theta must be above 1, but is {theta}.")
        self.theta, self.layout = theta, layout
        self.turn = _turn_halves if layout == "half" else _turn_neighbours

    def rotate(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], positions: Int[Tensor, "#B T"]
    ) -> tuple[Tensor, Tensor]:
        """Turn the first R entries of each head by position * theta^(-2i/R); angles in float32."""
        pair = torch.arange(0, self.n_rotated, 2, device=q.device, dtype=torch.float32)
        angles = positions[:, None, :, None] * self.theta ** (-pair / self.n_rotated)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        return self.turned(q, cos, sin), self.turned(k, cos, sin)

    def turned(self, x: Float[Tensor, "B H T D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B H T D"]:
        """x with the entries that rotate rotated, and the rest as it is."""
        turned = self.turn(x[..., : self.n_rotated], cos, sin)
        return turned if self.n_rotated == x.shape[-1] else torch.cat((turned, x[..., self.n_rotated :]), dim=-1)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
