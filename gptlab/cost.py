"""What a model costs: parameters, FLOPs per token, and bytes of cache per token, counted on a model without storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gptlab.components.context import Encoded
from gptlab.config import ModelConfig
from gptlab.model import GPT

BYTES = 2  # of a number in a cache, in bf16


@dataclass(frozen=True)
class Costs:
    """Parameters, FLOPs of one training token at the full context, and cached bytes for each token seen, in bf16."""

    parameters: int
    flops_per_token: float
    cache_bytes_per_token: float


def count(config: ModelConfig) -> Costs:
    """All three, for a model that is built without storage."""
    model = _without_storage(config)
    return Costs(model.n_parameters(), flops_per_token(config), BYTES * sum(cached_per_token(model)))


def flops_per_token(config: ModelConfig) -> float:
    """FLOPs of one training token, forward and backward, at the full context.

    A product of an (m, k) and a (k, n) matrix counts 2mkn; scores hidden by the causal mask count like any other.
    """
    model = _without_storage(config)
    tokens = torch.zeros(1, config.block_size, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens)[0].backward()
    return counter.get_total_flops() / config.block_size


def _without_storage(config: ModelConfig) -> GPT:
    """The model; where a part looks at what an encoder put out, that is as long as the context."""
    with torch.device("meta"):
        model = GPT(config)
        if model.reads_memory:
            model.memory = Encoded(torch.zeros(1, config.block_size, config.n_embd))
    return model


@torch.no_grad()
def cached_per_token(model: GPT) -> list[float]:
    """For each layer, how many numbers its memory has more for each token that it may hold."""
    device = next(model.parameters()).device
    sizes = []
    for n_tokens in (3, 5):  # a memory is made for as many as it may hold
        cache = model.new_cache(1, n_tokens)
        model(torch.zeros(1, n_tokens, dtype=torch.long, device=device), cache)
        sizes.append([sum(t.numel() for t in _tensors(memory) if t.is_floating_point()) for memory in cache.layers])
    return [(later - early) / 2 for early, later in zip(*sizes, strict=True)]


def _tensors(memory: Any) -> Iterator[Tensor]:
    """Every tensor that a memory holds, in attributes, lists, tuples and dictionaries."""
    if isinstance(memory, Tensor):
        yield memory
        return
    parts = memory if isinstance(memory, list | tuple) else getattr(memory, "__dict__", {}).values()
    for part in memory.values() if isinstance(memory, dict) else parts:
        yield from _tensors(part)
