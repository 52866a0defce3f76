"""Latent attention: keys and values expanded from one small latent a token, all that is cached beside a rotated part.

Multi-head latent attention (MLA), DeepSeek-AI 2024, arXiv:2405.04434.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.attention.choice import KernelName
from gptlab.components.attention.heads import split
from gptlab.components.attention.planned import Planned
from gptlab.components.context import Context, KVCache
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("attention", "latent")
class Latent(Planned):
    """Multi-head latent attention: DeepSeek's low-rank keys and values. DeepSeek-AI 2024, arXiv:2405.04434.

    Checked against transformers DeepseekV3Attention.
    """

    neutral = frozenset({"kernel"})
    examples: ClassVar[dict[str, object]] = {**Planned.examples, "rope_size": 6, "latent_norm": "layernorm"}

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        q_rank: Annotated[int | None, "size of the latent of the queries; null: they have none"] = None,
        kv_rank: Annotated[int | None, "size of the latent of keys and values; null: n_embd / 4"] = None,
        nope_size: Annotated[int | None, "entries of q and k that know no position; null: n_embd / n_head"] = None,
        rope_size: Annotated[
            int | None, "entries of q and k that the position turns, of k one set for all heads; null: half nope_size"
        ] = None,
        value_size: Annotated[int | None, "entries of a head's values; null: n_embd / n_head"] = None,
        latent_norm: Annotated[str | dict[str, Any], "the norm of the latents"] = "rmsnorm",
        bias: Annotated[bool | None, "a bias in every projection; null: model.bias"] = None,
        kernel: KernelName = "auto",
        **options: Any,
    ) -> None:
        self.kernel_name = kernel  # before the base, which chooses by it
        bias = shape.bias if bias is None else bias
        kv_rank = max(1, shape.n_embd // 4) if kv_rank is None else kv_rank
        nope = shape.head_size if nope_size is None else nope_size
        rope = max(2, nope // 4 * 2) if rope_size is None else rope_size  # even: positions turn pairs
        value = shape.head_size if value_size is None else value_size
        _check(q_rank=q_rank, kv_rank=kv_rank, nope_size=nope, rope_size=rope, value_size=value)
        super().__init__(shape, position, nope + rope, **options)
        position.fit(rope)
        n_embd, n_query = shape.n_embd, shape.n_head * (nope + rope)
        make_norm = functools.partial(registry.build, "norm", latent_norm, where="model.attention.latent_norm")
        self.q: nn.Module = nn.Linear(n_embd, n_query, bias=bias)
        if q_rank is not None:
            norm = make_norm(q_rank)
            self.q = nn.Sequential(nn.Linear(n_embd, q_rank, bias=bias), norm, nn.Linear(q_rank, n_query, bias=bias))
        self.kv_down = nn.Linear(n_embd, kv_rank + rope, bias=bias)
        self.kv_norm = make_norm(kv_rank)
        self.kv_up = nn.Linear(kv_rank, shape.n_head * (nope + value), bias=bias)
        self.proj = nn.Linear(shape.n_head * value, n_embd, bias=bias)
        self.q_parts, self.down_parts, self.up_parts = (nope, rope), (kv_rank, rope), (nope, value)
        self.cached = kv_rank + rope

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """k = (up(latent), a turned part that heads share), v = up(latent); the cache holds latent and turned part."""
        q, q_turned = split(self.q(x), self.n_head).split(self.q_parts, dim=-1)
        latent, k_turned = self.kv_down(x)[:, None].split(self.down_parts, dim=-1)  # as of one head
        q_turned, k_turned = self.position.rotate(q_turned, k_turned, context.positions)
        latent, keys = self.kv_norm(latent), context.places
        if cache is not None:
            latent, k_turned, keys = cache.append(latent, k_turned, context.places)
        k, v = split(self.kv_up(latent[:, 0]), self.n_head).split(self.up_parts, dim=-1)
        k = torch.cat((k, k_turned.expand(-1, self.n_head, -1, -1)), dim=-1)
        y = self.attend(torch.cat((q, q_turned), dim=-1), k, v, context.places, keys)
        return self.proj(y.transpose(1, 2).flatten(2))


def _check(**sizes: int | None) -> None:
    """ConfigError naming the first of the sizes that is no size."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"model.attention.{name} must be at least 1, but is {size}.")
