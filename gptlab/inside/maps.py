"""Attention maps: how much each token takes from each. The weights of a softmax (Vaswani et al. 2017); without one, the
influence of what each token brings, by gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import edit, record
from gptlab.components.attention import trait
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.registry import label

LONGEST = 256  # tokens of which derivatives are taken
PROBES = 8  # random directions in which a token's output is looked at


class Map(NamedTuple):
    """The map of a layer. Rows (who looks) sum to 1, less what goes to a sink; columns are who is looked at."""

    layer: int
    weights: Float[Tensor, "B H T T"]
    by_softmax: bool  # else one map for all heads: shares of the influence on each token


def maps(model: GPT, tokens: Int[Tensor, "B T"]) -> list[Map]:
    """The map of each layer that has an attention."""
    with torch.no_grad(), record(model, "blocks.*.attention.weights") as seen:
        model.hidden(tokens)
    present = [layer for layer, attention in enumerate(model.attentions) if not trait(attention, "absent")]
    by_softmax = {layer: seen.get(f"blocks.{layer}.attention.weights") for layer in present}
    felt = influence(model, tokens, [layer for layer in present if by_softmax[layer] is None])
    return [
        Map(layer, felt[layer] if weights is None else weights, weights is not None)
        for layer, weights in by_softmax.items()
    ]


def influence(model: GPT, tokens: Int[Tensor, "B T"], layers: Collection[int]) -> dict[int, Float[Tensor, "B 1 T T"]]:
    """For each layer, the share that each token's input has in what moves the attention's output of each token.

    The size of d output[i] / d input[j], a matrix, is estimated by its products with a few random signs.
    """
    inputs: dict[int, Tensor] = {}

    def cut(layer: int) -> Callable[[Tensor], Tensor]:
        def leaf(x: Tensor) -> Tensor:
            inputs[layer] = x.detach().requires_grad_()
            return inputs[layer]

        return leaf

    if not layers:
        return {}
    if tokens.shape[1] > LONGEST:
        name = label("attention", model.attentions[min(layers)])
        raise ConfigError(
            f"Attention {name!r} shows no softmax, so that its map is made of {PROBES} derivatives for each token, of "
            f"{LONGEST} at most, but this text has {tokens.shape[1]}: cut it."
        )
    outputs = [f"blocks.{layer}.attention.out" for layer in layers]
    cuts = {f"blocks.{layer}.attention.in": cut(layer) for layer in layers}
    with torch.enable_grad(), edit(model, cuts), record(model, outputs, keep_grad=True) as seen:
        model.hidden(tokens)
    return {
        layer: _shares(seen[name], inputs[layer]) for layer, name in zip(layers, outputs, strict=True)
    }  # fmt: skip


def _shares(y: Float[Tensor, "B T C"], x: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 T T"]:
    """Root mean squares of d y[i] . signs / d x[j] over the probes, as shares of their sum over j."""
    generator = torch.Generator().manual_seed(0)
    signs = (2 * torch.randint(2, (PROBES, y.shape[-1]), generator=generator) - 1).to(y)
    rows = []
    for i in range(y.shape[1]):
        felt = [
            torch.autograd.grad((y[:, i] @ sign).sum(), x, retain_graph=True, materialize_grads=True)[0]
            for sign in signs
        ]
        rows.append(torch.stack(felt).square().sum((0, -1)).sqrt())
    sizes = torch.stack(rows, dim=1)
    return (sizes / sizes.sum(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny))[:, None]
