"""Adafactor: Adam's second moment kept as a row and a column, steps relative to the size of what they change.

Shazeer & Stern 2018, arXiv:1804.04235, algorithm 5 without momentum. Its falling rate is schedule=inverse_sqrt here.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gptlab import distributed
from gptlab.optimizer.rule import Group, Memory, Rule, Step, WeightDecay, must_be
from gptlab.registry import register


@register("optimizer", "adafactor")
class Adafactor(Rule):
    """Adam's second moment in the memory of a row and a column. Shazeer & Stern 2018, arXiv:1804.04235."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: Annotated[float, "peak learning rate, relative to a tensor's root mean square; 0.01 in the paper"] = 3e-2,
        power: Annotated[float, "after t steps the mean of squares keeps 1 - t^-power of itself"] = 0.8,
        clip: Annotated[float, "largest root mean square of a step, before the rate"] = 1.0,
        eps: Annotated[float, "added to squared gradients"] = 1e-30,
        least: Annotated[float, "root mean square that a smaller tensor is taken to have"] = 1e-3,
        weight_decay: WeightDecay = 0.0,
        **options: Any,
    ) -> None:
        must_be("above 0 and finite", power=power, clip=clip, eps=eps, least=least)
        settings = {"lr": lr, "power": power, "clip": clip, "eps": eps, "least": least}
        super().__init__(groups, settings, weight_decay=weight_decay, **options)

    def memory(self, p: Tensor, group: Group) -> Memory:
        """The number of steps, and the means of squares."""
        blank, steps = (torch.zeros(size, dtype=p.dtype, device=p.device) for size in (p.shape, ()))
        return {"steps": steps, **_means(blank)}

    def direction(self, p: Tensor, gradient: Tensor, memory: Memory, group: Group) -> Step:
        """rms(p) u / max(1, rms(u) / clip), where u = g / sqrt(mean square)."""
        part, p, gradient = p, distributed.whole(p), distributed.whole(gradient)  # sums are over all of a matrix
        steps = memory["steps"] + 1
        squares = _means(gradient.square() + group["eps"])
        means = {key: memory[key].lerp(square, steps ** -group["power"]) for key, square in squares.items()}
        update = gradient * _inverse_root(means)
        update = update / (_rms(update) / group["clip"]).clamp(min=1)
        return distributed.like(_rms(p).clamp(min=group["least"]) * update, part), {"steps": steps, **means}


def _means(squares: Tensor) -> Memory:
    """Of each row and each column; of a vector, its entries as they are."""
    if squares.ndim < 2:
        return {"entry": squares}
    return {"row": squares.mean(-1, keepdim=True), "column": squares.mean(-2, keepdim=True)}


def _inverse_root(means: Memory) -> Tensor:
    """1 / sqrt(row column / mean(row)), root by root: the product of two small means would be 0."""
    if "entry" in means:
        return means["entry"].rsqrt()
    return (means["row"] / means["row"].mean(-2, keepdim=True)).rsqrt() * means["column"].rsqrt()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
