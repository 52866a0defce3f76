"""What is timed: a config opened as `gptlab train` opens it, with its text or task, ready to take a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gptlab import assembly, material, pretrained
from gptlab.config import RunConfig, from_dict
from gptlab.cost import flops_per_token
from gptlab.display import Display, PlainDisplay
from gptlab.hardware import choose_device, choose_precision
from gptlab.material import Material
from gptlab.step import TrainState

Tree = dict[str, Any]  # a RunConfig as plain data
Say = Callable[[str], None]


def opened(tree: Tree, display: Display, words: tuple[str, ...] = ()) -> tuple[RunConfig, Material]:
    """The config, checked, with its precision and vocabulary known, and what it learns from."""
    config = from_dict(tree)
    assembly.check(config)
    plan = config.trainer
    plan.precision = choose_precision(plan.precision, choose_device(plan.device))
    return config, material.prepare(config, pretrained.tokenizer_of(config), display.note, words)


def made(config: RunConfig, source: Material, display: Display) -> TrainState:
    """The model and what trains it. ConfigError where there is no memory for it."""
    return assembly.make_state(config, source, display)


def flops(config: RunConfig, source: Material, say: Say) -> float | None:
    """FLOPs of a training token at the length that is fed; None, with a line, where they cannot be counted."""
    if config.lora.rank:
        say("FLOPs are not counted: frozen matrices have no gradient, which the count of a whole model would hold.")
        return None
    try:
        return flops_per_token(dataclasses.replace(config.model, block_size=source.length))
    except Exception as error:  # a part from outside may not run without storage; its time can be measured still
        say(f"FLOPs could not be counted ({in_a_line(error)}).")
        return None


def in_a_line(error: Exception) -> str:
    """What went wrong, without the lines that torch adds."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Lines(PlainDisplay):
    """The notes of an opening, each once, however often the same thing is opened."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say, self.said = say, set[str]()

    def note(self, text: str) -> None:
        """Say a line that was not said."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)
