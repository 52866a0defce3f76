"""What travels through the stack beside the residual stream, and the memories that decoding keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Context:
    """What a part may look at: absolute positions, tensors shared across layers, and losses that a part adds.

    `positions` is (1 or B, T). A part adds to `losses` by name; the model sums them into the training loss.
    """

    positions: Int[Tensor, "#B T"]
    shared: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Cache:
    """A model's memory while it decodes: one memory a layer, of the kind its attention makes, and the tokens seen."""

    layers: list[Any]
    length: int = 0


class KVCache:
    """Keys, values and their positions: as many as a next token may see besides itself, `max_len` - 1."""

    def __init__(self, max_len: int) -> None:
        self.n_held = max_len - 1
        self.held: tuple[Tensor, Tensor, Tensor] | None = None

    def append(
        self, k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T D"], positions: Int[Tensor, "#B T"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All that the fed tokens may see, what is held and what is new: k and v (B, G, S, D), positions (#B, S)."""
        if self.held is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.held[:2], (k, v), strict=True))
            positions = torch.cat((self.held[2], positions), dim=1)
        drop = max(0, k.shape[2] - self.n_held)
        self.held = (k[:, :, drop:], v[:, :, drop:], positions[:, drop:])
        return k, v, positions


class Replay:
    """The newest `max_len` inputs, fed again at every call: right for any attention without a memory of its own."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.held: tuple[Tensor, Tensor] | None = None

    def run(
        self, attention: Callable[[Tensor, Context], Tensor], x: Float[Tensor, "B T C"], context: Context
    ) -> Float[Tensor, "B T C"]:
        """What `attention` gives the last T tokens after those before them."""
        n_new, positions = x.shape[1], context.positions
        if self.held is not None:
            x, positions = (torch.cat(pair, dim=1) for pair in zip(self.held, (x, positions), strict=True))
        drop = max(0, x.shape[1] - max(self.max_len, n_new))
        self.held = (x[:, drop:], positions[:, drop:])
        return attention(self.held[0], replace(context, positions=self.held[1]))[:, -n_new:]
