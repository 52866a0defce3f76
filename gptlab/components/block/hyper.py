"""Hyper-connections: n residual streams; each sublayer learns what it reads of them, writes to them, and how they mix.

Zhu et al. 2024, arXiv:2409.19606.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention import trait
from gptlab.components.block.wiring import Block, Parts
from gptlab.components.context import Context
from gptlab.components.precision import without_autocast
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register

Sublayer = Callable[[Tensor], Tensor]


class Connection(nn.Module):
    """How one sublayer reads n streams and writes to them, the same for every token. Zhu et al. 2024.

    It begins as a residual connection: sublayer `place` reads stream `place` mod n and adds to all, which stay apart.
    """

    def __init__(self, n_stream: int, place: int) -> None:
        super().__init__()
        read = nn.functional.one_hot(torch.tensor(place % n_stream), n_stream)[:, None]
        self.read_bias = nn.Parameter(torch.cat((read, torch.eye(n_stream)), dim=1))  # of the sublayer, of each stream
        self.write_bias = nn.Parameter(torch.ones(n_stream))

    def forward(self, streams: Float[Tensor, "B T N C"], part: Sublayer) -> Float[Tensor, "B T N C"]:
        """The streams mixed, plus what the sublayer makes of its own mix of them; residuals are not rounded."""
        with without_autocast(streams.device):
            read, write = self.weights(streams)
            h, kept = (read.mT @ streams).split((1, streams.shape[2]), dim=2)
        return kept + write[..., None] * part(h[:, :, 0])[:, :, None]

    def weights(self, streams: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "... N M"], Float[Tensor, "... N"]]:
        """Of each stream in the sublayer's input and in every stream, and of the sublayer's output in it."""
        return self.read_bias, self.write_bias


class DynamicConnection(Connection):
    """Weights to which each token adds its own, bounded by a learned scale. Zhu et al. 2024."""

    roles: ClassVar[Mapping[str, str]] = {"read_weight": "vector"}  # a column a weight; write_weight is one column

    def __init__(self, n_stream: int, place: int, n_embd: int, norm: nn.Module) -> None:
        super().__init__(n_stream, place)
        self.norm = norm
        self.read_weight = nn.Parameter(torch.zeros(n_embd, 1 + n_stream))
        self.write_weight = nn.Parameter(torch.zeros(n_embd, 1))
        self.read_scale = nn.Parameter(torch.full((1,), 0.01))
        self.write_scale = nn.Parameter(torch.full((1,), 0.01))

    def weights(self, streams: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "... N M"], Float[Tensor, "... N"]]:
        """scale tanh(norm(streams) weight) + bias."""
        h = self.norm(streams)
        read = self.read_scale * torch.tanh(h @ self.read_weight) + self.read_bias
        write = self.write_scale * torch.tanh(h @ self.write_weight)[..., 0] + self.write_bias
        return read, write


class NoConnection(nn.Module):
    """Past a sublayer that is absent."""

    def forward(self, streams: Float[Tensor, "B T N C"], part: Sublayer) -> Float[Tensor, "B T N C"]:
        """The streams."""
        return streams


@register("block", "hyper")
class Hyper(Block):
    """Hyper-connections: pre-norm with n residual streams, mixed as is learned. Zhu et al. 2024, arXiv:2409.19606."""

    places = frozenset({"before"})

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        *,
        n_stream: Annotated[int, "residual streams, each of width n_embd"] = 4,
        dynamic: Annotated[bool, "connections that depend on the token, not on the layer alone"] = True,
        **options: Any,
    ) -> None:
        super().__init__(shape, parts, **options)
        if n_stream < 1:
            raise ConfigError(f"model.block.n_stream must be at least 1, but is {n_stream}.")

        def connect(absent: bool, place: int) -> nn.Module:
            if absent:
                return NoConnection()
            if dynamic:
                return DynamicConnection(n_stream, place, shape.n_embd, parts.norm())
            return Connection(n_stream, place)

        self.n_stream, self.layer = n_stream, shape.layer
        self.attention_connection = connect(trait(parts.attention, "absent"), 2 * shape.layer)
        self.mlp_connection = connect(getattr(parts.mlp, "absent", False), 2 * shape.layer + 1)

    def forward(self, x: Float[Tensor, "B T C"], context: Context, cache: Any = None) -> Float[Tensor, "B T C"]:
        """The sum of the streams; a next layer of this kind goes on with the streams themselves."""
        streams = self.attention_connection(
            self._streams(x, context), lambda h: self.attend(self.attention_norms.before(h), context, cache)
        )
        streams = self.mlp_connection(streams, lambda h: self.reflect(self.mlp_norms.before(h), context))
        y = streams.sum(dim=2)
        context.shared["streams", self.layer, self.n_stream] = (y, streams)
        return y

    def _streams(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T N C"]:
        """Those that the layer before left, with equal shares of what a hook has added to their sum; else copies."""
        left = context.shared.get(("streams", self.layer - 1, self.n_stream))
        if left is None:
            return x[:, :, None].expand(-1, -1, self.n_stream, -1)
        total, streams = left
        return streams + ((x - total) / self.n_stream)[:, :, None]
