"""What Mamba-2 and gated DeltaNet share: a state that decays, read by queries, computed in chunks of tokens.

Dao & Gu 2024, arXiv:2405.21060: within a chunk all pairs of tokens are looked at, between chunks only the state is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

CHUNK = 64  # tokens


class TimeStep(nn.Module):
    """How long a token lasts, and the log of what is left of the state after it. Gu & Dao 2023, arXiv:2312.00752."""

    def __init__(self, n_head: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(n_head))
        self.dt_bias = nn.Parameter(torch.empty(n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A ~ U(1, 16); softplus(dt_bias) log-uniform in (0.001, 0.1)."""
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
            dt = self.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, raw: Float[Tensor, "B T H"]) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """dt = softplus(raw + dt_bias), and -exp(A_log) dt; in float32 at least."""
        wide = torch.promote_types(raw.dtype, torch.float32)
        raw = raw.to(wide) + self.dt_bias
        dt = torch.logaddexp(raw, torch.zeros_like(raw))  # the backward of F.softplus has other strides once compiled
        return dt, -self.A_log.to(wide).exp() * dt


class Memory:
    """The newest inputs of the convolution, the state after them, and the documents that the newest tokens are of."""

    def __init__(self, window: Float[Tensor, "B P F"], state: Float[Tensor, "B G R K D"]) -> None:
        self.window, self.state = window, state
        self.documents: Tensor | None = None

    def with_past(self, documents: Int[Tensor, "B T"] | None) -> Int[Tensor, "B S"] | None:
        """The documents of the tokens fed, after those of the tokens before them: of the window, and one at least."""
        if documents is None:
            return None
        n_past = max(1, self.window.shape[1])
        past = documents[:, :1].expand(-1, n_past) if self.documents is None else self.documents
        documents = torch.cat((past, documents), dim=1)
        self.documents = documents[:, -n_past:]
        return documents


@dataclass(frozen=True)
class Left:
    """What decay leaves of one thing at another, for N chunks of L tokens; nothing across a document's border."""

    within: Float[Tensor, "#B G R N L L"]  # of token j at token i of its chunk
    entering: Float[Tensor, "#B G R N L 1"]  # of the state before the chunk at token i
    leaving: Float[Tensor, "#B G R N L 1"]  # of token j after the chunk
    whole: Float[Tensor, "#B G R N 1 1"]  # of the state before the chunk after it


def heads(x: Float[Tensor, "B T F"], n_group: int, n_shared: int) -> Float[Tensor, "B G R T D"]:
    """Heads that lie side by side in the last dimension, as `n_group` groups of `n_shared`."""
    return x.unflatten(-1, (n_group, n_shared, -1)).movedim(1, -2)


def side_by_side(x: Float[Tensor, "B G R T D"]) -> Float[Tensor, "B T F"]:
    """The inverse of `heads`."""
    return x.movedim(-2, 1).flatten(2)


def in_chunks(x: Shaped[Tensor, "B G R T D"]) -> Shaped[Tensor, "B G R N L D"]:
    """T tokens as chunks of 64, the last filled with zeros; fewer than 64 are one chunk."""
    size = min(CHUNK, x.shape[-2])
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size))


def left_by_decay(log_decay: Float[Tensor, "#B G R T 1"], documents: Int[Tensor, "B S"] | None) -> Left:
    """Exponentials of sums of `log_decay` from one token to another, of one document where documents are given."""
    since = in_chunks(log_decay).cumsum(-2)
    total, size = since[..., -1:, :], since.shape[-2]
    future = torch.ones(size, size, dtype=torch.bool, device=since.device).triu(1)
    logs: tuple[Tensor, ...] = ((since - since.mT).masked_fill(future, -torch.inf), since, total - since, total)
    if documents is not None:
        n_new = log_decay.shape[-2]
        place = torch.arange(since.shape[-3] * size, device=since.device).clamp(max=n_new - 1).view(-1, size)
        documents = documents[:, None, None, -n_new - 1 :]  # from the token before the first
        ids, before = documents[..., place + 1, None], documents[..., place[:, :1], None]
        after = ids[..., -1:, :]
        alike = (ids == ids.mT, ids == before, ids == after, before == after)
        logs = tuple(log.masked_fill(~same, -torch.inf) for log, same in zip(logs, alike, strict=True))
    return Left(*(log.exp() for log in logs))


def ssd(
    q: Float[Tensor, "B G 1 T K"],
    k: Float[Tensor, "B G 1 T K"],
    v: Float[Tensor, "B G R T D"],
    log_decay: Float[Tensor, "#B G R T 1"],
    state: Float[Tensor, "B G R K D"],
    documents: Int[Tensor, "B S"] | None,
) -> tuple[Float[Tensor, "B G R T D"], Float[Tensor, "B G R K D"]]:
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T; y_t = S_t^T q_t; and the last S."""
    n_tokens, left = q.shape[-2], left_by_decay(log_decay, documents)
    q, k, v = (in_chunks(part) for part in (q, k, v))
    before, state = states_before(state, left.whole, k.mT @ (left.leaving * v), operator.mul)
    y = (q @ k.mT * left.within) @ v + left.entering * (q @ before)
    return y.flatten(-3, -2)[..., :n_tokens, :], state


def states_before(
    state: Float[Tensor, "B G R K D"],
    factors: Float[Tensor, "#B G R N #K #K"],
    added: Float[Tensor, "B G R N K D"],
    times: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Float[Tensor, "B G R N K D"], Float[Tensor, "B G R K D"]]:
    """The state before each chunk, and after the last: from one to the next, S becomes `times`(factor, S) + added."""
    states = [state]
    for factor, addition in zip(factors.unbind(-3), added.unbind(-3), strict=True):
        states.append(times(factor, states[-1]) + addition)
    return torch.stack(states[:-1], dim=-3), states[-1]
