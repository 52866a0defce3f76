"""A run that begins with weights: their model, changed where the user said so, their tokenizer, their tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlab import registry, rundir, rundirs, tokenizer, weights
from gptlab.config import LAYER_SLOTS, ModelConfig, RunConfig, require
from gptlab.model import GPT
from gptlab.tokenizer import Tokenizer
from gptlab.weights import Fit, vocabulary
from gptlab.weights.loading import TABLE, check_changes, merge

PADDED = (1, 8, 64, 128, 256, 512)  # a vocabulary is often rounded up to a multiple of these
HEAD = "head.weight"


@dataclass(frozen=True)
class Origin:
    """Where weights come from."""

    name: str  # that finds it again, from any directory

    @property
    def model(self) -> ModelConfig:
        """The model that they are of."""
        raise NotImplementedError

    @property
    def plugins(self) -> list[str]:
        """What registers its variants."""
        return []

    def tokenizer(self) -> Tokenizer | None:
        """What made their ids; None when that is not known."""
        raise NotImplementedError

    def check(self) -> None:
        """CheckpointError where they are not all that there should be, before a text is read for them."""

    def fill(self, model: GPT) -> Fit:
        """Put them into a model that may be another in part."""
        raise NotImplementedError


class OwnRun(Origin):
    """A run directory of gptlab."""

    @property
    def model(self) -> ModelConfig:
        return rundir.read_config(Path(self.name)).model

    @property
    def plugins(self) -> list[str]:
        return rundir.read_config(Path(self.name)).plugins

    def tokenizer(self) -> Tokenizer:
        return tokenizer.load(Path(self.name) / rundirs.TOKENIZER)

    @torch.no_grad()
    def fill(self, model: GPT) -> Fit:
        held, fit = rundir.load(self.name)[0].tensors(), Fit()
        for name, tensor in model.tensors().items():
            part = held.get(name)
            if part is not None and name == TABLE:
                part = part[: len(tensor)]
            if part is None or part.shape != tensor.shape:
                fit.new.append(name)
            else:
                tensor.copy_(part)
                del held[name]
        fit.left = list(held)
        return fit


class Foreign(Origin):
    """A directory, a file or a name of the Hugging Face world."""

    @property
    def model(self) -> ModelConfig:
        return weights.config_of(self.name)

    def tokenizer(self) -> Tokenizer | None:
        source = weights.find(self.name)
        folder = source.path.parent if source.path.is_file() else source.path
        told = any((folder / name).exists() for name in vocabulary.FILES)
        if not told and self.model.vocab_size == 50257:
            return tokenizer.GPT2Tokenizer()  # whose number it is
        return vocabulary.read(folder)

    def check(self) -> None:
        weights.check(self.name)

    def fill(self, model: GPT) -> Fit:
        return weights.fill(model, self.name)


def find(init: str) -> Origin:
    """What `init` names."""
    path = Path(init).expanduser()
    if init == "latest" or (path / rundirs.CONFIG).is_file():
        return OwnRun(str(rundirs.find(init).absolute()))
    return Foreign(str(path.absolute()) if path.exists() else init)


def adopt(tree: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The config of a run in which `init` brings model and tokenizer, but for what the user `named`: model.mlp, ...

    ConfigError for what cannot be named beside weights: other sizes, a longer learned position, another tokenizer.
    """
    origin = find(tree["init"])
    require(
        "model" not in named,
        f"init={tree['init']} brings a model, so model=... cannot choose another: "
        "name what is to differ (model/mlp=...).",
    )
    origin.check()
    held = origin.model
    model = _changed(held, _named(tree["model"], named))
    check_changes(tree["init"], held, model)
    spec = _tokenizer(origin, tree["tokenizer"] if "tokenizer" in named else None, held.vocab_size or 0)
    plugins = list(dict.fromkeys([*tree["plugins"], *origin.plugins]))
    own = {"init": origin.name, "model": dataclasses.asdict(model), "tokenizer": spec, "plugins": plugins}
    return {**tree, **own}


def variants(init: str) -> dict[str, str]:
    """Slot of a layer -> the variant that the weights' model has there."""
    model = find(init).model
    return {slot: registry.name_of(slot, getattr(model, slot)) for slot in LAYER_SLOTS}


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """What turns the text of a new run into ids: the tokenizer of its weights, or else the chosen one."""
    brought = find(config.init).tokenizer() if config.init else None
    return brought or registry.build("tokenizer", config.tokenizer)


def fill(model: GPT, init: str, note: Callable[[str], None]) -> None:
    """Put weights into the model of a new run; `note` is told what of it is new, and what of them has no place."""
    origin = find(init)
    fit = origin.fill(model)
    if HEAD in fit.new and origin.model.tie_weights:  # no longer tied, it begins as what it was tied to
        fit.new.remove(HEAD)
        model.head.weight.data.copy_(model.token_embedding.weight.data)
    for lead, names in (("new, drawn from the seed", fit.new), ("not used", fit.left)):
        if names:
            note(f"init    {lead}: {', '.join(dict.fromkeys(re.sub(r'[.][0-9]+[.]', '.*.', name) for name in names))}")
    note(f"init    {len(model.tensors()) - len(fit.new)} of {len(model.tensors())} tensors from {origin.name}")


def _named(tree: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The fields of ModelConfig that were named; of a part, what was named of it or is not its default."""
    found: dict[str, Any] = {}
    for field, value in tree.items():
        key = f"model.{field}"
        within = {name for name in named if name.startswith(f"{key}.")}
        if field not in LAYER_SLOTS and (key in named or within):
            found[field] = value
        elif key in named:
            options = registry.options(registry.get(field, value["name"]))
            told = {k: v for k, v in value.items() if f"{key}.{k}" in within or k == "name" or v != options[k].default}
            found[field] = told
        elif within:
            found[field] = {k: v for k, v in value.items() if f"{key}.{k}" in within}
    if found.get("document_mask") is False:
        found["separator"] = None
    return found


def _changed(held: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    merged: dict[str, Any] = {key: merge(key, getattr(held, key), new) for key, new in changes.items()}
    model = dataclasses.replace(held, **merged)
    return model if model.has_source else dataclasses.replace(model, source_end=None)


def _tokenizer(origin: Origin, named: Any, vocab_size: int) -> dict[str, Any]:
    """The spec of the tokenizer that goes with weights of so many ids. ConfigError for another, and when none does."""
    brought = origin.tokenizer()
    if brought is not None:
        own = {"name": brought.name, **brought.options}
        require(
            named is None or registry.complete("tokenizer", named) == own,
            f"{origin.name} was trained with tokenizer={brought.name}, and its ids mean nothing in another: leave the "
            "tokenizer out.",
        )
    require(
        brought is not None or named is not None,
        f"{origin.name} brings no tokenizer that gptlab has: name one of {vocab_size} ids, like tokenizer=gpt2.",
    )
    chosen = brought or registry.build("tokenizer", named)
    fits = chosen.fitted and vocab_size in {-(-chosen.vocab_size // n) * n for n in PADDED}
    count = chosen.vocab_size if chosen.fitted else "those of the new text"
    require(
        fits,
        f"{origin.name} knows {vocab_size} ids, but tokenizer={chosen.name} has {count}: name the one it was "
        "trained with.",
    )
    return {"name": chosen.name, **chosen.options}
