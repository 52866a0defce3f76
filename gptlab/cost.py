"""What a model costs: FLOPs per token, counted operation by operation on a model without storage."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from gptlab.config import ModelConfig
from gptlab.model import GPT


def flops_per_token(config: ModelConfig) -> float:
    """FLOPs of one training token, forward and backward, at the full context.

    A product of an (m, k) and a (k, n) matrix counts 2mkn; scores hidden by the causal mask count like any other.
    """
    with torch.device("meta"):
        model = GPT(config)
        tokens = torch.zeros(1, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss, _ = model.loss(tokens, tokens)
        loss.backward()
    return counter.get_total_flops() / config.block_size
