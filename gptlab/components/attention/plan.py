"""What softmax attention computes: scale -> softcap -> terms -> mask -> softmax in float32 with sinks -> values."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from gptlab.components.context import Places
from gptlab.components.position import Term
from gptlab.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The score function and mask of one layer. Each is written once, elementwise, and serves every kernel.

    A kernel may evaluate `visible` and the terms with scalars (FlexAttention) or with broadcast index tensors (dense).
    """

    scale: float
    n_group: int = 1  # query heads per key head
    causal: bool | Literal["prefix"] = True  # false: a token sees later ones too; prefix: where both are of its source
    window: int | None = None  # tokens that a token may look away, itself included
    chunk: int | None = None  # tokens of a chunk, the first at position 0; a token looks back to the first of its own
    softcap: float | None = None
    dropout: float = 0.0  # probability, on the attention weights in training
    terms: tuple[Term, ...] = ()
    pointwise: bool = True  # whether the terms compute with scalars alone
    sinks: bool = False  # whether each head has a logit of looking at nothing
    words: frozenset[str] = field(init=False, compare=False)  # asked for at every call, so found once

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise ConfigError(f"model.attention.{name} must be at least 1 (the token itself), but is {value}.")
        if self.softcap is not None and self.softcap <= 0:
            raise ConfigError(f"model.attention.softcap must be above 0, but is {self.softcap}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.attention.dropout is a probability in [0, 1), but is {self.dropout}.")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"model.attention.scale must be above 0, but is {self.scale}.")
        wanted = {
            "groups": self.n_group > 1,
            "later tokens": self.causal is not True,
            "window": self.window is not None,
            "chunk": self.chunk is not None,
            "softcap": self.softcap is not None,
            "dropout": self.dropout > 0,
            "terms": bool(self.terms),
            "vector terms": not self.pointwise,
            "sinks": self.sinks,
        }
        object.__setattr__(self, "words", frozenset(word for word, needed in wanted.items() if needed))

    def needs(self) -> frozenset[str]:
        """The words that a kernel must be able to do."""
        return self.words

    @property
    def masks(self) -> bool:
        """Whether more than the causal order decides what a token sees."""
        return self.window is not None or self.chunk is not None

    def visible(self, q_pos: Tensor, k_pos: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Whether the token at q_pos may look at the one at k_pos, both of one document.

        With `prefix`, the length of its source, all of which comes first: whoever stands in it sees later ones of it.
        """
        seen = k_pos <= q_pos if self.causal else k_pos >= 0
        if self.causal == "prefix" and prefix is not None:
            seen = seen | (k_pos < prefix)
        if self.window is not None:
            seen = seen & ((q_pos - k_pos).abs() < self.window)
        if self.chunk is not None:
            seen = seen & (q_pos // self.chunk == k_pos // self.chunk)
        return seen

    def mask(self, queries: Places, keys: Places) -> Bool[Tensor, "#B 1 T S"]:
        """Which keys each query may look at, within documents where they are kept apart."""
        prefix = None if queries.prefix is None else queries.prefix[:, None, :, None]
        seen = self.visible(queries.positions[:, None, :, None], keys.positions[:, None, None, :], prefix)
        if keys.live is not None:
            seen = seen & keys.live
        if queries.documents is None or keys.documents is None:
            return seen
        return seen & (queries.documents[:, None, :, None] == keys.documents[:, None, None, :])

    def bias(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The sum of the position terms, in logits. There must be one."""
        return functools.reduce(operator.add, (term(head, q_pos, k_pos) for term in self.terms))
