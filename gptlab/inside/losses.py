"""The loss of each token: by its place in the window, and of two models side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.data import IGNORE
from gptlab.model import GPT

HELD = 2**24  # logits at a time


class ByPosition(NamedTuple):
    """Mean loss at each place that is asked for, in nats, and its standard error; NaN where nothing is asked."""

    mean: Float[Tensor, " T"]
    error: Float[Tensor, " T"]


@torch.no_grad()
def token_losses(model: GPT, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Cross entropy of each target in nats; NaN where it is -100. Logits of a part of the rows are held at a time."""
    n_rows = max(1, HELD // (tokens.shape[1] * model.token_embedding.num_embeddings))
    losses = torch.cat(
        [
            F.cross_entropy(model(some).mT.double(), asked, reduction="none", ignore_index=IGNORE)
            for some, asked in zip(tokens.split(n_rows), targets.split(n_rows), strict=True)
        ]
    )
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
