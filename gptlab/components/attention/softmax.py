"""The softmax mixer: softmax(q k^T / sqrt(D)) v over heads, on any kernel. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.attention.kernels import Kernel
from gptlab.components.attention.mixer import Attention
from gptlab.components.attention.plan import Plan
from gptlab.components.context import Context, KVCache
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError


class SoftmaxAttention(Attention):
    """Softmax attention; a subclass names the kernel. Its options exist for every kernel that can do them."""

    kernel: ClassVar[Kernel]
    honours = frozenset({"rotate", "terms"})
    orderless = True
    examples: ClassVar[dict[str, object]] = {"qk_norm": "rmsnorm", "softcap": 2.0}  # values with which an option shows

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        n_kv_head: Annotated[
            int | None, "key and value heads, each shared by n_head / n_kv_head queries; null: n_head"
        ] = None,
        window: Annotated[int | None, "tokens back that a token may look, itself included; null: all"] = None,
        qk_norm: Annotated[str | None, "a norm for each head's queries and keys, before rotation; null: none"] = None,
        softcap: Annotated[float | None, "bound c of the scores, c tanh(score / c); null: none"] = None,
        bias: Annotated[bool | None, "a bias in the four projections; null: model.bias"] = None,
        dropout: Annotated[float | None, "probability, on the attention weights; null: model.dropout"] = None,
    ) -> None:
        super().__init__(shape, position)
        n_kv_head = shape.n_head if n_kv_head is None else n_kv_head
        bias = shape.bias if bias is None else bias
        _check(shape, n_kv_head, window, softcap, dropout)
        self.n_head, self.n_kv_head, self.head_size = shape.n_head, n_kv_head, shape.head_size
        self.q = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)
        self.k = nn.Linear(shape.n_embd, n_kv_head * self.head_size, bias=bias)
        self.v = nn.Linear(shape.n_embd, n_kv_head * self.head_size, bias=bias)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=bias)
        self.q_norm = registry.build("norm", qk_norm, self.head_size) if qk_norm else nn.Identity()
        self.k_norm = registry.build("norm", qk_norm, self.head_size) if qk_norm else nn.Identity()
        self.position = position
        self.plan = Plan(
            scale=self.head_size**-0.5,
            n_group=shape.n_head // n_kv_head,
            window=window,
            softcap=softcap,
            dropout=shape.dropout if dropout is None else dropout,
            terms=position.terms(),
        )
        self.reach = window
        self.inert = self._inert()
        self.kernel.check(self.plan)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Project, place, attend, project back."""
        q = self.q_norm(self.split(self.q(x), self.n_head))
        k = self.k_norm(self.split(self.k(x), self.n_kv_head))
        v = self.split(self.v(x), self.n_kv_head)
        q, k = self.position.rotate(q, k, context.positions)
        k_pos = context.positions
        if cache is not None:
            k, v, k_pos = cache.append(k, v, context.positions)
        y = self.kernel.run(q, k, v, self.plan, context.positions, k_pos, self.plan.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))

    def split(self, x: Float[Tensor, "B T HD"], n_head: int) -> Float[Tensor, "B H T D"]:
        """The heads side by side in the last dimension become a dimension of their own."""
        return x.unflatten(-1, (n_head, self.head_size)).transpose(1, 2)

    def _inert(self) -> dict[str, str]:
        """What is added to every key alike moves all scores of a query alike, unless keys turn or scores are capped."""
        if "rotate" in self.position.acts or self.plan.softcap is not None:
            return {}
        last = self.k if isinstance(self.k_norm, nn.Identity) else self.k_norm
        name = "k.bias" if last is self.k else "k_norm.bias"
        return {name: "softmax ignores what all scores share"} if getattr(last, "bias", None) is not None else {}

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """Keys and values of the tokens that a next one can still see."""
        window = self.plan.window
        return KVCache(max_len if window is None else min(window, max_len))


def _check(shape: Shape, n_kv_head: int, window: int | None, softcap: float | None, dropout: float | None) -> None:
    """The rules that a type alone does not say."""
    if n_kv_head < 1 or shape.n_head % n_kv_head:
        raise ConfigError(f"n_kv_head must divide n_head, but {n_kv_head} does not divide {shape.n_head}.")
    if window is not None and window < 1:
        raise ConfigError(f"model.attention.window must be at least 1 (the token itself), but is {window}.")
    if softcap is not None and softcap <= 0:
        raise ConfigError(f"model.attention.softcap must be above 0, but is {softcap}.")
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"model.attention.dropout is a probability in [0, 1), but is {dropout}.")
