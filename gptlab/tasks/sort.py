"""Sorting: `2 0 1 0 = 0 0 1 2`. minGPT's demo sorts 6 digits of 3 symbols (Karpathy 2020)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from gptlab.registry import register
from gptlab.tasks.copy import Copy
from gptlab.tasks.draws import Array


@register("data", "sort")
class Sort(Copy):
    """A task: say a sequence of symbols in their order, `2 0 1 0 = 0 0 1 2`. minGPT's demo: Karpathy 2020."""

    name = "sort"

    def __init__(
        self,
        *,
        length: Annotated[int, "symbols in a question, in training"] = 6,
        n_symbol: Annotated[int, "different symbols"] = 3,
        **options: Any,
    ) -> None:
        super().__init__(length=length, n_symbol=n_symbol, **options)

    def answer(self, told: Array) -> Array:
        return np.sort(told, axis=1)
