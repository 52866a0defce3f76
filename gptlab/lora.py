"""LoRA: W x + (alpha / r) B A x, where W is frozen and B A has rank r. Hu et al. 2021, arXiv:2106.09685."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab.config import LoraConfig
from gptlab.errors import ConfigError, did_you_mean
from gptlab.seeds import seed_of

Model = TypeVar("Model", bound=nn.Module)


class Adapted(nn.Linear):
    """A linear layer that learns by a product of two thin matrices; A random, B zero. Hu et al. 2021."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias  # under the names that they had
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(base.weight.new_zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """W x + bias + scale B A x."""
        return super().forward(input) + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    def draw(self, seed: int, name: str) -> None:
        """A from N(0, 1 / in_features), by (seed, name); B stays 0, so that tuning begins at the weights."""
        if not self.lora_a.is_meta:
            generator = torch.Generator().manual_seed(seed_of(seed, f"{name}.lora_a"))
            drawn = torch.randn(self.lora_a.shape, generator=generator, device="cpu")
            self.lora_a.data.copy_(drawn / math.sqrt(self.in_features))

    def merged(self) -> nn.Linear:
        """The plain layer of the same function."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        plain.weight.data += self.scale * self.lora_b.data @ self.lora_a.data
        return plain


def adapt(model: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Put adapters on the layers that `config` names, and freeze all but them and what it says learns besides.

    ConfigError for a name that no such layer has, and for a rank that is none.
    """
    layers = _called(model)
    chosen = {name for word in config.on for name in _named(word, "lora.on", {n: n.split(".")[2:] for n in layers})}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for word in config.train:
        for name in _named(word, "lora.train", {n: n.split(".") for n in parameters}):
            parameters[name].requires_grad_(True)
    for name in sorted(chosen):
        full = min(layers[name].in_features, layers[name].out_features)
        if config.rank >= full:
            raise ConfigError(f"lora.rank must be below {full}, the rank of {name}, but is {config.rank}: lower it.")
        adapted = Adapted(layers[name], config.rank, config.alpha)
        adapted.draw(seed, name)
        model.set_submodule(name, adapted)


def merge(model: Model) -> Model:
    """The same model without adapters: each product is added to its matrix. Everything learns again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            model.set_submodule(name, module.merged())
    model.requires_grad_(True)
    return model


def _called(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks that a forward pass calls: what reads their matrices itself takes no adapter."""
    found: dict[str, nn.Linear] = {}
    blocks = model.get_submodule("blocks")
    layers = {n: m for n, m in blocks.named_modules(prefix="blocks") if isinstance(m, nn.Linear)}
    names = {module: name for name, module in layers.items()}

    def remember(module: nn.Linear, _: object) -> None:
        found[names[module]] = module

    hooks = [module.register_forward_pre_hook(remember) for module in layers.values()]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return found


def _named(word: str, where: str, paths: dict[str, list[str]]) -> list[str]:
    """The names in whose path `word` is: one part, or several, as in mlp.proj. ConfigError when there are none."""
    found = [name for name, path in paths.items() if f".{word}." in f".{'.'.join(path)}."]
    if not found:
        parts = {part for path in paths.values() for part in path if not part.isdigit()}
        raise ConfigError(f"{where}: there is nothing named {word!r} to tune. {did_you_mean(word, parts)}")
    return found
