"""Whether numbers grow too large: the largest attention logit of each head, and the size of the stream by depth.

Dehghani et al. 2023, arXiv:2302.05442 (large logits saturate a softmax); Wortsman et al. 2023, arXiv:2309.14322.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import record
from gptlab.inside.lens import depths
from gptlab.model import GPT


class Stability(NamedTuple):
    """Of one pass: root mean squares of the stream's entries, and largest scores before the softmax, by layer."""

    rows: list[str]
    rms: Float[Tensor, " R"]
    largest: dict[int, Float[Tensor, " H"]]


@torch.no_grad()
def stability(model: GPT, tokens: Int[Tensor, "B T"]) -> Stability:
    """Layers without a softmax have no scores, and are left out of `largest`."""
    points = depths(model)
    with record(model, [*points, "blocks.*.attention.scores"]) as seen:
        model.hidden(tokens)
    rms = torch.stack([seen[point].double().square().mean().sqrt() for point in points])
    scores = {layer: seen.get(f"blocks.{layer}.attention.scores") for layer in range(len(model.blocks))}
    largest = {layer: each.amax((0, 2, 3)) for layer, each in scores.items() if each is not None}
    return Stability(points, rms, largest)
