"""The logit lens: what the head would say at each depth, were the stream read there. nostalgebraist 2020."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import record
from gptlab.model import GPT


class Lens(NamedTuple):
    """The logits at each depth: after the embedding, and after each layer; the last are the model's own."""

    rows: list[str]
    logits: Float[Tensor, "R B T V"]

    @property
    def surprise(self) -> Float[Tensor, "R B T"]:
        """How far each depth is from what the model says in the end: KL(last, depth) in nats."""
        logs = self.logits.float().log_softmax(-1)
        return (logs[-1].exp() * (logs[-1] - logs)).sum(-1)


@torch.no_grad()
def lens(model: GPT, tokens: Int[Tensor, "B T"]) -> Lens:
    """The final norm and the head on the residual stream at every depth."""
    points = depths(model)
    with record(model, points) as seen:
        model.hidden(tokens)
    return Lens(points, torch.stack([model.logits(model.norm(seen[point])) for point in points]))


def depths(model: GPT) -> list[str]:
    """The points of the residual stream, from the embedding to what the last layer gives."""
    return ["embedding", *(f"blocks.{layer}.out" for layer in range(len(model.blocks)))]
