"""Arithmetic modulo a prime: `31 + 80 = 14`, all pairs, cut once; validation is known long after training (grokking).

Power et al. 2022, arXiv:2201.02177.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from gptlab.errors import ConfigError
from gptlab.registry import register
from gptlab.tasks.draws import Array, Draws
from gptlab.tasks.task import Questions, Task


@register("data", "modular")
class Modular(Task):
    """A task: arithmetic modulo p, `31 + 80 = 14`, a finite table that groks. Power et al. 2022, arXiv:2201.02177."""

    name = "modular"

    def __init__(
        self,
        *,
        modulus: Annotated[int, "p; division needs a prime"] = 97,
        operation: Annotated[Literal["+", "-", "*", "/"], "between the two numbers; / divides by no 0"] = "+",
        n_val: Annotated[int, "validation questions at most"] = 10_000,
        val_fraction: Annotated[float, "share of all pairs that is kept for validation"] = 0.5,
    ) -> None:
        if operation == "/" and any(modulus % i == 0 for i in range(2, modulus)):
            raise ConfigError(f"data.operation=/ needs a prime data.modulus, but {modulus} is none: 97 is.")
        super().__init__(
            [*map(str, range(modulus)), operation, "="], modulus, 1, n_val=n_val, val_fraction=val_fraction
        )
        self.modulus, self.operation = modulus, operation

    def questions(self, draws: Draws, length: int) -> Questions:
        a, b = draws.below(self.modulus, 1), draws.below(self.modulus, 1)
        if self.operation == "/":  # a is what b must be multiplied with: as likely as any other for a b that is not 0
            b = 1 + draws.below(self.modulus - 1, 1)
        told = np.concatenate([a, np.full((draws.n, 1), self.modulus), b], axis=1)
        return self.answered(told, self._result(a, b))

    def _result(self, a: Array, b: Array) -> Array:
        if self.operation == "/":
            inverse = np.array([0, *(pow(i, -1, self.modulus) for i in range(1, self.modulus))])
            return a * inverse[b] % self.modulus
        return {"+": a + b, "-": a - b, "*": a * b}[self.operation] % self.modulus
