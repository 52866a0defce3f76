"""Rotary encoding with a base that grows with the length: fast pairs stay, the slowest is stretched to fit.

NTK-aware scaling, bloc97 2023, with the dynamic base of emozilla 2023; both in Peng et al. 2023, arXiv:2309.00071.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.components.position.rotary import Rotary, at_least, geometric
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "ntk")
class NTK(Rotary):
    """NTK-aware RoPE: theta grows with block_size over the length trained on. bloc97 2023, in arXiv:2309.00071.

    Checked against transformers ROPE_INIT_FUNCTIONS.
    """

    examples: ClassVar[dict[str, object]] = {"original": 8}

    def __init__(
        self,
        shape: Shape,
        *,
        original: Annotated[int, "the length that the frequencies were trained on, in tokens"],
        factor: Annotated[float, "how much faster than the length the base grows"] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        at_least(1, factor=factor, original=original)
        self.growth = factor * max(shape.block_size, original) / original - (factor - 1)

    def fit(self, head_size: int) -> None:
        super().fit(head_size)
        if self.n_turned(head_size) == 2:
            raise ConfigError(
                f"NTK keeps one pair and stretches the others, but 2 of {head_size} entries are one pair: choose "
                "position=rope, or larger heads."
            )

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """theta'^(-2i/R) with theta' = theta * growth^(R / (R - 2)), which slows the last pair by the growth itself."""
        return geometric(self.theta * self.growth ** (n_turned / (n_turned - 2)), n_turned, device)
