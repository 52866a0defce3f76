"""How good a model is on a text: one full deterministic pass over fixed windows, nats per token, bits per byte."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from gptlab.data import windows
from gptlab.model import GPT


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: np.ndarray[Any, Any],
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
) -> float:
    """Mean cross entropy in nats per token. Every token but the first is scored once, in windows of block_size.

    The model comes back in the mode, training or not, that it came in.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    with autocast or nullcontext():
        for x, y in windows(tokens, block_size=model.config.block_size, batch_size=batch_size):
            total += model.loss(x.to(device), y.to(device))[0].to(total)
    model.train(training)
    return total.item() / (len(tokens) - 1)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The loss in bits per byte of text: comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
