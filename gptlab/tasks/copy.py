"""Copying: `3 1 4 = 3 1 4`. How far beyond the lengths of training it goes tells position encodings apart.

Kazemnejad et al. 2023, arXiv:2305.19466; Jelassi et al. 2024, arXiv:2402.01032.
"""

from __future__ import annotations

from typing import Annotated, Any

from gptlab.registry import register
from gptlab.tasks.draws import Array, Draws
from gptlab.tasks.task import Questions, Task


@register("data", "copy")
class Copy(Task):
    """A task: say a sequence of symbols again, `3 1 4 = 3 1 4`. Jelassi et al. 2024, arXiv:2402.01032."""

    name = "copy"

    def __init__(
        self,
        *,
        length: Annotated[int, "symbols in a question, in training"] = 20,
        n_symbol: Annotated[int, "different symbols"] = 10,
        **options: Any,
    ) -> None:
        super().__init__([*map(str, range(n_symbol)), "="], n_symbol, length, **options)

    def questions(self, draws: Draws, length: int) -> Questions:
        told = draws.below(self.n_answer, length)
        return self.answered(told, self.answer(told))

    def answer(self, told: Array) -> Array:
        """What is to be said after `told`, row by row."""
        return told
