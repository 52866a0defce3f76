"""Output norm: x + norm(part(x)), twice: what is added is normalized, not what is read. OLMo 2025, arXiv:2501.00656."""

from __future__ import annotations

from gptlab.components.block.wiring import Block
from gptlab.registry import register


@register("block", "outnorm")
class OutputNorm(Block):
    """x + norm(part(x)): Swin v2, OLMo 2. Liu et al. 2021, arXiv:2111.09883; OLMo team 2025, arXiv:2501.00656.

    Checked against transformers Olmo2.
    """

    places = frozenset({"out"})
