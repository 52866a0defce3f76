"""How many tokens each pair of a rotary encoding takes to turn once, by the encoding's own table. Su et al. 2021."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab import registry
from gptlab.components.position.rotary import Rotary
from gptlab.errors import ConfigError
from gptlab.model import GPT


class Waves(NamedTuple):
    """The wavelengths of one position encoding, in tokens, pair by pair."""

    position: str
    layers: list[int]
    lengths: Float[Tensor, " pairs"]


@torch.no_grad()
def wavelengths(model: GPT) -> list[Waves]:
    """One entry for each rotary encoding that layers of a model call. ConfigError where there is none."""
    found: dict[tuple[int, int], Waves] = {}
    for layer, sizes in enumerate(_rotated(model)):
        for position, size in sizes:
            name = registry.label("position", position)
            frequencies = position.frequencies(position.n_turned(size), model.token_embedding.weight.device)
            waves = Waves(name, [], 2 * math.pi / frequencies)
            found.setdefault((id(position), size), waves).layers.append(layer)
    if not found:
        name = registry.label("position", model.position)
        raise ConfigError(
            f"Position {name!r} is no rotary encoding that a layer calls, so nothing turns: look at a run with rope."
        )
    return list(found.values())


def _rotated(model: GPT) -> list[list[tuple[Rotary, int]]]:
    """For each layer, the rotary encodings that it calls and the size of the heads that it hands them: seen in a pass.

    An attention may turn a part of a head alone.
    """
    calls: list[list[tuple[Rotary, int]]] = []

    def heard(position: Rotary) -> Any:
        def rotate(q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            calls[-1].append((position, q.shape[-1]))
            return type(position).rotate(position, q, k, positions)

        return rotate

    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.register_forward_pre_hook(lambda *_: calls.append([])).remove)
        for position in (module for module in model.modules() if isinstance(module, Rotary)):
            vars(position)["rotate"] = heard(position)
            stack.callback(vars(position).pop, "rotate")
        model.hidden(torch.zeros(1, 1, dtype=torch.long, device=model.token_embedding.weight.device))
    return calls
