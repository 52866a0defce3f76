"""CoPE, contextual positions: how far a key is from a query is counted in tokens that the query's gate lets count.

Golovneva et al. 2024, arXiv:2405.18719.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.heads import split
from gptlab.components.attention.mixer import Attention
from gptlab.components.attention.plan import Plan
from gptlab.components.context import Context, KVCache
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "cope")
class CoPE(Attention):
    """Softmax attention whose positions count what the context makes count. Golovneva et al. 2024, arXiv:2405.18719."""

    honours = frozenset()
    separates_documents = True

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        n_position: Annotated[
            int | None, "positions known, from 0; farther ones are the last; null: block_size"
        ] = None,
        bias: Annotated[bool | None, "a bias in the four projections; null: model.bias"] = None,
        dropout: Annotated[float | None, "probability, on the attention weights; null: model.dropout"] = None,
    ) -> None:
        super().__init__(shape, position)
        self.n_position = shape.block_size if n_position is None else n_position
        self.plan = Plan(scale=shape.head_size**-0.5, dropout=shape.dropout if dropout is None else dropout)
        if self.n_position < 2:
            raise ConfigError(f"model.attention.n_position must be at least 2, but is {self.n_position}.")
        bias = shape.bias if bias is None else bias
        self.n_head = shape.n_head
        self.q, self.k, self.v, self.proj = (nn.Linear(shape.n_embd, shape.n_embd, bias=bias) for _ in range(4))
        self.embedding = nn.Embedding(self.n_position, shape.head_size)  # e, one for all heads
        self.cached = 2 * shape.n_embd

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """softmax(q . k / sqrt(D) + q . e[p]) v, p the sum of sigmoid(q . k / sqrt(D)) from the key to the query."""
        q, k, v = (split(part(x), self.n_head) for part in (self.q, self.k, self.v))
        keys = context.places
        if cache is not None:
            k, v, keys = cache.append(k, v, context.places)
        scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * self.plan.scale
        hidden = ~self.plan.mask(context.places, keys)
        gates = scores.sigmoid().masked_fill(hidden, 0.0)
        passed = gates.flip(-1).cumsum(-1).flip(-1)
        scores = (scores + self.logits_at(q, passed)).masked_fill(hidden, float("-inf"))
        weights = F.dropout(scores.softmax(-1), self.plan.dropout, self.training)
        return self.proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def logits_at(self, q: Float[Tensor, "B H T D"], passed: Float[Tensor, "B H T S"]) -> Float[Tensor, "B H T S"]:
        """q . e[p], for a p between two positions the logits of both, in proportion."""
        known = (q @ self.embedding.weight.T).to(passed.dtype)  # (B, H, T, n_position)
        passed = passed.clamp(max=self.n_position - 1)
        below = passed.long().clamp(max=self.n_position - 2)
        share = passed - below
        return (1 - share) * known.gather(-1, below) + share * known.gather(-1, below + 1)

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """Keys and values of the tokens that a next one can still see."""
        return KVCache(max_len)
