"""Addition digit by digit: `1 2 + 3 9 = 1 5 0`, the sum lowest digit first. Lee et al. 2023, arXiv:2307.03381."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from gptlab.registry import register
from gptlab.tasks.draws import Array, Draws
from gptlab.tasks.task import Questions, Task


@register("data", "addition")
class Addition(Task):
    """A task: the sum of two numbers, `1 2 + 3 9 = 1 5 0`, lowest digit first. Lee et al. 2023, arXiv:2307.03381."""

    name = "addition"

    def __init__(
        self,
        *,
        length: Annotated[int, "digits of each number, in training; of the sum, one more"] = 3,
        lowest_first: Annotated[bool, "the sum begins with its lowest digit, which needs no others to be known"] = True,
        **options: Any,
    ) -> None:
        super().__init__([*map(str, range(10)), "+", "="], 10, length, **options)
        self.lowest_first = lowest_first

    def questions(self, draws: Draws, length: int) -> Questions:
        a, b = draws.below(10, length), draws.below(10, length)
        digits = _sum(a, b)
        plus = np.full((draws.n, 1), self.symbols.index("+"))
        told = np.concatenate([a, plus, b], axis=1)
        return self.answered(told, digits if self.lowest_first else digits[:, ::-1])


def _sum(a: Array, b: Array) -> Array:
    """The digits of a + b, lowest first, one more than theirs; a and b (n, digits) have the highest first."""
    digits = np.zeros((len(a), a.shape[1] + 1), dtype=np.int64)
    for place in range(a.shape[1]):
        total = a[:, -1 - place] + b[:, -1 - place] + digits[:, place]
        digits[:, place], digits[:, place + 1] = total % 10, total // 10
    return digits
