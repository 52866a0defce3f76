"""RMSNorm: x over its root mean square, then a gain; no mean taken away. Zhang & Sennrich 2019, arXiv:1910.07467."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.registry import register


@register("norm", "rmsnorm")
class RMSNorm(nn.Module):
    """RMSNorm: divide by the root mean square, then a gain. Zhang & Sennrich 2019, arXiv:1910.07467.

    Checked against transformers LlamaRMSNorm and GemmaRMSNorm.
    """

    def __init__(
        self,
        size: int,
        *,
        weight: Annotated[Literal["plain", "plus_one", "none"], "the gain: w, 1 + w, or none"] = "plain",
        bias: Annotated[bool, "add a learned bias"] = False,
        eps: Annotated[float, "added to the mean square"] = 1e-5,
    ) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps
        start, self.gain_of = STARTS_AND_GAINS[weight]
        self.weight = None if start is None else nn.Parameter(torch.full(self.size, start))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """x / sqrt(mean(x^2) + eps) * gain + bias, in the type of the gain, the mean square in float32 at least."""
        gain = self.gain_of(self.weight)
        wide = x if gain is None else x.to(torch.promote_types(x.dtype, gain.dtype))  # torch fuses what is of one type
        y = F.rms_norm(wide, self.size, gain, self.eps)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def _itself(weight: Tensor | None) -> Tensor | None:
    return weight


def _one_more(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else 1 + weight


# What the weight begins at, and the gain that it stands for. About 0, weight decay pulls the gain towards 1.
STARTS_AND_GAINS: dict[str, tuple[float | None, Callable[[Tensor | None], Tensor | None]]] = {
    "plain": (1.0, _itself),
    "plus_one": (0.0, _one_more),
    "none": (None, _itself),
}
