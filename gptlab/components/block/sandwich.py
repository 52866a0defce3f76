"""Sandwich: x + norm(part(norm(x))), twice: what is added is normalized too. Ding et al. 2021, arXiv:2105.13290."""

from __future__ import annotations

from gptlab.components.block.wiring import Block
from gptlab.registry import register


@register("block", "sandwich")
class Sandwich(Block):
    """x + norm(part(norm(x))): CogView, Gemma 2. Ding et al. 2021, arXiv:2105.13290.

    Checked against transformers Gemma2 and Gemma3.
    """

    places = frozenset({"before", "out"})
