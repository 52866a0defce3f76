"""Pre-norm: x + part(norm(x)), twice; a clean residual path from end to end. Xiong et al. 2020, arXiv:2002.04745."""

from __future__ import annotations

from gptlab.components.block.wiring import Block
from gptlab.registry import register


@register("block", "prenorm")
class PreNorm(Block):
    """x + part(norm(x)): GPT-2, Llama. Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745.

    Checked against transformers GPT-2 and Llama.
    """

    places = frozenset({"before"})
