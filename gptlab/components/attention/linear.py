"""Linear attention: features of q and k in place of exp(q . k), so that the past is one sum and the cost is linear.

Katharopoulos et al. 2020, arXiv:2006.16236. Rotated in the numerator alone, as in Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

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
from gptlab.components.shape import Shape
from gptlab.registry import register

EPS = 1e-6  # added to the denominator, as the authors' code does


class Sums:
    """The two sums over the past: of what is averaged, and of its weights."""

    def __init__(self, n_rows: int, n_head: int, head_size: int, like: Tensor) -> None:
        self.above = Carry(n_rows, n_head, head_size, head_size, like)
        self.below = Carry(n_rows, n_head, head_size, 1, like)


@register("attention", "linear")
class Linear(Attention):
    """Linear attention: weights phi(q) . phi(k), over their sum. Katharopoulos et al. 2020, arXiv:2006.16236."""

    honours = frozenset({"rotate"})
    orderless = True
    separates_documents = True
    cached = 0

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        feature: Annotated[Literal["elu", "relu"], "phi: elu(x) + 1, or relu(x) + 0.001"] = "elu",
        bias: Annotated[bool | None, "a bias in the four projections; null: model.bias"] = None,
    ) -> None:
        super().__init__(shape, position)
        bias = shape.bias if bias is None else bias
        self.n_head, self.head_size = shape.n_head, shape.head_size
        self.q, self.k, self.v, self.proj = (nn.Linear(shape.n_embd, shape.n_embd, bias=bias) for _ in range(4))
        self.feature = FEATURES[feature]
        self.position = position
        self.position.fit(self.head_size)

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Sums | None = None) -> Float[Tensor, "B T C"]:
        """proj(sum of (phi(q_t) . phi(k_s)) v_s / sum of phi(q_t) . phi(k_s)), over s <= t."""
        sums = cache or self.new_cache(len(x), 0)
        q, k, v = (split(part(x), self.n_head) for part in (self.q, self.k, self.v))
        q, k = self.feature(q), self.feature(k)
        turned = self.position.rotate(q, k, context.positions)
        everlasting = q.new_zeros(self.n_head)
        above = recall(*turned, v, everlasting, context.documents, sums.above)
        below = recall(q, k, torch.ones_like(v[..., :1]), everlasting, context.documents, sums.below)
        return self.proj((above / (below + EPS)).to(v.dtype).transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int, max_len: int) -> Sums:
        """The two sums are all that the past amounts to, whatever its length."""
        return Sums(batch_size, self.n_head, self.head_size, self.q.weight)


def _elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def _relu(x: Tensor) -> Tensor:
    return F.relu(x) + 1e-3  # Choromanski et al. 2020, arXiv:2009.14794: a query must weigh something


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"elu": _elu, "relu": _relu}
