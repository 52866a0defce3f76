"""Weights of transformers into a gptlab model: every tensor used once, shapes checked, nothing left out in silence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptlab import registry
from gptlab.components.attention.softmax import SoftmaxAttention
from gptlab.config import LAYER_SLOTS, ModelConfig, as_spec, merge_spec, require
from gptlab.errors import CheckpointError, ConfigError, GptlabError, did_you_mean
from gptlab.model import GPT
from gptlab.weights.composition import composition
from gptlab.weights.families import Family, family_for
from gptlab.weights.names import Table
from gptlab.weights.source import Source, find
from gptlab.weights.table import Link, links

FIXED = ("vocab_size", "n_embd", "n_head", "embedding_size")  # without these the tensors mean nothing
TABLE = "position.table.weight"  # learned positions: the first of them serve a shorter context


@dataclass
class Fit:
    """What became of the weights: tensors of the model that they are not in, and those that it has no place for."""

    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = (("new, drawn from the seed", self.new), ("not used", self.left))
        return "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names) or "all weights taken"


def load(name: str | Path, *, seed: int = 0, note: Callable[[str], None] = print, **changes: Any) -> GPT:
    """A model with the weights of `gpt2`, of another name on the hub, of a directory or a safetensors file.

    `changes` are fields of ModelConfig to have otherwise: a part may be swapped, block_size made shorter. Then what
    fits is taken, and `note` is told what is new. Parameters are float32; the model is in eval mode, on the CPU.
    """
    source = find(name)
    whole = _whole(source)
    held, config = whole.config, config_of(source, **changes)
    check_changes(str(source.path), held, config)
    model = _unfilled(config) if composition(config) == composition(held) else GPT(config, seed)
    fit = _fill(model, source, whole)
    if fit.new or fit.left:
        note(f"{source.path}: {fit}.")
    return model.eval()


def config_of(source: Source | str | Path, **changes: Any) -> ModelConfig:
    """The config of the model that these weights are of, with `changes`: fields of ModelConfig, parts by their specs.

    A part of the same name changes its options; softmax attentions, which differ in their kernel, keep theirs.
    """
    source = source if isinstance(source, Source) else find(source)
    held = _family(source).config(source.settings)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for key in changes.keys() - known:
        raise ConfigError(f"There is no setting model.{key}. {did_you_mean(key, known)}")
    merged = {key: merge(key, getattr(held, key), new) for key, new in changes.items()}
    return dataclasses.replace(held, **merged)


def check_changes(name: str, held: ModelConfig, config: ModelConfig) -> None:
    """ConfigError where weights of the model `held` mean nothing in this one, or have learned too few positions."""
    for field_name in FIXED:
        asked, has = getattr(config, field_name), getattr(held, field_name)
        require(asked == has, f"model.{field_name} is {has} in {name} and cannot become {asked}: leave it out.")
    if config.block_size <= held.block_size or as_spec(config.position) != as_spec(held.position):
        return
    with torch.device("meta"):
        limit = GPT(config).position.limit
    require(
        limit is None,
        f"{name} has learned {held.block_size} positions, so model.block_size={config.block_size} is too long for it: "
        "lower it, or swap the position (position=rope).",
    )


def check(name: str | Path) -> None:
    """CheckpointError or ConfigError when files are not, tensor for tensor, what their config says. Reads no tensor."""
    _whole(find(name))


def fill(model: GPT, source: Source | str | Path) -> Fit:
    """Put weights into a model, tensor by tensor. What it has otherwise than their own model keeps its values.

    CheckpointError when the files are not, tensor for tensor, what their config says.
    """
    source = source if isinstance(source, Source) else find(source)
    return _fill(model, source, _whole(source))


@dataclass(frozen=True)
class _Whole:
    """Weights that were held to their config: their own model, without storage, and the place of each tensor."""

    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    links: list[Link]
    places: Mapping[str, str]


def _whole(source: Source) -> _Whole:
    family = _family(source)
    config = family.config(source.settings)
    try:
        with torch.device("meta"):
            held = GPT(config).tensors()
    except GptlabError:
        raise
    except (RuntimeError, TypeError):  # products beyond 64 bits
        raise ConfigError(f"The config of {source.path} has sizes that no model can have: mend it.") from None
    table = family.table(config)
    found = links(table, held)
    places = _places(source, family, table, {link.theirs for link in found})
    for link in found:
        source.check(places[link.theirs])
        _check_shape(source, places[link.theirs], list(link.write([held[name] for name in link.ours]).shape))
    return _Whole(config, held, found, places)


def _family(source: Source) -> Family:
    """The family of the weights. CheckpointError for more layers than there are tensors, before any is laid out."""
    family = family_for(source.settings)
    said = [source.settings.get(key) for key in ("n_layer", "num_hidden_layers")]
    for n_layer in (value for value in said if isinstance(value, int)):
        if n_layer > len(source.files):
            raise CheckpointError(
                f"{source.path} has {n_layer} layers, as its config.json says, but only {len(source.files)} tensors: "
                "bring the two that belong together."
            )
    return family


@torch.no_grad()
def _fill(model: GPT, source: Source, whole: _Whole) -> Fit:
    fit, waiting = Fit(), model.tensors()
    for link in whole.links:
        held = source.read(whole.places[link.theirs])
        for name, part in zip(link.ours, link.read(held, _sizes(link, whole.tensors)), strict=True):
            mine = waiting.get(name)
            if mine is not None and name == TABLE and mine.shape[1:] == part.shape[1:]:
                part = part[: len(mine)]
            if mine is None or mine.shape != part.shape:
                fit.left.append(name)
            else:
                waiting.pop(name).copy_(part)
    fit.new = list(waiting)
    return fit


def _unfilled(config: ModelConfig) -> GPT:
    """A model whose tensors hold anything yet: drawing values that are then replaced takes longer than all the rest."""
    with torch.device("meta"):
        model = GPT(config)
    assert model.state_dict().keys() >= dict(model.named_buffers()).keys(), "a constant that no file holds"
    model.to_empty(device="cpu")
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model


def merge(key: str, held: Any, new: Any) -> Any:
    """A field of ModelConfig over the one in its place: a part by its spec.

    From one softmax attention to another, which may only be a kernel, the options stay that both have.
    """
    if key not in LAYER_SLOTS:
        return new
    old, change = as_spec(held), as_spec(new)
    before, after = (registry.get(key, name) for name in (old["name"], change.get("name", old["name"])))
    if before is not after and issubclass(before, SoftmaxAttention) and issubclass(after, SoftmaxAttention):
        return {**{name: value for name, value in old.items() if name in registry.options(after)}, **change}
    return merge_spec(old, change)


def _places(source: Source, family: Family, table: Table, wanted: set[str]) -> dict[str, str]:
    """For each tensor of the family's model, what the files call it: with the model's prefix or without."""
    ends = {row.ours: f"{row.theirs}.weight" for row in table}
    prefix = ends["token_embedding"].partition(".")[0] + "."
    places: dict[str, str] = {}
    odd = []
    for name in source.names:
        full = name if name in wanted else prefix + name
        if full in wanted and full not in places:
            places[full] = name
        elif not re.fullmatch(family.inert, name):
            odd.append(name)
    if ends["head"] in odd and ends["head"] not in wanted:  # of tied weights
        _check_tied(source, ends["head"], places.get(ends["token_embedding"], ""))
        odd.remove(ends["head"])
    missing = sorted(wanted - places.keys())
    if missing or odd:
        parts = [
            f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("holds also", sorted(odd))) if names
        ]
        raise CheckpointError(f"{source.path} is no whole {family.architecture}: it {' and '.join(parts)}.")
    return places


def _check_tied(source: Source, head: str, embedding: str) -> None:
    """A head stored although it is the embedding must be equal to it."""
    if embedding and not torch.equal(source.read(head), source.read(embedding)):
        raise CheckpointError(
            f"{source.path} says that its head is its embedding, but {head} is not {embedding}: "
            'set "tie_word_embeddings": false in its config.json if it was trained so.'
        )


def _check_shape(source: Source, name: str, wanted: list[int]) -> None:
    if source.shape(name) != wanted:
        raise CheckpointError(
            f"{name} of {source.path} must have the shape {wanted}, as its config.json says, but has "
            f"{source.shape(name)}: bring the two that belong together."
        )


def _sizes(link: Link, held: Mapping[str, torch.Tensor]) -> list[torch.Size]:
    return [held[name].shape for name in link.ours]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
