"""What attentions by a softmax share: a plan of what is computed, a kernel that computes it, a window of memory.

Softmax of scaled scores: Vaswani et al. 2017, arXiv:1706.03762.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.choice import choose
from gptlab.components.attention.mixer import Attention
from gptlab.components.attention.plan import Plan
from gptlab.components.context import KVCache, Places
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import label


class Planned(Attention):
    """Base of the attentions by a softmax; a variant makes q, k and v, and names the kernel. Vaswani et al. 2017.

    Built with the size of a head's queries and keys, and the number of queries that share a key.
    """

    kernel_name: str
    honours = frozenset({"rotate", "terms"})
    orderless = True
    separates_documents = True
    examples: ClassVar[dict[str, object]] = {"scale": 0.7, "softcap": 2.0, "chunk": 6}  # with which an option shows

    def __init__(
        self,
        shape: Shape,
        position: Position,
        size: int,
        n_group: int = 1,
        *,
        causal: Annotated[
            bool | Literal["prefix"], "no token sees a later one; prefix: but of its source; false: all see all"
        ] = True,
        window: Annotated[int | None, "tokens that a token may look away, itself included; null: all"] = None,
        chunk: Annotated[int | None, "tokens of a chunk, of which none looks into another; null: no chunks"] = None,
        scale: Annotated[float | None, "factor of the scores; null: 1 / sqrt(size of a query)"] = None,
        softcap: Annotated[float | None, "bound c of the scores, c tanh(score / c); null: none"] = None,
        sinks: Annotated[bool, "a learned logit for each head of looking at nothing"] = False,
        dropout: Annotated[float | None, "probability, on the attention weights; null: model.dropout"] = None,
    ) -> None:
        super().__init__(shape, position)
        _check(position, causal)
        self.causal = causal
        self.plan = Plan(
            scale=(size**-0.5 if scale is None else scale) * position.score_factor,
            n_group=n_group,
            causal=causal,
            window=window,
            chunk=chunk,
            softcap=softcap,
            dropout=shape.dropout if dropout is None else dropout,
            terms=position.terms(),
            pointwise=position.pointwise,
            sinks=sinks,
        )
        self.kernel = choose(self.kernel_name, self.plan, "kernel" in self.neutral)
        self.n_head, self.size, self.position = shape.n_head, size, position
        self.sinks = nn.Parameter(torch.zeros(shape.n_head)) if sinks else None
        self.reach = min((limit for limit in (window, chunk) if limit is not None), default=None)
        self.relative = chunk is None  # chunks begin at absolute positions

    def attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G S D"], v: Float[Tensor, "B G S E"],
        queries: Places, keys: Places,
    ) -> Float[Tensor, "B ..."]:  # fmt: skip
        """What each head reads, (B, H, T, E), as the plan says and the kernel computes it."""
        dropout = self.plan.dropout if self.training else 0.0
        return self.kernel.run(q, k, v, self.plan, queries, keys, dropout, self.sinks)

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """What is kept of the tokens that a next one can still see. ConfigError where it is seen by those before it."""
        if not self.causal:
            raise ConfigError(
                "With model.attention.causal=false a new token changes what those before it are, so none can be "
                "remembered: feed all of them at once, without a cache."
            )
        return KVCache(max_len if self.reach is None else min(self.reach, max_len))


def _check(position: Position, causal: bool | str) -> None:
    """ConfigError for a position that adds to the scores by how far back a key is, where keys may be ahead."""
    if causal is not True and position.terms():
        raise ConfigError(
            f"position {label('position', position)!r} knows how far back a token is, not how far ahead, as model."
            f"attention.causal={str(causal).lower()} asks: choose position=rope, learned or none, or leave causal out."
        )
