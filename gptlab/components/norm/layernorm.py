"""LayerNorm: (x - mean) / std over the last dimension, then a gain and a bias. Ba et al. 2016, arXiv:1607.06450."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn

from gptlab.registry import register


@register("norm", "layernorm")
class LayerNorm(nn.LayerNorm):
    """LayerNorm: zero mean, unit variance, then gain and bias. Ba et al. 2016, arXiv:1607.06450.

    Checked against transformers OlmoLayerNorm, GPT-2 and Cohere.
    """

    def __init__(
        self,
        size: int,
        *,
        weight: Annotated[bool, "multiply by a learned gain"] = True,
        bias: Annotated[bool, "add a learned bias"] = True,
        eps: Annotated[float, "added to the variance"] = 1e-5,
    ) -> None:
        super().__init__(size, eps=eps, elementwise_affine=weight, bias=bias)
        if bias and not weight:  # torch has a bias only beside a gain
            self.bias = nn.Parameter(torch.zeros(size))
