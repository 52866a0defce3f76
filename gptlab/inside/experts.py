"""How a mixture of experts shares out tokens, layer by layer: the load that balancing is about. Shazeer et al. 2017.

arXiv:1701.06538; loads beside the router's weights: Fedus et al. 2021, arXiv:2101.03961.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import record
from gptlab.model import GPT


class Load(NamedTuple):
    """What each expert of a layer gets; both sum to 1, and are alike where all experts get the same."""

    layer: int
    chosen: Float[Tensor, " E"]  # of the choices, `top_k` for each token
    weights: Float[Tensor, " E"]  # of the weights that the chosen ones have


@torch.no_grad()
def loads(model: GPT, tokens: Int[Tensor, "B T"]) -> list[Load]:
    """The load of each layer whose MLP has a router."""
    with record(model, ["blocks.*.mlp.scores", "blocks.*.mlp.chosen", "blocks.*.mlp.weights"]) as seen:
        model.hidden(tokens)
    found = []
    for layer in range(len(model.blocks)):
        if f"blocks.{layer}.mlp.chosen" in seen:
            scores, chosen, weights = (seen[f"blocks.{layer}.mlp.{name}"] for name in ("scores", "chosen", "weights"))
            n_expert, chosen, weights = scores.shape[-1], chosen.flatten(), weights.flatten().double()
            counts = torch.bincount(chosen, minlength=n_expert).double()
            sums = torch.bincount(chosen, weights, minlength=n_expert)
            found.append(Load(layer, counts / counts.sum(), sums / sums.sum()))
    return found
