"""The contract of a block: (B, T, C) -> (B, T, C), two sublayers with three places for a norm around each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context, Replay
from gptlab.components.scale import scaled
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    """What a block is given to wire: the two sublayers, and a maker of norms of the residual width."""

    attention: Attention
    mlp: nn.Module
    norm: Callable[[], nn.Module]


class Norms(nn.Module):
    """The norms of one sublayer: before it, on its output, and after the sum. Identity where the block places none."""

    def __init__(self, places: frozenset[str], make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before = make() if "before" in places else nn.Identity()
        self.out = make() if "out" in places else nn.Identity()
        self.after = make() if "after" in places else nn.Identity()


class Gain(nn.Module):
    """A learned factor of what a sublayer adds: one number (ReZero) or one per channel (LayerScale).

    Bachlechner et al. 2020, arXiv:2003.04887; Touvron et al. 2021, arXiv:2103.17239.
    """

    def __init__(self, size: int, start: float, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), start))
        self.scale = scale

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Scale and gain."""
        return x * (self.scale * self.weight)


class Block(nn.Module):
    """Base of every block, built as `Variant(shape, parts, *, options)`: after(x + out(part(before(x)))), twice.

    A variant says in `places` which norms it has, or writes its own `forward`. `final_norm`: whether the model
    normalizes once more before the head. A sublayer whose part is `absent` is left out with its norms.
    """

    places: ClassVar[frozenset[str]] = frozenset()
    final_norm: ClassVar[bool] = True
    beside: ClassVar[dict[str, dict[str, object]]] = {"gain_init": {"gain": "channel"}}

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        *,
        scale: Annotated[float, "fixed factor of what a sublayer adds"] = 1.0,
        gain: Annotated[
            Literal["none", "scalar", "channel"], "learned factor of it: ReZero's number, or LayerScale's per channel"
        ] = "none",
        gain_init: Annotated[float | None, "first value of the gain; null: 0 for scalar, 0.1 for channel"] = None,
    ) -> None:
        super().__init__()
        self.attention, self.mlp = parts.attention, parts.mlp
        self.attention_norms = Norms(self._places_of(parts.attention), parts.norm)
        self.mlp_norms = Norms(self._places_of(parts.mlp), parts.norm)
        self.attention_gain = gain_of(parts.attention, shape.n_embd, scale, gain, gain_init)
        self.mlp_gain = gain_of(parts.mlp, shape.n_embd, scale, gain, gain_init)
        self.dropout = nn.Dropout(shape.dropout)
        self.think = self._with_context if getattr(parts.mlp, "takes_context", False) else self._alone

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Tokens look at each other, then each thinks for itself."""
        x = self.attention_norms.after(x + self.attend(self.attention_norms.before(x), context, cache))
        return self.mlp_norms.after(x + self.reflect(self.mlp_norms.before(x), context))

    def check_stack(self, blocks: Sequence[Block]) -> None:
        """ConfigError where this block does not go with those of the other layers; asked once all are built."""

    def attend(self, h: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """What the attention adds to the residual stream, given what it reads."""
        return self.attention_gain(self.dropout(self.attention_norms.out(self.mix(h, context, cache))))

    def reflect(self, h: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        """What the MLP adds to the residual stream, given what it reads."""
        return self.mlp_gain(self.dropout(self.mlp_norms.out(self.think(h, context))))

    def mix(self, x: Float[Tensor, "B T C"], context: Context, cache: Any) -> Float[Tensor, "B T C"]:
        """The attention, run by its memory where that is a replay of all inputs."""
        if isinstance(cache, Replay):
            return cache.run(self.attention, x, context)
        return self.attention(x, context, cache)

    def _alone(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        return self.mlp(x)

    def _with_context(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        return self.mlp(x, context)

    def _places_of(self, part: nn.Module) -> frozenset[str]:
        return frozenset() if getattr(part, "absent", False) else self.places


def gain_of(
    part: nn.Module, n_embd: int, scale: float = 1.0, gain: str = "none", gain_init: float | None = None
) -> nn.Module:
    """What multiplies a sublayer's output. ConfigError for a first value of no gain."""
    if gain == "none" and gain_init is not None:
        raise ConfigError(
            f"model.block.gain_init={gain_init} is the start of a gain, but there is none: set gain=channel."
        )
    if getattr(part, "absent", False):
        return nn.Identity()
    if gain == "none":
        return scaled(scale)
    first = {"scalar": 0.0, "channel": 0.1}[gain] if gain_init is None else gain_init
    return Gain(1 if gain == "scalar" else n_embd, first, scale)
