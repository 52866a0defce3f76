"""Associative recall of several pairs: `k3 v7 k1 v2 k1 v2 k3 v7`, the values in the second half asked for.

MQAR of Arora et al. 2023 (zoology), arXiv:2312.04927, with every key asked once, in a random order, after all pairs.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from gptlab.errors import ConfigError
from gptlab.registry import register
from gptlab.tasks.draws import Draws
from gptlab.tasks.task import Questions, Task


@register("data", "mqar")
class Mqar(Task):
    """A task: the values of keys seen before, `k3 v7 k1 v2 k1 v2 k3 v7`. Arora et al. 2023, arXiv:2312.04927."""

    name = "mqar"

    def __init__(
        self,
        *,
        n_pair: Annotated[int, "keys with their values in a question, in training"] = 8,
        n_symbol: Annotated[int, "different keys, and as many different values"] = 64,
        **options: Any,
    ) -> None:
        keys, values = (f"k{i}" for i in range(n_symbol)), (f"v{i}" for i in range(n_symbol))
        super().__init__([*keys, *values], n_symbol, n_pair, **options)
        if max(self.sizes) > n_symbol:
            raise ConfigError(f"data.n_symbol must cover all pairs, {max(self.sizes)}, but is {n_symbol}.")

    def questions(self, draws: Draws, length: int) -> Questions:
        keys = draws.orders(self.n_answer, length)
        values = self.n_answer + draws.below(self.n_answer, length)
        order = draws.orders(length, length)
        asked = np.zeros((draws.n, 4 * length), dtype=bool)
        asked[:, 2 * length + 1 :: 2] = True
        halves = [(keys, values), (np.take_along_axis(keys, order, 1), np.take_along_axis(values, order, 1))]
        return Questions(
            np.concatenate([np.stack(half, axis=2).reshape(draws.n, -1) for half in halves], axis=1), asked
        )
