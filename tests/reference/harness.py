"""A gptlab model and one of transformers with the same random weights, and how far apart what they say is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from gptlab import ModelConfig
from gptlab.model import GPT
from gptlab.weights.table import Link, Row, links, read

N_VOCAB, N_TOKENS, BLOCK_SIZE = 61, 24, 16  # the text is longer than what gptlab is told
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # of the defaults' vocabularies
CLOSE = 2e-5  # relative to the largest logit, in float32
CLOSE_SLOPE = 5e-5  # rounding goes through a gradient twice; the farthest, qwen3_next, was seen at 1.3e-5


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture: the model of transformers, the options that make ours the same, and the table of names."""

    name: str
    theirs: str  # the class in transformers
    settings: Mapping[str, Any]  # of its configuration
    ours: Mapping[str, Any]  # of ours
    table: tuple[Row, ...]
    kernels: tuple[str | None, ...] = ("math", "sdpa", "flex")  # that can do it; None: it has no choice of kernels
    implementations: tuple[str, ...] = ("eager", "sdpa")  # of the reference that are right, the one compared with first
    cache: str | None = "past_key_values"  # the reference's name for its memory; None: it has none

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Reference:
    """A model of transformers with random weights, its tensors, a text, and its logits."""

    model: Any
    tensors: dict[str, Tensor]
    tokens: Tensor
    logits: Tensor


@functools.cache
def reference(family: Family, implementation: str | None = None) -> Reference:
    """The reference of a family. Every parameter and stored buffer is moved, so that no one or zero hides a fault."""
    theirs = getattr(transformers, family.theirs)
    config = theirs.config_class(vocab_size=N_VOCAB, **NO_TOKENS, **family.settings)
    torch.manual_seed(0)
    model = theirs._from_config(config, attn_implementation=implementation or family.implementations[0])
    model.float().eval()
    first: dict[int, tuple[str, Tensor]] = {}  # a tied tensor has several names
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    for _, tensor in first.values():
        tensor.data += torch.randn(tensor.shape) * (tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.3)
    tokens = torch.randint(0, N_VOCAB, (2, N_TOKENS))
    with torch.no_grad():
        return Reference(model, dict(first.values()), tokens, model(tokens).logits)


@functools.cache
def build(family: Family, kernel: str | None) -> GPT:
    """Our model with the reference's weights, on a kernel."""
    model = GPT(config_of(family, kernel)).eval()
    model.load_tensors(read(links_of(family, model), reference(family).tensors, model.tensors()))
    return model


def config_of(family: Family, kernel: str | None) -> ModelConfig:
    """Our model's options, on a kernel."""
    options = {"vocab_size": N_VOCAB, "block_size": BLOCK_SIZE, **family.ours}
    if kernel is not None:
        options["attention"] = {"name": "softmax", **options.get("attention", {}), "kernel": kernel}
    return ModelConfig(**options)


def links_of(family: Family, model: GPT) -> list[Link]:
    """The family's table, for the tensors of this model."""
    return links(family.table, model.tensors())


@torch.no_grad()
def their_logits_in_steps(model: Any, tokens: Tensor, cache: str) -> Tensor:
    """Half of the tokens, then one by one, from the memory of those before."""
    n_first = tokens.shape[1] // 2
    pieces = tokens.split([n_first] + [1] * (tokens.shape[1] - n_first), dim=1)
    logits, memory = [], {}
    for piece in pieces:
        said = model(piece, use_cache=True, **memory)
        logits.append(said.logits)
        memory = {cache: said[cache]}
    return torch.cat(logits, dim=1)


@torch.no_grad()
def our_logits_in_pieces(model: GPT, tokens: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Pieces of these sizes, each from the cache of those before."""
    cache = model.new_cache(tokens.shape[0], tokens.shape[1])
    return torch.cat([model(piece, cache) for piece in tokens.split(sizes, dim=1)], dim=1)


def gradients(loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a loss, in the `tensors` that learn."""
    learning = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    return dict(zip(learning, torch.autograd.grad(loss, learning.values(), materialize_grads=True), strict=True))


def distance(ours: Tensor, theirs: Tensor, at_least: float = 0.0) -> float:
    """The largest difference, relative to the largest value of theirs, or to `at_least`."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=at_least))
