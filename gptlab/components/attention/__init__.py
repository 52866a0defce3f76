"""Attention: (B, T, C) -> (B, T, C), the one part in which tokens look at each other. One file per variant."""

from gptlab.components.attention.mixer import Attention

__all__ = ["Attention"]
