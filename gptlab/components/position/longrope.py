"""Rotary encoding with a divisor for each pair, by a list for short texts or one for long. 2024, arXiv:2402.13753."""

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


@register("position", "longrope")
class LongRoPE(Rotary):
    """LongRoPE: each pair is slowed by a factor of its own, found by search. Ding et al. 2024, arXiv:2402.13753.

    Checked against transformers ROPE_INIT_FUNCTIONS.
    """

    examples: ClassVar[dict[str, object]] = {
        "original": 12,
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [1.0, 2.0, 3.0, 5.0],
    }
    beside: ClassVar[dict[str, dict[str, object]]] = {"short_factor": {"original": 10**6}}
    divisors: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        original: Annotated[int, "the length that the frequencies were trained on, in tokens"],
        short_factor: Annotated[list[float] | None, "divisor of each pair up to the original length; null: 1"] = None,
        long_factor: Annotated[
            list[float] | None, "divisor of each pair when block_size is longer; null: block_size / original"
        ] = None,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        at_least(2, original=original)
        stretch = max(1.0, shape.block_size / original)
        self.lists = {"short_factor": short_factor, "long_factor": long_factor}
        for name, divisors in self.lists.items():
            at_least(1e-3, **{name: min(divisors or [1.0])})
        chosen = long_factor if stretch > 1 else short_factor
        self.register_buffer("divisors", torch.tensor(chosen or [stretch], dtype=torch.float32), persistent=False)
        self.magnitude = math.sqrt(1 + math.log(stretch) / math.log(original))

    def fit(self, head_size: int) -> None:
        super().fit(head_size)
        n_pairs = self.n_turned(head_size) // 2
        for name, divisors in self.lists.items():
            if divisors is not None and len(divisors) != n_pairs:
                raise ConfigError(
                    f"position.{name} has a number for each pair that turns, but of heads of {head_size} "
                    f"{n_pairs} turn, and {len(divisors)} are given."
                )

    def frequencies(self, n_turned: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """theta^(-2i/R) / divisor_i."""
        return super().frequencies(n_turned, device) / self.divisors
