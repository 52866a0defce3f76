"""The variants of a slot, each in the same model, timed in turns so that the machine's moods hit all alike."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gptlab import presets as kept
from gptlab import registry
from gptlab.benchmarking import graphs
from gptlab.benchmarking.clock import walk
from gptlab.benchmarking.memory import Growth
from gptlab.benchmarking.request import Request
from gptlab.benchmarking.subject import Lines, Say, Tree, in_a_line, made, opened
from gptlab.cost import count
from gptlab.errors import ConfigError, did_you_mean
from gptlab.hardware import choose_device

Compose = Callable[[Sequence[str]], Tree]
AS_GIVEN = "as given"


@dataclass
class Variant:
    """One of them: its config, its cost, what its turns took, and why there are none."""

    name: str
    tree: Tree | None = None
    reason: str = ""
    paces: list[float] = field(default_factory=list)  # median seconds of a step, by turn
    memory: int | None = None  # bytes, at the peak of the first turn
    costs: dict[str, float] = field(default_factory=dict)


def bench(words: Sequence[str], asked: Request, compose: Compose, say: Say) -> dict[str, Any]:
    """Time, memory and cost of each variant, beside that of the model as it was given."""
    base = compose(words)
    slot = str(asked.components)
    named = [word for word in words if word.partition("=")[0] != registry.SLOTS[slot].group]
    every = [_composed(name, [*named, f"{registry.SLOTS[slot].group}={name}"], compose) for name in _names(slot, asked)]
    default = next((each for each in every if each.tree == base), None)
    if default is None:
        default = Variant(AS_GIVEN, base)
        every.insert(0, default)
    for variant in every:
        _count(variant)
    able = [variant for variant in every if not variant.reason]
    say(f"{len(able)} of {len(every)} can be built; {asked.rounds} turns of {asked.warmup} + {asked.steps} steps each")
    for turn in range(asked.rounds):
        for variant in able[:: 1 if turn % 2 == 0 else -1]:
            if not variant.reason:
                _take_turn(variant, asked, say)
    if default.reason:
        raise ConfigError(f"The model as given cannot take a step: {default.reason}")
    return {"slot": slot, "default": default.name, "rounds": asked.rounds, "steps": asked.steps,
            "variants": [_row(variant, default) for variant in every]}  # fmt: skip


def _names(slot: str, asked: Request) -> list[str]:
    """Variants and presets of the slot, or those that were asked for. ConfigError for one that there is not."""
    known = [*registry.names(slot), *(preset.name for preset in kept.of(registry.SLOTS[slot].group))]
    for name in asked.only:
        if name not in known:
            raise ConfigError(f"There is no {slot} named {name!r}. {did_you_mean(name, known)}")
    return list(dict.fromkeys(asked.only or known))


def _composed(name: str, words: Sequence[str], compose: Compose) -> Variant:
    try:
        return Variant(name, compose(words))
    except ConfigError as error:
        return Variant(name, reason=str(error))


def _count(variant: Variant) -> None:
    """What it costs in parameters and FLOPs; a reason where it cannot be built."""
    if variant.tree is None:
        return
    try:
        config, source = opened(copy.deepcopy(variant.tree), Lines(lambda line: None))
        config.model.block_size = source.length
        found = count(config.model)
        variant.costs = {"parameters": found.parameters, "flops_per_token": found.flops_per_token}
    except ConfigError as error:
        variant.reason = str(error)
    except Exception:  # it may need storage, and then has a time without a count
        variant.costs = {}


def _take_turn(variant: Variant, asked: Request, say: Say) -> None:
    """Build it, warm it up, time its steps, and let it go."""
    assert variant.tree is not None
    try:
        graphs.forget()
        display = Lines(lambda line: None)
        config, source = opened(copy.deepcopy(variant.tree), display)
        grown = Growth(choose_device(config.trainer.device))
        state = made(config, source, display)
        walk(state, source.batch, asked.warmup)
        taken = walk(state, source.batch, asked.steps).seconds
        variant.paces.append(statistics.median(taken))
        variant.memory = variant.memory or grown.peak()
        say(f"{variant.name}: {1e3 * variant.paces[-1]:.1f} ms")
    except Exception as error:  # whatever a part does, the others have their turn
        variant.reason = in_a_line(error)
        say(f"{variant.name} cannot take a step: {variant.reason}")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _row(variant: Variant, default: Variant) -> dict[str, Any]:
    """Its figures; relative is to the default in the same turn, the median of turns with their range."""
    if variant.reason:
        return {"name": variant.name, "reason": variant.reason}
    ratios = sorted(a / b for a, b in zip(variant.paces, default.paces, strict=True))
    return {
        "name": variant.name,
        "seconds": statistics.median(variant.paces),
        "relative": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        "memory": variant.memory,
        **variant.costs,
    }
