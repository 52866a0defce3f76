"""Blocks: how a layer wires attention, MLP and norms around the residual stream. One file per variant."""

from gptlab.components.block.wiring import Block, Parts

__all__ = ["Block", "Parts"]
