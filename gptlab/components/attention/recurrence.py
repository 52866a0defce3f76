"""A sum over the past that fades by a constant factor a token: S_t = decay S_{t-1} + k_t v_t, read as y_t = q_t S_t.

Chunkwise, Sun et al. 2023, arXiv:2307.08621: products of matrices inside a chunk, the recurrence between chunks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.attention.state_space import ssd
from gptlab.components.precision import without_autocast


class Carry:
    """What the past amounts to, whatever its length: S, (B, H, 1, D, E), and the document that it is of, (B, 1)."""

    def __init__(self, n_rows: int, n_head: int, key_size: int, value_size: int, like: Tensor) -> None:
        wide = torch.promote_types(like.dtype, torch.float32)
        self.state = like.new_zeros(n_rows, n_head, 1, key_size, value_size, dtype=wide)
        self.document = like.new_full((n_rows, 1), -1, dtype=torch.long)


def recall(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    log_decay: Float[Tensor, " H"],
    documents: Int[Tensor, "B T"] | None,
    carry: Carry,
) -> Float[Tensor, "B H T E"]:
    """The sum over s <= t of decay^(t - s) (q_t . k_s) v_s, in float32 at least; `carry` goes before, and goes on."""
    q, k, v = (x.to(carry.state.dtype)[:, :, None] for x in (q, k, v))
    if documents is not None:
        documents, carry.document = torch.cat((carry.document, documents), dim=1), documents[:, -1:]
    fade = log_decay.to(q.dtype)[:, None, None, None].expand(1, -1, 1, q.shape[-2], 1)
    with without_autocast(q.device):
        y, carry.state = ssd(q, k, v, fade, carry.state, documents)
    return y[:, :, 0]
