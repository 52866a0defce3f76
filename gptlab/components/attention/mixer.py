"""The contract of an attention: a causal mixer of tokens, (B, T, C) -> (B, T, C), with the memory it decodes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.context import Context, Replay
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import label


class Attention(nn.Module):
    """Base of every attention. A variant is built as `Variant(shape, position, *, options)`.

    `honours` names the position hooks that the variant calls: a position that acts in any other is refused, and one
    that acts in these must have an effect. A variant that does not say is given any position, and the run says so.
    Output i may depend on inputs 0..i alone, unless `causal` says otherwise, and on no other sequence of the batch.
    """

    honours: ClassVar[frozenset[str] | None] = None
    absent: ClassVar[bool] = False  # true: the block leaves the whole sublayer out
    orderless: ClassVar[bool] = False  # true, and held to it: without a position encoding, order makes no difference
    relative: bool = True  # whether it sees absolute positions only where the position encoding shows them
    neutral: ClassVar[frozenset[str]] = frozenset()  # options about how it is computed, which change no number
    separates_documents: ClassVar[bool] = False  # true: with context.documents, no token sees another document
    reads_memory: ClassVar[bool] = False  # true: it looks at context.memory, without which it does nothing
    causal: bool | str = True  # prefix: tokens of a source see later ones of it (context.prefix); false: all see all
    cached: int | None = None  # numbers remembered for each token seen; 0: a state of fixed size; None: not said
    reach: int | None = None  # tokens back that a token may look, itself included; None: all
    inert: Mapping[str, str] = {}  # parameters that mathematics keeps from learning, by name, with the reason

    def __init__(self, shape: Shape, position: Position) -> None:
        super().__init__()
        ignored = position.acts - {"embed"} - (position.acts if self.honours is None else self.honours)
        if ignored:
            mine, its = label("attention", self), label("position", position)
            rope = "rope, " if "rotate" in (self.honours or ()) else ""
            raise ConfigError(
                f"attention {mine!r} has no use for position {its!r}, which acts in {' and '.join(sorted(ignored))}: "
                f"choose position={rope}learned, sinusoidal or none, or another attention."
            )

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """Mix the T tokens fed, and those that `cache` holds, into an update of the residual stream."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward(x, context, cache=None).")

    def new_cache(self, batch_size: int, max_len: int) -> Any:
        """An empty memory for `max_len` tokens. This one feeds all inputs again at every call: right, and slow."""
        return Replay(max_len)


def trait(attention: nn.Module, name: str) -> Any:
    """What an attention says of itself; the default of the contract for a plain module that does not say."""
    return getattr(attention, name, getattr(Attention, name))
