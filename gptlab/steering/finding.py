"""Where texts of two sorts part in the residual stream: by their means, or by what differences of pairs share.

Rimsky et al. 2023, arXiv:2312.06681; Zou et al. 2023, arXiv:2310.01405.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab import activations
from gptlab.data import IGNORE
from gptlab.errors import DataError
from gptlab.model import GPT
from gptlab.seeds import seed_of
from gptlab.steering.direction import Direction, Vectors, point
from gptlab.steering.passages import Passages, batches

Rule = Callable[[Tensor, Tensor], Tensor]  # (N, C) of positive and (N, C) of negative passages -> (C,)


def mean_difference(positive: Float[Tensor, "N C"], negative: Float[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """From the mean of the negative passages to that of the positive ones."""
    return positive.mean(0) - negative.mean(0)


def first_component(positive: Float[Tensor, "N C"], negative: Float[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """The first principal component, about 0, of the differences of pairs, turned towards the positive passages."""
    apart = positive - negative
    strengths, axes = torch.linalg.svd(apart, full_matrices=False)[1:]
    leading = strengths[0] * axes[0]
    return leading if apart.mean(0) @ leading >= 0 else -leading


RULES: dict[str, Rule] = {"mean": mean_difference, "pca": first_component}


@dataclass(frozen=True)
class Stream:
    """The residual stream after a layer: its mean over each passage, and the mean norm of all tokens."""

    layer: int
    positive: Float[Tensor, "N C"]
    negative: Float[Tensor, "N C"]
    norm: float

    def direction(self, rule: Rule) -> Direction:
        """The direction between the two sorts of passages. DataError where they do not differ."""
        return Direction(_unit(rule(self.positive, self.negative)), self.norm, self.layer)

    def shuffled(self, rule: Rule, seed: int) -> Float[Tensor, " C"]:
        """A unit vector found as `direction` is, between two sets that hold equally many of both sorts."""
        generator, n = torch.Generator().manual_seed(seed_of(seed, "shuffled labels")), len(self.positive)
        mixed = [rows[torch.randperm(n, generator=generator)] for rows in (self.positive, self.negative)]
        return _unit(rule(*(torch.cat([rows[half::2] for rows in mixed]) for half in (0, 1))))


def _unit(vector: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    if not float(vector.norm()) > 0:
        raise DataError("Two texts must differ to have a direction, but this model's residual stream is equal on both.")
    return vector / vector.norm()


@torch.no_grad()
def look(model: GPT, passages: Passages, layers: Iterable[int], batch: int) -> dict[int, Stream]:
    """What the residual stream after each of the layers is like on the passages."""
    places = list(layers)
    both = [_look(model, texts, places, batch) for texts in (passages.positive, passages.negative)]
    (positive, ours), (negative, theirs) = both
    norms = {layer: torch.cat((ours[layer], theirs[layer])).mean().item() for layer in places}
    return {layer: Stream(layer, positive[layer], negative[layer], norms[layer]) for layer in places}


def _look(
    model: GPT, passages: Sequence[Tensor], layers: Sequence[int], batch: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """By layer, the mean over each passage, (N, C), and the norm of every token, in float64."""
    device = next(model.parameters()).device
    means: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with activations.record(model, [point(layer) for layer in layers]) as seen:
        for tokens, targets in batches(passages, batch):
            model.hidden(tokens.to(device))
            real = targets != IGNORE
            for layer in layers:
                x = seen[point(layer)].cpu().double()
                means[layer].append((x * real[..., None]).sum(1) / real.sum(1, keepdim=True))
                norms[layer].append(x.norm(dim=-1)[real])
    return {at: torch.cat(rows) for at, rows in means.items()}, {at: torch.cat(rows) for at, rows in norms.items()}


def shuffled_like(vectors: Vectors, streams: Mapping[int, Stream], rule: Rule, seed: int) -> Vectors:
    """Vectors of the same norms that are found from labels without meaning."""
    return {layer: vector.norm() * streams[layer].shuffled(rule, seed) for layer, vector in vectors.items()}
