"""Parity: `1 0 1 = 0`, or spelled out bit by bit, `1 0 1 = 1 1 0`. Hahn 2020, 1906.06755; Anil 2022, 2207.04901."""

from __future__ import annotations

from typing import Annotated, Any

from gptlab.registry import register
from gptlab.tasks.draws import Draws
from gptlab.tasks.task import Questions, Task


@register("data", "parity")
class Parity(Task):
    """A task: whether the number of ones is odd, `1 0 1 = 1 1 0`, bit by bit. Anil et al. 2022, arXiv:2207.04901."""

    name = "parity"

    def __init__(
        self,
        *,
        length: Annotated[int, "bits in a question, in training"] = 16,
        spelled: Annotated[bool, "the parity after every bit is asked for, not that of all alone"] = True,
        **options: Any,
    ) -> None:
        super().__init__(["0", "1", "="], 2, length, **options)
        self.spelled = spelled

    def questions(self, draws: Draws, length: int) -> Questions:
        bits = draws.below(2, length)
        parities = bits.cumsum(axis=1) % 2
        return self.answered(bits, parities if self.spelled else parities[:, -1:])
