"""No residual stream: each part reads what the one before put out, and nothing else.

The wiring to which He et al. 2015 (arXiv:1512.03385) added residuals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gptlab.components.block.wiring import Block, Parts
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.registry import register

Step = Callable[..., Tensor]


@register("block", "bare")
class Bare(Block):
    """mlp(norm(attention(norm(x)))): no residuals. As usual before He et al. 2015, arXiv:1512.03385."""

    places = frozenset({"before"})

    def __init__(self, shape: Shape, parts: Parts) -> None:
        # Parts are drawn small for a sum of 2 n_layer of them; here nothing is summed.
        super().__init__(shape, parts, scale=math.sqrt(2 * shape.n_layer))
        self.first: Step = _passed if getattr(parts.attention, "absent", False) else self._mixed
        self.second: Step = _passed if getattr(parts.mlp, "absent", False) else self._thought

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """One part after the other."""
        return self.second(self.first(x, context, cache), context)

    def _mixed(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        return self.attend(self.attention_norms.before(x), context, cache)

    def _thought(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        return self.reflect(self.mlp_norms.before(x), context)


def _passed(x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
    return x
