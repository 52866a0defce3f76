"""Attention: (B, T, C) -> (B, T, C), the one part in which tokens look at each other. One file per variant."""

from gptlab.components.attention.mixer import Attention, trait

__all__ = ["Attention", "trait"]
