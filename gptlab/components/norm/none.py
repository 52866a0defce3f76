"""No normalization: x. An ablation of Ba et al. 2016, arXiv:1607.06450."""

from __future__ import annotations

import torch.nn as nn

from gptlab.registry import register


@register("norm", "none")
class NoNorm(nn.Identity):
    """No normalization: x itself. An ablation of Ba et al. 2016, arXiv:1607.06450."""

    def __init__(self, size: int) -> None:
        super().__init__()
