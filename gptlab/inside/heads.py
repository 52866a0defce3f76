"""What heads do on random tokens that come twice: look at the previous one, at the duplicate, or behind the duplicate.

Olsson et al. 2022, arXiv:2209.11895 (induction heads); Elhage et al. 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from gptlab.errors import ConfigError
from gptlab.inside.maps import maps
from gptlab.model import GPT

LONGEST = 32  # tokens that come twice
FOUND = 0.4  # mean weight from which a head is taken to do it


class Head(NamedTuple):
    """The mean weight that a head has for each of three places."""

    layer: int
    head: int
    previous: float  # the token before
    duplicate: float  # where the same token was before; half of all where a head looks at itself alike
    induction: float  # the token after that

    @property
    def does(self) -> list[str]:
        """What the head is found to do."""
        return [what for what in KINDS if getattr(self, what) >= FOUND]


KINDS = ("previous", "duplicate", "induction")


def detect(model: GPT, *, n_rows: int = 8, seed: int = 0) -> list[Head]:
    """The scores of every head, or of every map where a layer has no softmax."""
    tokens = repeated(model, n_rows, seed)
    n = tokens.shape[1] // 2
    found = []
    for layer, weights, _ in maps(model, tokens):
        mean = weights.mean(0)
        before, same, after = (mean.diagonal(-back, dim1=-2, dim2=-1) for back in (1, n, n - 1))
        scores = torch.stack((before.mean(-1), same.mean(-1), after[:, 1:].mean(-1)), dim=-1)
        found += [Head(layer, head, *row) for head, row in enumerate(scores.tolist())]
    return found


def repeated(model: GPT, n_rows: int, seed: int) -> Int[Tensor, "B T"]:
    """Rows of different random tokens, as many as fit twice into block_size, and the same again."""
    ends = (model.config.separator, model.config.source_end)  # which change what the others see
    ids = [i for i in range(model.token_embedding.num_embeddings) if i not in ends]
    n = min(len(ids), model.config.block_size // 2, LONGEST)
    if n < 2:
        raise ConfigError(f"Heads are told apart by 2 tokens or more that come twice, but {n} fit: train with more.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(len(ids), generator=generator)[:n] for _ in range(n_rows)])
    half = torch.tensor(ids)[drawn].to(model.token_embedding.weight.device)
    return torch.cat((half, half), dim=1)
