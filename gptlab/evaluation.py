"""How good a model is on a text: one full deterministic pass over fixed windows, nats per token, bits per byte."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from gptlab import distributed
from gptlab.components.attention import trait
from gptlab.config import require
from gptlab.data import IGNORE, windows
from gptlab.model import GPT


def require_order(model: GPT) -> None:
    """ConfigError where tokens see later ones: the loss of a text would be of what has been seen already."""
    odd = next((seen for a in model.attentions if (seen := trait(a, "causal")) is not True), True)
    require(
        odd is True,
        f"A text is scored by what each token says of the next, which model.attention.causal={str(odd).lower()} lets "
        "it see: ask in pairs, `gptlab sample RUN --prompt SOURCE`.",
    )


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: np.ndarray[Any, Any],
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
) -> float:
    """Mean cross entropy in nats per token. Every token but the first is scored once, in windows of block_size.

    Ranks share the windows, and all get the result. The model comes back in the mode, training or not, that it came in.
    """
    require_order(model)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    with autocast or nullcontext():
        batches = windows(tokens, block_size=model.config.block_size, batch_size=batch_size)
        for (x, y), counts in distributed.dealt(batches):
            total += model.loss(x.to(device), y.to(device))[0].to(total) * counts
    model.train(training)
    return distributed.total(total).item() / (len(tokens) - 1)


@dataclass(frozen=True)
class Answers:
    """How questions were answered: by the likeliest symbol at each place that is asked for, given what came before."""

    loss: float  # nats per place
    accuracy: float  # share of the places that are right
    solved: float  # share of the questions whose places are all right: those that decoding greedily would solve
    guesses: Int[Tensor, "B T"]


@torch.no_grad()
def answer(
    model: GPT,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
) -> Answers:
    """Answer questions, asked for where `targets` is not -100. The model comes back in the mode that it came in."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    total, guessed = torch.zeros((), dtype=torch.float64), torch.zeros_like(targets)
    with autocast or nullcontext():
        for places, counts in distributed.dealt(torch.arange(len(inputs)).split(batch_size)):
            logits = model(inputs[places].to(device)).float()
            loss = F.cross_entropy(logits.flatten(0, 1), targets[places].to(device).flatten(), reduction="sum")
            total += loss.cpu().double() * counts
            guessed[places] += logits.argmax(-1).cpu() * counts
    model.train(training)
    total, guessed, asked = distributed.total(total), distributed.total(guessed), targets != IGNORE
    right, n_asked = (guessed == targets), int(asked.sum())
    solved = (right | ~asked).all(dim=1).double().mean().item()
    return Answers(total.item() / n_asked, int(right.sum()) / n_asked, solved, guessed)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The loss in bits per byte of text: comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
