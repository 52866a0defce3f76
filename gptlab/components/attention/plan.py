"""What softmax attention computes: scale -> softcap -> terms -> mask -> softmax in float32 -> values."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

from torch import Tensor

from gptlab.components.position import Term


@dataclass(frozen=True)
class Plan:
    """The score function and mask of one layer. Each is written once, elementwise, and serves every kernel.

    A kernel may evaluate `visible` and the terms with scalars (FlexAttention) or with broadcast index tensors (dense).
    """

    scale: float
    n_group: int = 1  # query heads per key head
    window: int | None = None  # tokens back that a token may look, itself included
    softcap: float | None = None
    dropout: float = 0.0  # probability, on the attention weights in training
    terms: tuple[Term, ...] = ()

    def needs(self) -> frozenset[str]:
        """The words that a kernel must be able to do."""
        wanted = {
            "groups": self.n_group > 1,
            "window": self.window is not None,
            "softcap": self.softcap is not None,
            "dropout": self.dropout > 0,
            "terms": bool(self.terms),
        }
        return frozenset(word for word, needed in wanted.items() if needed)

    def visible(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Whether the token at q_pos may look at the one at k_pos."""
        causal = k_pos <= q_pos
        return causal if self.window is None else causal & (q_pos - k_pos < self.window)

    def bias(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The sum of the position terms, in logits. There must be one."""
        return functools.reduce(operator.add, (term(head, q_pos, k_pos) for term in self.terms))
