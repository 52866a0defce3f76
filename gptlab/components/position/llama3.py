"""Rotary encoding slowed by wavelength, as in Llama 3.1. Grattafiori et al. 2024, arXiv:2407.21783."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.components.position.rotary import Rotary, at_least
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("position", "llama3")
class Llama3(Rotary):
    """Llama 3.1's RoPE: long waves are slowed, short ones stay. Grattafiori et al. 2024, arXiv:2407.21783.

    Checked against transformers ROPE_INIT_FUNCTIONS and Llama.
    """

    examples: ClassVar[dict[str, object]] = {"original": 1000}

    def __init__(
        self,
        shape: Shape,
        *,
        original: Annotated[int, "the length that the frequencies were trained on, in tokens"],
        factor: Annotated[float, "divisor of the slowest frequencies"] = 8.0,
        low_freq_factor: Annotated[float, "pairs with fewer turns in that length are slowed by the factor"] = 1.0,
        high_freq_factor: Annotated[float, "pairs with more turns stay"] = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        at_least(1, factor=factor, original=original)
        if not high_freq_factor > low_freq_factor > 0:
            raise ConfigError(
                "This RoPE needs high_freq_factor > low_freq_factor > 0, "
                f"but they are {high_freq_factor} and {low_freq_factor}."
            )
        self.factor, self.original = factor, original
        self.low, self.high = low_freq_factor, high_freq_factor

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """Between theta^(-2i/R) where a pair turns often in the original length, and the same over the factor."""
        plain = super().frequencies(n_turned, device)
        turns = self.original / (2 * math.pi) * plain
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain * (kept + (1 - kept) / self.factor)
