"""The sizes a part is built for. B sequences, T tokens fed, S tokens seen, C width, H heads, D head size, F hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptlab.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """The sizes of one layer. `layer` is its index, from 0."""

    n_embd: int
    n_head: int
    block_size: int
    n_layer: int = 1
    layer: int = 0
    dropout: float = 0.0
    bias: bool = False
    init_std: float = 0.02  # of weights that a part draws itself

    @property
    def proj_std(self) -> float:
        """The std of weights that write to the residual stream: two such sums a layer. Radford et al. 2019."""
        return self.init_std / math.sqrt(2 * max(1, self.n_layer))

    @property
    def head_size(self) -> int:
        """D. ConfigError unless n_head divides n_embd."""
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_head must divide n_embd, but {self.n_head} does not divide {self.n_embd}.")
        return self.n_embd // self.n_head
