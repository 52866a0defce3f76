"""A short causal convolution, channel by channel: what mixes neighbours before a recurrence.

Fu et al. 2022, arXiv:2212.14052 (H3), as Mamba and gated DeltaNet use it.
"""

from __future__ import annotations

import functools
import operator

import torch
import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.errors import ConfigError


class ShortConv(nn.Module):
    """Each channel's weighted sum of its `size` newest values. Fu et al. 2022, arXiv:2212.14052."""

    def __init__(self, n_channel: int, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_channel, 1, size))  # as nn.Conv1d has it; the newest value's is last
        self.bias = nn.Parameter(torch.empty(n_channel)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """nn.Conv1d's rule for the weights, U(-1/sqrt(size), 1/sqrt(size)); biases 0."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, x: Float[Tensor, "B T F"], past: Float[Tensor, "B P F"], documents: Int[Tensor, "B S"] | None
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B P F"]]:
        """sum_i weight[i] x[t - P + i] + bias, of tokens of t's document; and the values that the next token needs."""
        n_past, n_new = past.shape[1], x.shape[1]
        values = torch.cat((past, x), dim=1)
        documents = None if documents is None else documents[:, -n_past - n_new :]
        terms: list[Tensor] = [] if self.bias is None else [self.bias]
        for i, tap in enumerate(self.weight.squeeze(1).unbind(-1)):
            term = tap * values[:, i : i + n_new]
            if documents is not None:
                term = term * (documents[:, i : i + n_new] == documents[:, n_past:])[..., None]
            terms.append(term)
        return functools.reduce(operator.add, terms), values[:, n_new:]


class NoConv(nn.Module):
    """No convolution: every token by itself. An ablation of Fu et al. 2022, arXiv:2212.14052."""

    def forward(
        self, x: Float[Tensor, "B T F"], past: Float[Tensor, "B P F"], documents: Int[Tensor, "B S"] | None
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B P F"]]:
        """Nothing is mixed, and nothing remembered."""
        return x, past


def short_conv(n_channel: int, size: int, bias: bool) -> ShortConv | NoConv:
    """The convolution of `size` tokens; of none for size 0. ConfigError below that."""
    if size < 0:
        raise ConfigError(f"model.attention.conv_size must be at least 0 (no convolution), but is {size}.")
    return ShortConv(n_channel, size, bias) if size else NoConv()
