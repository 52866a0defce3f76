"""Decoder: x + self-attention, + attention to an encoder's output, + MLP, each behind a norm.

Vaswani et al. 2017, arXiv:1706.03762, with the norms before (Xiong et al. 2020, arXiv:2002.04745).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.attention import trait
from gptlab.components.block.wiring import Block, Norms, Parts, gain_of
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("block", "decoder")
class Decoder(Block):
    """Beside an encoder: a sublayer more, which looks at what that put out. Vaswani et al. 2017, arXiv:1706.03762."""

    places = frozenset({"before"})
    examples: ClassVar[dict[str, object]] = {"cross": {"name": "cross", "n_kv_head": 2}}

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        *,
        cross: Annotated[str | dict[str, Any], "the attention to what the encoder put out"] = "cross",
        **options: Any,
    ) -> None:
        super().__init__(shape, parts, **options)
        nowhere = registry.build("position", "none", shape)
        self.cross = registry.build("attention", cross, shape, nowhere, where="model.block.cross")
        if not trait(self.cross, "reads_memory"):
            name = registry.label("attention", self.cross)
            raise ConfigError(
                f"model.block.cross must look at what an encoder put out, but attention {name!r} does not: leave cross "
                "out."
            )
        self.cross_norms = Norms(self._places_of(self.cross), parts.norm)
        self.cross_gain = gain_of(self.cross, shape.n_embd, **options)

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Tokens look at each other, then at the other sequence, then each thinks for itself."""
        x = x + self.attend(self.attention_norms.before(x), context, cache)
        x = x + self.cross_gain(self.dropout(self.cross(self.cross_norms.before(x), context)))
        return x + self.reflect(self.mlp_norms.before(x), context)
