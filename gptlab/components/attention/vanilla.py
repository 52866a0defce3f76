"""Softmax attention by its definition, scores whole. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from gptlab.components.attention.softmax import SoftmaxAttention
from gptlab.registry import register


@register("attention", "vanilla")
class Vanilla(SoftmaxAttention):
    """Softmax attention by its definition, scores whole. Vaswani et al. 2017, arXiv:1706.03762.

    Checked against transformers eager attention, 37 configurations.
    """

    kernel_name = "math"
