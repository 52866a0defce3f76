"""Token embeddings: their two main directions (Pearson 1901, principal components), and who lies near whom."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.model import GPT


class Components(NamedTuple):
    """Where each token lies along the two directions of the largest variance, and the share each has of all of it."""

    places: Float[Tensor, "V 2"]
    shares: Float[Tensor, " 2"]


class Neighbours(NamedTuple):
    """The nearest other tokens of each, the nearest first, and the cosines."""

    ids: Int[Tensor, "N k"]
    cosines: Float[Tensor, "N k"]


@torch.no_grad()
def components(model: GPT) -> Components:
    """Principal components, in float64; the largest entry of a direction is positive."""
    table = model.token_embedding.weight.double()
    centred = table - table.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # of the smallest variance first
    chosen = directions[:, [-1, -2]]
    chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return Components(centred @ chosen, variances[[-1, -2]] / variances.sum())


@torch.no_grad()
def neighbours(model: GPT, ids: Int[Tensor, " N"], k: int = 5) -> Neighbours:
    """By the cosine of the angle between embeddings."""
    table = F.normalize(model.token_embedding.weight.double(), dim=-1)
    cosines = table[ids] @ table.T
    cosines[torch.arange(len(ids)), ids] = -torch.inf
    nearest = cosines.topk(min(k, len(table) - 1))
    return Neighbours(nearest.indices, nearest.values)
