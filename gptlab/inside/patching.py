"""Activation patching: one text's activation put into another's, place by place; where it decides, the answer turns.

Meng et al. 2022, arXiv:2202.05262 (causal tracing); Wang et al. 2022, arXiv:2211.00593.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import OF_SOFTMAX, edit, record
from gptlab.errors import ConfigError
from gptlab.model import GPT

LONGEST = 128  # tokens: what is kept of a model grows with their square


class Patched(NamedTuple):
    """What is measured is logit[right] - logit[wrong] of the next token."""

    rows: list[str]
    moved: Float[Tensor, "R T"]  # what each place moves it by, in the corrupted text
    clean: float
    corrupted: float

    @property
    def restored(self) -> Float[Tensor, "R T"]:
        """The share of the way from corrupted to clean. ConfigError where the two are the same."""
        if self.clean == self.corrupted:
            raise ConfigError("Both texts make the answers equally likely, so nothing can be restored: change one.")
        return self.moved / (self.clean - self.corrupted)


@torch.no_grad()
def patch(
    model: GPT, clean: Int[Tensor, " T"], corrupted: Int[Tensor, " T"], right: int, wrong: int, point: str = "out"
) -> Patched:
    """Row by row of the stream (or another point of blocks, (B, T, ...)), token by token: all tokens in one batch.

    ConfigError for texts of different lengths, and for points of heads.
    """
    n_tokens = len(clean)
    if point.removeprefix("attention.") in OF_SOFTMAX:
        raise ConfigError(f"Patching goes from token to token, but {point} is of heads first: choose out or mlp.out.")
    if n_tokens > LONGEST:
        raise ConfigError(
            f"Patching goes through a text once a token, so {LONGEST} are the most, not {n_tokens}: cut it."
        )
    if len(corrupted) != n_tokens:
        raise ConfigError(
            f"What one token gets is put in the place of another's, so both texts must have as many tokens, but have "
            f"{n_tokens} and {len(corrupted)}: lengthen one."
        )
    rows = [f"blocks.{layer}.{point}" for layer in range(len(model.blocks))]
    rows = ["embedding", *rows] if point == "out" else rows
    each = torch.arange(n_tokens, device=clean.device)

    def measured(tokens: Tensor) -> Float[Tensor, " T"]:
        """Once for each place: what a matrix product rounds may depend on the row of a batch."""
        logits = model(tokens.expand(n_tokens, -1), last=True)[:, 0]
        return logits[:, right] - logits[:, wrong]

    with record(model, rows) as kept:
        cleanly = measured(clean)
    corruptly, moved = measured(corrupted), []
    for row in rows:

        def put(x: Tensor, kept: Tensor = kept[row]) -> Tensor:
            x = x.clone()
            x[each, each] = kept[each, each]
            return x

        with edit(model, {row: put}):
            moved.append(measured(corrupted) - corruptly)
    return Patched(rows, torch.stack(moved), float(cleanly[0]), float(corruptly[0]))
