"""Rotary encoding stretched pair by pair: fast pairs stay, slow ones are interpolated, and attention is sharpened.

YaRN: Peng et al. 2023, arXiv:2309.00071; mscale and mscale_all_dim: DeepSeek-AI 2024, arXiv:2405.04434.
"""

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


@register("position", "yarn")
class YaRN(Rotary):
    """YaRN: slow pairs are interpolated, fast ones stay, scores are sharpened. Peng et al. 2023, arXiv:2309.00071.

    Checked against transformers ROPE_INIT_FUNCTIONS, Llama and gpt-oss.
    """

    examples: ClassVar[dict[str, object]] = {"original": 512, "factor": 4.0, "beta_fast": 8.0}
    beside: ClassVar[dict[str, dict[str, object]]] = {"mscale_all_dim": {"fraction": 0.5}}  # else it all cancels

    def __init__(
        self,
        shape: Shape,
        *,
        factor: Annotated[float, "how many times longer than the original length texts become"],
        original: Annotated[int, "the length that the frequencies were trained on, in tokens"],
        beta_fast: Annotated[float, "pairs with more turns than this in the original length stay"] = 32.0,
        beta_slow: Annotated[float, "pairs with fewer turns are slowed by the factor"] = 1.0,
        truncate: Annotated[bool, "round the bounds between the two to whole pairs"] = True,
        attention_factor: Annotated[float | None, "magnitude of what turns; null: by the mscales"] = None,
        mscale: Annotated[float, "magnitude is 0.1 mscale ln(factor) + 1, over the same of mscale_all_dim"] = 1.0,
        mscale_all_dim: Annotated[float, "as much of it sharpens whole scores, not only what turns"] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        at_least(1, factor=factor, original=original)
        at_least(0, mscale=mscale, mscale_all_dim=mscale_all_dim)
        if not beta_fast > beta_slow > 0:
            raise ConfigError(f"YaRN needs beta_fast > beta_slow > 0, but they are {beta_fast} and {beta_slow}.")
        if attention_factor is not None and (attention_factor <= 0 or (mscale, mscale_all_dim) != (1, 0)):
            raise ConfigError(
                "position.attention_factor is above 0, and given in place of mscale and mscale_all_dim, "
                f"but it is {attention_factor} beside {mscale} and {mscale_all_dim}."
            )
        self.factor, self.original, self.truncate = factor, original, truncate
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        everywhere = 0.1 * mscale_all_dim * math.log(factor) + 1
        self.score_factor = everywhere**2
        self.magnitude = attention_factor or (0.1 * mscale * math.log(factor) + 1) / everywhere

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """Between theta^(-2i/R) for the fastest pairs and the same over the factor for the slowest, along a ramp."""
        low, high = self.bounds(n_turned)
        pair = torch.arange(n_turned // 2, device=device, dtype=torch.float32)
        slowed = ((pair - low) / (high - low)).clamp(0, 1)
        return super().frequencies(n_turned, device) * (1 - slowed + slowed / self.factor)

    def bounds(self, n_turned: int) -> tuple[float, float]:
        """The pairs, not whole numbers, that turn beta_fast and beta_slow times in the original length."""
        low, high = (
            n_turned * math.log(self.original / (2 * math.pi * turns)) / (2 * math.log(self.theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, n_turned - 1.0)
        return low, max(high, low + 0.001)  # a step where the ramp has no length
