"""Post-norm: norm(x + part(x)), twice; the wiring of the first Transformer. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from gptlab.components.block.wiring import Block
from gptlab.registry import register


@register("block", "postnorm")
class PostNorm(Block):
    """norm(x + part(x)): the first Transformer, GPT-1. Vaswani et al. 2017, arXiv:1706.03762.

    Checked against transformers OpenAIGPT and OPT.
    """

    places = frozenset({"after"})
    final_norm = False
