"""How a router is kept from sending all tokens to a few experts: not at all, by a loss, or by a bias that moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptlab.components.context import Context
from gptlab.distributed import total
from gptlab.errors import ConfigError


class Balance(nn.Module):
    """No balancing: loads are logged alone. The largest and the smallest are 1 when all experts get the same."""

    rate: float | None = None  # a good one; None: there is nothing to be fast or slow

    def __init__(self, n_expert: int, rate: float | None) -> None:
        super().__init__()
        if rate is not None and (self.rate is None or rate <= 0):
            raise ConfigError(
                f"model.mlp.balance_rate must be above 0, and set with balance=loss or bias alone, but is {rate}."
            )
        self.rate = self.rate if rate is None else rate
        self.n_expert = n_expert

    def prefer(self, scores: Float[Tensor, "*N E"]) -> Float[Tensor, "*N E"]:
        """What the choice of experts is made by."""
        return scores

    def watch(self, scores: Float[Tensor, "N E"], counts: Int[Tensor, " E"], context: Context) -> None:
        """See how many tokens chose each expert."""
        load = counts.to(scores.dtype) / counts.sum() * self.n_expert
        _merge(context.metrics, "moe/max_load", load.max(), torch.maximum)
        _merge(context.metrics, "moe/min_load", load.min(), torch.minimum)


class LossBalance(Balance):
    """rate * E * sum over experts of (share of tokens) * (mean probability), added to the training loss.

    Fedus et al. 2021 (Switch), arXiv:2101.03961, for top-k as in Mixtral: shares sum to k, so the least is rate * k.
    """

    rate = 0.01

    def watch(self, scores: Float[Tensor, "N E"], counts: Int[Tensor, " E"], context: Context) -> None:
        """Add the loss of this layer."""
        super().watch(scores, counts, context)
        probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
        share = counts.to(scores.dtype) / len(scores)
        _merge(context.losses, "balance", self.rate * self.n_expert * (share * probability).sum(), torch.add)


class BiasBalance(Balance):
    """A bias on the scores, for choosing alone, that falls where too many tokens came. Wang et al. 2024.

    arXiv:2408.15664. Tokens are counted in training, and `after_step` moves the bias by the rate.
    """

    rate = 0.001

    def __init__(self, n_expert: int, rate: float | None) -> None:
        super().__init__(n_expert, rate)
        self.bias: Tensor
        self.counts: Tensor
        self.register_buffer("bias", torch.zeros(n_expert))
        self.register_buffer("counts", torch.zeros(n_expert, dtype=torch.long), persistent=False)

    def prefer(self, scores: Float[Tensor, "*N E"]) -> Float[Tensor, "*N E"]:
        """Scores and the bias."""
        return scores + self.bias

    def watch(self, scores: Float[Tensor, "N E"], counts: Int[Tensor, " E"], context: Context) -> None:
        """Count what each expert got in training."""
        super().watch(scores, counts, context)
        if self.training:
            self.counts.add_(counts)

    @torch.no_grad()
    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """Raise the bias of experts that got less than the mean since the last step, if it was taken; lower others."""
        load = total(self.counts).to(self.bias.dtype)
        self.bias += self.rate * taken * torch.sign(load.mean() - load)
        self.counts.zero_()


BALANCES: dict[str, type[Balance]] = {"none": Balance, "loss": LossBalance, "bias": BiasBalance}


def _merge(found: dict[str, Tensor], name: str, value: Tensor, merge: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One entry for all layers."""
    found[name] = merge(found[name], value) if name in found else value
