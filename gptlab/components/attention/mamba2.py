"""Mamba-2: a state that decays by an amount each token chooses, computed in chunks (SSD); linear in time.

Dao & Gu 2024, arXiv:2405.21060. In the paper it stands for attention and MLP at once: give it model/mlp=none.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.attention.short_conv import short_conv
from gptlab.components.attention.state_space import (
    Memory,
    TimeStep,
    heads,
    side_by_side,
    ssd,
)
from gptlab.components.context import Context
from gptlab.components.position import Position
from gptlab.components.precision import without_autocast
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "mamba2")
class Mamba2(Attention):
    """Selective state space with scalar decay (SSD); meant for mlp none. Dao & Gu 2024, arXiv:2405.21060.

    Checked against transformers Mamba2Mixer and Mamba2ForCausalLM.
    """

    honours = frozenset()
    separates_documents = True
    cached = 0
    examples: ClassVar[dict[str, object]] = {"eps": 0.1}

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        state_size: Annotated[int, "numbers that the state keeps for each channel"] = 128,
        expand: Annotated[float, "inner width over n_embd"] = 2.0,
        head_size: Annotated[int | None, "channels that decay alike; null: n_embd / n_head"] = None,
        n_group: Annotated[int, "groups of heads, each with keys and queries (B and C) of its own"] = 1,
        conv_size: Annotated[int, "tokens that the convolution of x, B, C sees, itself included; 0: none"] = 4,
        bias: Annotated[bool | None, "a bias in the two projections; null: model.bias"] = None,
        eps: Annotated[float, "added to the mean square in the norm of the output"] = 1e-5,
    ) -> None:
        super().__init__(shape, position)
        bias = shape.bias if bias is None else bias
        head_size = shape.head_size if head_size is None else head_size
        inner = round(expand * shape.n_embd)
        _check(inner, head_size, n_group, state_size)
        n_head = inner // head_size
        self.n_group, self.state_size, self.conv_size = n_group, state_size, conv_size
        self.sizes = (inner, n_group * state_size, n_group * state_size)
        self.in_proj = nn.Linear(shape.n_embd, inner + sum(self.sizes) + n_head, bias=bias)
        self.conv = short_conv(sum(self.sizes), conv_size, bias=True)
        self.step = TimeStep(n_head)
        self.D = nn.Parameter(torch.ones(n_head))
        self.norm = GroupedRMSNorm(inner, n_group, eps)
        self.proj = nn.Linear(inner, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Memory | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(norm((y + D v) * silu(z))), where the state keeps dt v under the key B and y reads it by the query C."""
        memory = cache or self.new_cache(x.shape[0], 0)
        documents = memory.with_past(context.documents)
        z, vkq, dt = self.in_proj(x).split((self.sizes[0], sum(self.sizes), len(self.D)), dim=-1)
        vkq, memory.window = self.conv(vkq, memory.window, documents)
        v, k, q = F.silu(vkq).to(memory.state.dtype).split(self.sizes, dim=-1)
        k, q = (heads(part, self.n_group, 1) for part in (k, q))
        n_shared = len(self.D) // self.n_group
        v = v.unflatten(-1, (len(self.D), -1))
        dt, log_decay = (part.to(v.dtype) for part in self.step(dt))
        with without_autocast(x.device):  # a state that is rounded at every chunk forgets
            y, memory.state = ssd(
                q,
                k,
                heads((dt[..., None] * v).flatten(2), self.n_group, n_shared),
                heads(log_decay, self.n_group, n_shared),
                memory.state,
                documents,
            )
        y = side_by_side(y) + (self.D[:, None] * v).flatten(2)
        return self.proj(self.norm(y.to(x.dtype) * F.silu(z)))

    def new_cache(self, batch_size: int, max_len: int) -> Memory:
        """A window and a state of zeros; neither grows."""
        n_shared, head_size = len(self.D) // self.n_group, self.sizes[0] // len(self.D)
        window = self.D.new_zeros(batch_size, max(0, self.conv_size - 1), sum(self.sizes))
        sizes = (batch_size, self.n_group, n_shared, self.state_size, head_size)
        return Memory(window, self.D.new_zeros(sizes, dtype=torch.promote_types(self.D.dtype, torch.float32)))


class GroupedRMSNorm(nn.Module):
    """RMSNorm over each group's share of the channels, with a gain for every channel. Dao & Gu 2024."""

    def __init__(self, size: int, n_group: int, eps: float) -> None:
        super().__init__()
        self.n_group, self.eps = n_group, eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "B T F"]) -> Float[Tensor, "B T F"]:
        """Each group over its root mean square, times the gains."""
        groups = x.unflatten(-1, (self.n_group, -1))
        return self.weight * F.rms_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)


def _check(inner: int, head_size: int, n_group: int, state_size: int) -> None:
    """The rules that a type alone does not say."""
    if head_size < 1 or inner < 1 or inner % head_size:
        raise ConfigError(f"head_size must divide expand * n_embd, but {head_size} does not divide {inner}.")
    if n_group < 1 or (inner // head_size) % n_group:
        raise ConfigError(f"n_group must divide the {inner // head_size} heads, but {n_group} does not.")
    if state_size < 1:
        raise ConfigError(f"model.attention.state_size must be at least 1, but is {state_size}.")
