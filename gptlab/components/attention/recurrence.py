"""A sum over the past that fades by a constant factor a token: S_t = decay S_{t-1} + k_t v_t, read as y_t = q_t S_t.

Chunkwise, Sun et al. 2023, arXiv:2307.08621: products of matrices inside a chunk, the recurrence between chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.precision import without_autocast

CHUNK = 64  # tokens; the cost of T of them grows as T * CHUNK


class Carry:
    """What the past amounts to, whatever its length: S, (B, H, D, E), and the document that it is of, (B, 1)."""

    def __init__(self, n_rows: int, n_head: int, key_size: int, value_size: int, like: Tensor) -> None:
        wide = torch.promote_types(like.dtype, torch.float32)
        self.state = like.new_zeros(n_rows, n_head, key_size, value_size, dtype=wide)
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
    n_new = q.shape[2]
    size = min(CHUNK, n_new)
    padding = (0, 0, 0, -n_new % size)
    q, k, v = (F.pad(x.to(carry.state.dtype), padding).unflatten(2, (-1, size)) for x in (q, k, v))
    time = torch.arange(n_new + padding[3], device=q.device).clamp(max=n_new - 1).view(-1, size)  # padding takes none
    gap = time[:, :, None] - time[:, None, :]
    log_decay = log_decay.to(q.dtype)[:, None, None]
    kept = torch.where(gap >= 0, log_decay[..., None] * gap, float("-inf")).exp()  # of token s at t, (H, N, t, s)
    carried = (log_decay * (time - time[:, :1] + 1)).exp()  # of the state before the chunk at t, (H, N, t)
    if documents is not None:
        own = documents[:, time]
        before = torch.cat((carry.document, own[:, :-1, -1]), dim=1)
        kept = kept * (own[..., :, None] == own[..., None, :])[:, None]
        carried = carried * (own == before[..., None])[:, None]
        carry.document = own[:, -1, -1:]
    with without_autocast(q.device):
        written = (kept[..., -1, :, None] * k).mT @ v
        states = [carry.state]
        for share, new in zip(carried[..., -1].unbind(-1), written.unbind(2), strict=True):
            states.append(share[..., None, None] * states[-1] + new)
        carry.state = states.pop()
        y = (kept * (q @ k.mT)) @ v + carried[..., None] * (q @ torch.stack(states, dim=2))
    return y.flatten(2, 3)[:, :, :n_new]
