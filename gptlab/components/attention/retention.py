"""Retention: attention without a softmax, each head forgetting at a rate of its own. Sun et al. 2023, arXiv:2307.08621.

Parallel in training, a state of fixed size in decoding. RetNet's rotation of q and k is position=rope.
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
from gptlab.components.attention.recurrence import Carry, recall
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.precision import without_autocast
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "retention")
class Retention(Attention):
    """RetNet's multi-scale retention: decayed linear attention, normed and gated. Sun et al. 2023, arXiv:2307.08621."""

    honours = frozenset({"rotate"})
    separates_documents = True
    cached = 0
    fades: Tensor

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        expand: Annotated[int, "size of a head's values over that of its keys; RetNet: 2, beside mlp.expand=2"] = 1,
        bias: Annotated[bool | None, "a bias in the five projections; null: model.bias"] = None,
    ) -> None:
        super().__init__(shape, position)
        if expand < 1:
            raise ConfigError(f"model.attention.expand must be at least 1, but is {expand}.")
        bias, wide = shape.bias if bias is None else bias, expand * shape.n_embd
        self.n_head, self.head_size, self.value_size = shape.n_head, shape.head_size, expand * shape.head_size
        self.q = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)
        self.k = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)
        self.v = nn.Linear(shape.n_embd, wide, bias=bias)
        self.gate = nn.Linear(shape.n_embd, wide, bias=bias)
        self.norm = nn.GroupNorm(shape.n_head, wide)
        self.proj = nn.Linear(wide, shape.n_embd, bias=bias)
        self.register_buffer("fades", 2.0 ** (-5 - torch.arange(shape.n_head)), persistent=False)  # exact in any dtype
        self.position = position
        self.position.fit(self.head_size)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Carry | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(swish(gate) * norm(sum of decay^(t - s) (q_t . k_s / sqrt(D)) v_s, scaled)), decay = 1 - fades."""
        carry = cache or self.new_cache(len(x), 0)
        v = split(self.v(x), self.n_head)
        counted = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)  # the last entry sums the weights themselves
        log_decay = torch.log1p(-self.fades.to(carry.state.dtype))
        # Of a first token's q . k the norm leaves the sign alone, which bf16 may miss: q and k are not rounded to it.
        with without_autocast(x.device):
            q, k = (split(part(x.to(part.weight.dtype)), self.n_head) for part in (self.q, self.k))
            q, k = self.position.rotate(q, k, context.positions)
            sums = recall(q * self.head_size**-0.5, k, counted, log_decay, context.documents, carry)
        age = context.positions[:, None, :, None] + 1
        decays = -torch.expm1(log_decay[:, None, None] * age) / self.fades[:, None, None]  # 1 + decay + decay^2 + ...
        y = sums[..., :-1] / torch.maximum(sums[..., -1:].abs(), decays.sqrt())  # the paper's second and third scaling
        y = y.to(self.norm.weight.dtype).transpose(1, 2).flatten(2)
        return self.proj(F.silu(self.gate(x)) * self.norm(y.flatten(0, 1)).view_as(y))

    def new_cache(self, batch_size: int, max_len: int) -> Carry:
        """The faded sum is all that the past amounts to, whatever its length."""
        return Carry(batch_size, self.n_head, self.head_size, self.value_size + 1, self.q.weight)
