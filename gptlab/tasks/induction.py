"""Induction: a random sequence that repeats, `7 2 5 7 2 5`; one layer cannot know what followed before, two can.

Elhage et al. 2021 (A mathematical framework for transformer circuits); Olsson et al. 2022, arXiv:2209.11895.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from gptlab.errors import ConfigError
from gptlab.registry import register
from gptlab.tasks.draws import Draws
from gptlab.tasks.task import Questions, Task


@register("data", "induction")
class Induction(Task):
    """A task: go on with a sequence that repeats after an unknown period, `7 2 5 7 2 5`. Olsson 2022, 2209.11895.

    The period is drawn for each question, from half of its length to all of it, so that no fixed distance serves. No
    symbol is twice in a period; what follows the first that returns, and all after it, is asked for.
    """

    name = "induction"

    def __init__(
        self,
        *,
        length: Annotated[
            int, "symbols before all are repeated, at most, in training; a question has twice as many"
        ] = 32,
        n_symbol: Annotated[int, "different symbols"] = 128,
        **options: Any,
    ) -> None:
        super().__init__([*map(str, range(n_symbol))], n_symbol, length, **options)
        if min(self.shortest, *self.sizes) < 2:
            raise ConfigError("A period of 1 leaves nothing to ask for: data.length, shortest and lengths begin at 2.")
        if max(self.sizes) > n_symbol:
            raise ConfigError(f"data.n_symbol must cover the longest period, {max(self.sizes)}, but is {n_symbol}.")

    def questions(self, draws: Draws, length: int) -> Questions:
        least = (length + 1) // 2
        period = least + draws.below(length - least + 1, 1)
        places = np.arange(2 * length)[None]
        tokens = np.take_along_axis(draws.orders(self.n_answer, length), places % period, axis=1)
        return Questions(tokens, places > period)
