"""What rotary encodings share: pairs of q and k turn by position * frequency. Su et al. 2021, arXiv:2104.09864."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.position.hooks import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rotary(Position):
    """Base of the rotary encodings. A variant overrides `frequencies`, or sets `magnitude`. Su et al. 2021."""

    relative = True
    magnitude: float = 1.0  # of what turns, in q and in k: a scaling may sharpen attention by it

    def __init__(
        self,
        shape: Shape,
        *,
        theta: Annotated[float, "longest wavelength over 2 pi, in tokens"] = 10000.0,
        fraction: Annotated[float, "share of each head that turns"] = 1.0,
        layout: Annotated[
            Literal["half", "interleaved"], "pairs are (i, i + R/2), or neighbours (2i, 2i + 1)"
        ] = "half",
    ) -> None:
        super().__init__(shape)
        if not theta > 1:
            raise ConfigError(f"position.theta must be above 1, but is {theta}.")
        if not 0 < fraction <= 1:
            raise ConfigError(f"position.fraction is a share in (0, 1], but is {fraction}.")
        self.theta, self.fraction = theta, fraction
        turn = _turn_halves if layout == "half" else _turn_neighbours
        self.turn: Turn = turn if fraction == 1 else functools.partial(_turn_share, turn)

    def n_turned(self, head_size: int) -> int:
        """R, the entries of a head that turn."""
        return int(head_size * self.fraction)

    def fit(self, head_size: int) -> None:
        n_turned = self.n_turned(head_size)
        if n_turned < 2 or n_turned % 2:
            raise ConfigError(
                f"RoPE turns pairs: position.fraction of the head size must be an even number, but {self.fraction} "
                f"of {head_size} is {n_turned}."
            )

    def rotate(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], positions: Int[Tensor, "#B T"]
    ) -> tuple[Tensor, Tensor]:
        """Turn the first R entries of each head by position * frequency."""
        cos, sin = self.waves(positions, q.shape[-1])
        return self.turned(q, cos, sin), self.turned(k, cos, sin)

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """Radians per token of each of the R/2 pairs, in float32, from numbers that are already on the device."""
        return geometric(self.theta, n_turned, device)

    def waves(self, positions: Int[Tensor, "#B T"], head_size: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every angle, (#B, 1, T, R/2), in float32."""
        angles = positions[:, None, :, None] * self.frequencies(self.n_turned(head_size), positions.device)
        return self.magnitude * angles.cos(), self.magnitude * angles.sin()

    def turned(self, x: Float[Tensor, "B H T D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B H T D"]:
        """x with the entries that turn turned, and the rest as it is."""
        return self.turn(x, cos.to(x.dtype), sin.to(x.dtype))


def geometric(theta: float, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
    """theta^(-2i/R) for each of the R/2 pairs, in float32."""
    return theta ** (-torch.arange(0, n_turned, 2, device=device, dtype=torch.float32) / n_turned)


def at_least(bound: float | int, **given: float | int) -> None:
    """ConfigError naming the first of the `given` options that is below `bound`."""
    for name, value in given.items():
        if not value >= bound:
            raise ConfigError(f"position.{name} must be at least {bound}, but is {value}.")


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def _turn_share(turn: Turn, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n_turned = 2 * cos.shape[-1]
    return torch.cat((turn(x[..., :n_turned], cos, sin), x[..., n_turned:]), dim=-1)
