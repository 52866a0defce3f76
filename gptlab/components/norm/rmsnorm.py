"""RMSNorm: x over its root mean square, then a gain; no mean taken away. Zhang & Sennrich 2019, arXiv:1910.07467."""

from __future__ import annotations

from typing import Annotated

import torch.nn as nn

from gptlab.registry import register


@register("norm", "rmsnorm")
class RMSNorm(nn.RMSNorm):
    """RMSNorm: divide by the root mean square, then a gain. Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, size: int, *, eps: Annotated[float, "added to the mean square"] = 1e-5) -> None:
        super().__init__(size, eps=eps)
