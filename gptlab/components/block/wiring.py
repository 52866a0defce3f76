"""The contract of a block: (B, T, C) -> (B, T, C), two sublayers with three places for a norm around each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context, Replay
from gptlab.components.shape import Shape


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


class Block(nn.Module):
    """Base of every block, built as `Variant(shape, parts, *, options)`: after(x + out(part(before(x)))), twice.

    A variant says in `places` which norms it has, or writes its own `forward`. `final_norm`: whether the model
    normalizes once more before the head. A sublayer whose part is `absent` is left out with its norms.
    """

    places: ClassVar[frozenset[str]] = frozenset()
    final_norm: ClassVar[bool] = True

    def __init__(self, shape: Shape, parts: Parts) -> None:
        super().__init__()
        self.attention, self.mlp = parts.attention, parts.mlp
        self.attention_norms = Norms(self._places_of(parts.attention), parts.norm)
        self.mlp_norms = Norms(self._places_of(parts.mlp), parts.norm)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Tokens look at each other, then each thinks for itself."""
        x = self.residual(x, self.attention_norms, lambda h: self.mix(h, context, cache))
        return self.residual(x, self.mlp_norms, self.mlp)

    def residual(
        self, x: Float[Tensor, "B T C"], norms: Norms, part: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T C"]:
        """One sublayer around the residual stream."""
        return norms.after(x + self.dropout(norms.out(part(norms.before(x)))))

    def mix(self, x: Float[Tensor, "B T C"], context: Context, cache: Any) -> Float[Tensor, "B T C"]:
        """The attention, run by its memory where that is a replay of all inputs."""
        if isinstance(cache, Replay):
            return cache.run(self.attention, x, context)
        return self.attention(x, context, cache)

    def _places_of(self, part: nn.Module) -> frozenset[str]:
        return frozenset() if getattr(part, "absent", False) else self.places
