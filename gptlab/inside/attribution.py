"""Direct logit attribution: the residual stream is a sum of what parts wrote, so a logit is a sum of what they gave it.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the final norm is held at its scale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.activations import record
from gptlab.model import GPT

CLOSE = 1e-4  # of the largest entry: what two sums of the same numbers may differ by


class Attribution(NamedTuple):
    """What each piece of the stream gives to a logit, less the mean of all logits or another one; before a softcap."""

    names: list[str]
    pieces: Float[Tensor, "P B T C"]  # they sum to the stream that the final norm reads
    given: Float[Tensor, "P B T"]  # they and `rest` sum to the logit
    rest: Float[Tensor, "B T"]  # what biases of final norm and head give


def attribute(
    model: GPT, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], against: Int[Tensor, "B T"] | None = None
) -> Attribution:
    """The logit of each target in pieces; `against`, the tokens whose logits are taken away in place of the mean."""
    found = pieces_of(model, tokens)
    pieces = torch.stack(list(found.values()))
    stream = pieces.sum(0)
    x = torch.zeros_like(stream, dtype=next(model.parameters()).dtype, requires_grad=True)
    with torch.enable_grad():
        scores = model.logit_scale(model.head(model.head_proj(x)))
        other = scores.mean(-1) if against is None else _at(scores, against)
        logit = _at(scores, targets) - other
        direction = torch.autograd.grad(logit.sum(), x)[0].double()
    held, added = _hold(model.norm, stream)
    given = torch.stack([(held(piece) * direction).sum(-1) for piece in pieces])
    return Attribution(list(found), pieces, given, (added * direction).sum(-1) + logit.detach().double())


@torch.no_grad()
def pieces_of(model: GPT, tokens: Int[Tensor, "B T"]) -> dict[str, Float[Tensor, "B T C"]]:
    """What the embedding and each part wrote, in float64: their sum is the stream after the last layer.

    Attentions in heads where their layer `proj` writes. A block that does not just add (post-norm, streams) is one
    piece: the difference that it made.
    """
    with record(model, ["embedding", "blocks.*.in", "blocks.*.out", "blocks.*.added", "blocks.*.heads"]) as seen:
        model.hidden(tokens)
    found = {"embedding": seen["embedding"]}
    for layer, block in enumerate(model.blocks):
        mine = f"blocks.{layer}."
        here = {name.removeprefix(mine): tensor for name, tensor in seen.items() if name.startswith(mine)}
        before, after = here["in"], here["out"]
        parts = {
            part: here.get(f"{part}.added", here[f"{part}.out"])
            for part in ("attention", "mlp")
            if f"{part}.out" in here and not getattr(getattr(block, part), "absent", False)
        }
        if not _close(before + sum(parts.values()), after):
            found[f"{layer} block"] = after - before
            continue
        for part, added in parts.items():
            pieces = _heads(block, here, added) if part == "attention" else {part: added}
            found |= {f"{layer} {name}": piece for name, piece in pieces.items()}
    return {name: piece.double() for name, piece in found.items()}


def _heads(block: Any, here: Mapping[str, Tensor], added: Float[Tensor, "B T C"]) -> dict[str, Tensor]:
    """What an attention added, by heads where that can be; else whole."""
    attention, gain = block.attention, getattr(block, "attention_gain", nn.Identity())
    proj, heads = getattr(attention, "proj", None), here.get("attention.heads")
    n_head = getattr(attention, "n_head", 1) // getattr(attention, "maps", 1)
    if isinstance(proj, nn.Linear) and heads is not None and heads.shape[-1] % n_head == 0:
        weights = proj.weight.unflatten(1, (n_head, -1))
        each = gain(torch.einsum("bthe,che->hbtc", heads.unflatten(-1, (n_head, -1)), weights))
        pieces = {f"head {head}": piece for head, piece in enumerate(each)} if n_head > 1 else {"attention": each[0]}
        if proj.bias is not None:
            pieces["bias"] = gain(proj.bias.expand_as(added))
        if _close(sum(pieces.values(), torch.zeros_like(added)), added):
            return pieces
    return {"attention": added}


def _hold(norm: nn.Module, stream: Float[Tensor, "B T C"]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A norm as the linear map that it is with the scales it has at `stream`, and what it adds to that."""
    norm = copy.deepcopy(norm).double().requires_grad_(False)
    added = norm(torch.zeros_like(stream))
    centres = _close(norm(stream + stream.abs().max()), norm(stream))  # as LayerNorm, which takes the mean away
    given = _centred(stream) if centres else stream
    given = torch.where(given == 0, 1e-9, given)  # what is 0 in sum has pieces too
    scales = (norm(given) - added) / given
    return lambda piece: scales * (_centred(piece) if centres else piece), added


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _at(scores: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return scores.gather(-1, ids[..., None])[..., 0]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())
