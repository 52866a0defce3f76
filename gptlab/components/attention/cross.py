"""Attention to another sequence: queries from x, keys and values from what an encoder put out.

Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.heads import split
from gptlab.components.attention.softmax import Softmax
from gptlab.components.context import Context, Encoded, Places
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "cross")
class Cross(Softmax):
    """Cross-attention: each token looks at all of another sequence. Vaswani et al. 2017, arXiv:1706.03762.

    Checked against torch.nn.MultiheadAttention.
    """

    honours = frozenset()
    reads_memory = True
    refuses = frozenset({"causal", "window", "chunk", "value_residual", "qk_norm_after"})  # about one sequence alone

    def __init__(self, shape: Shape, position: Position, **options: Any) -> None:
        usual = {"causal": True, "window": None, "chunk": None, "value_residual": False}
        odd = next((name for name, value in usual.items() if options.get(name, value) != value), None)
        if odd is not None:
            raise ConfigError(
                f"attention 'cross' looks at another sequence, of which model.attention.{odd} says nothing: "
                f"leave {odd} out."
            )
        super().__init__(shape, position, **{**options, "causal": False})
        self.causal = True  # among its own tokens, none of which sees another
        self.cached = 0

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """proj(softmax(q k^T / sqrt(D)) v), q of x, k and v of the memory."""
        if context.memory is None:
            raise ConfigError(
                "attention 'cross' looks at what an encoder put out, but there is none: set GPT.memory, or choose "
                "model/attention=softmax and another block."
            )
        _check_sizes(x, context.memory)
        q = split(self.bound(self.q(x)), self.n_head)
        k, v = (split(self.bound(part(context.memory.states)), self.n_kv_head) for part in (self.k, self.v))
        k, v = (part.expand(x.shape[0], -1, -1, -1) for part in (self.k_norm(k), v))
        y = self.attend(self.q_norm(q), k, v, *_places(x, context.memory))
        return self.proj(self.gate(y, x).transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int, max_len: int) -> Any:
        """Nothing of x is looked at again."""
        return None


def _check_sizes(x: Float[Tensor, "B T C"], memory: Encoded) -> None:
    """ConfigError where the two sequences cannot belong together."""
    (n_rows, _, width), wanted = memory.states.shape, len(x)
    if width != x.shape[-1]:
        raise ConfigError(f"GPT.memory must be as wide as the texts, {x.shape[-1]}, but is {width}: project it first.")
    if n_rows not in (1, wanted):
        raise ConfigError(f"GPT.memory must have a row for each of {wanted} texts, or one for all, but has {n_rows}.")


def _places(x: Float[Tensor, "B T C"], memory: Encoded) -> tuple[Places, Places]:
    """Of queries and keys, whose order means nothing: what the mask hides is a document of its own."""
    queries, keys = (torch.arange(n, device=x.device)[None] for n in (x.shape[1], memory.states.shape[1]))
    if memory.mask is None:
        return Places(queries), Places(keys)
    hidden = (~memory.mask).long().expand(x.shape[0], -1)
    return Places(queries, queries.new_zeros(x.shape[:2])), Places(keys, hidden)
