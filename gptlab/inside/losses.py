"""The loss of each token: by its place in the window, and of two models side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.data import IGNORE
from gptlab.model import GPT


class ByPosition(NamedTuple):
    """Mean loss at each place that is asked for, in nats, and its standard error; NaN where nothing is asked."""

    mean: Float[Tensor, " T"]
    error: Float[Tensor, " T"]


@torch.no_grad()
def token_losses(model: GPT, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Cross entropy of each target in nats; NaN where it is -100."""
    losses = F.cross_entropy(model(tokens).mT.double(), targets, reduction="none", ignore_index=IGNORE)
    return losses.masked_fill(targets == IGNORE, float("nan"))


def by_position(model: GPT, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> ByPosition:
    """How the loss falls with what a token has before it."""
    losses = token_losses(model, tokens, targets)
    asked = (~losses.isnan()).sum(0)
    mean = losses.nanmean(0)
    spread = (losses - mean).square().nanmean(0) / (asked - 1)
    return ByPosition(mean, spread.sqrt())


def difference(model: GPT, other: GPT, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Loss of `other` less that of `model`, token by token: above 0 where `model` knows better."""
    return token_losses(other, tokens, targets) - token_losses(model, tokens, targets)
