"""Reversing: `3 1 4 = 4 1 3`. The place to read moves away from the place to write. Kazemnejad 2023, 2305.19466."""

from __future__ import annotations

from gptlab.registry import register
from gptlab.tasks.copy import Copy
from gptlab.tasks.draws import Array


@register("data", "reverse")
class Reverse(Copy):
    """A task: say a sequence of symbols backwards, `3 1 4 = 4 1 3`. Kazemnejad et al. 2023, arXiv:2305.19466."""

    name = "reverse"

    def answer(self, told: Array) -> Array:
        return told[:, ::-1]
