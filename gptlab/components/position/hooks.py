"""The contract of a position encoding: three places in which it may act, and absolute positions in all of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.shape import Shape


@runtime_checkable
class Term(Protocol):
    """A number added to a score, written elementwise: a dense bias with index tensors, a score_mod with scalars."""

    def __call__(self, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The logit to add where `head` at position `q_pos` looks at position `k_pos`."""
        ...


class Position(nn.Module):
    """Base of every position encoding, built as `Variant(shape, *, options)`. A variant overrides the hooks it needs.

    `limit` is the number of positions it knows (None: any), `relative` whether only distances between tokens matter,
    `pointwise` whether its terms compute with scalars alone, as FlexAttention's score_mod must.
    """

    limit: int | None = None
    relative: bool = False
    pointwise: bool = True
    score_factor: float = 1.0  # of all scores: a scaling may sharpen attention by it

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    def fit(self, head_size: int) -> None:
        """ConfigError when heads of this size cannot be rotated. An attention asks for the size that it rotates."""

    def embed(self, x: Float[Tensor, "B T C"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T C"]:
        """Act on the token embeddings."""
        return x

    def rotate(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], positions: Int[Tensor, "#B T"]
    ) -> tuple[Tensor, Tensor]:
        """Act on queries and keys, head by head."""
        return q, k

    def terms(self) -> tuple[Term, ...]:
        """What is added to the scores."""
        return ()

    @property
    def acts(self) -> frozenset[str]:
        """The hooks that this variant overrides."""
        hooks = ("embed", "rotate", "terms")
        return frozenset(hook for hook in hooks if getattr(type(self), hook) is not getattr(Position, hook))
