"""Inside a forward pass: record tensors by name, or put others in their place, by hooks on the slots of any variant."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch.nn as nn
from torch import Tensor

from gptlab.components.block import Block
from gptlab.errors import ConfigError, did_you_mean
from gptlab.model import GPT

Function = Callable[[Tensor], Tensor]


def names(model: GPT) -> list[str]:
    """Every point that can be recorded and edited."""
    return list(_points(model))


@contextmanager
def record(model: GPT, patterns: Iterable[str], *, keep_grad: bool = False) -> Iterator[dict[str, Tensor]]:
    """A dict that forward passes inside fill: name -> tensor, the newest, of each point that a pattern fits."""
    kept: dict[str, Tensor] = {}
    wanted = [name for pattern in patterns for name in _fitting(model, pattern)]

    def keep(name: str) -> Function:
        def look(x: Tensor) -> Tensor:
            kept[name] = x if keep_grad else x.detach()
            return x

        return look

    with edit(model, {name: keep(name) for name in wanted}):
        yield kept


@contextmanager
def edit(model: GPT, functions: Mapping[str, Function]) -> Iterator[None]:
    """In forward passes inside, what a function makes of the tensor at its point takes the tensor's place."""
    points = _points(model)
    with ExitStack() as hooks:
        for name, function in functions.items():
            if name not in points:
                raise ConfigError(f"There is no point named {name!r}. {did_you_mean(name, points)}")
            hooks.enter_context(_hook(*points[name], function))
        yield


def _fitting(model: GPT, pattern: str) -> list[str]:
    found = fnmatch.filter(names(model), pattern)
    if not found:
        raise ConfigError(f"There is no point named {pattern!r}. {did_you_mean(pattern, names(model))}")
    return found


def _points(model: GPT) -> dict[str, tuple[nn.Module, bool]]:
    """Name -> the module, and whether the tensor is what goes into it, not what comes out."""
    points: dict[str, tuple[nn.Module, bool]] = {"embedding": (model.dropout, False)}
    for i, block in enumerate(cast(Iterable[Block], model.blocks)):
        points[f"blocks.{i}.in"] = (block, True)
        points[f"blocks.{i}.attention.out"] = (block.attention, False)
        points[f"blocks.{i}.mlp.out"] = (block.mlp, False)
        points[f"blocks.{i}.out"] = (block, False)
    return {**points, "norm": (model.norm, False)}


def _hook(module: nn.Module, before: bool, function: Function) -> Any:
    """The handle of a hook, which takes it away when it is left."""
    if before:
        return module.register_forward_pre_hook(lambda _, given: (function(given[0]), *given[1:]))
    return module.register_forward_hook(lambda _, given, out: function(out))
