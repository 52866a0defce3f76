"""The newest tokens side by side, at fixed distances: what a convolution and an MLP over a window read.

Time-delay networks: Waibel et al. 1989, "Phoneme Recognition Using Time-Delay Neural Networks".
"""

from __future__ import annotations

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.shape import Shape


class Inputs:
    """The newest inputs, (B, reach - 1, C), zeros where there were none, and the document that each is of."""

    def __init__(self, n_rows: int, n_held: int, like: Tensor) -> None:
        self.x = like.new_zeros(n_rows, n_held, like.shape[0])
        self.documents = like.new_full((n_rows, n_held), -1, dtype=torch.long)


class Taps(Attention):
    """Base of the mixers that read the tokens t, t - dilation, ..., each by weights of its own. Waibel et al. 1989."""

    honours = frozenset()
    separates_documents = True
    cached = 0
    reach: int
    proj: nn.Linear  # a variant's own, (..., C)

    def __init__(self, shape: Shape, position: Position, n_tap: int, dilation: int = 1) -> None:
        super().__init__(shape, position)
        self.dilation = dilation
        self.reach = (n_tap - 1) * dilation + 1

    def taps(self, x: Float[Tensor, "B T C"], context: Context, cache: Inputs | None) -> Float[Tensor, "B T F"]:
        """For each token those that it reads, the oldest first; zeros for those of another document, or of none."""
        past = cache or self.new_cache(len(x), 0)
        n_new = x.shape[1]
        starts = range(0, self.reach, self.dilation)
        seen = torch.cat((past.x.to(x.dtype), x), dim=1)
        taps = [seen[:, start : start + n_new] for start in starts]
        if context.documents is not None:
            documents = torch.cat((past.documents, context.documents), dim=1)
            own = [documents[:, start : start + n_new, None] == context.documents[..., None] for start in starts]
            taps = [tap * mine for tap, mine in zip(taps, own, strict=True)]
            past.documents = documents[:, n_new:]
        past.x = seen[:, n_new:]
        return torch.cat(taps, dim=-1)

    def new_cache(self, batch_size: int, max_len: int) -> Inputs:
        """The inputs that the next token still reaches."""
        return Inputs(batch_size, self.reach - 1, self.proj.weight)
