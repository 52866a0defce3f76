"""One call of `gptlab bench`, from its words to its figures: opened, timed, shown, written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from gptlab.benchmarking import decoding, record, stepping, table, variants
from gptlab.benchmarking.request import Request
from gptlab.benchmarking.variants import Compose
from gptlab.display import harmless
from gptlab.hardware import choose_device

WIDTH = 160  # columns where there is no terminal


def bench(asked: Request, compose: Compose) -> None:
    """Do what was asked. Whatever stops it before its end, nothing is left but a trace that was written."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    place = record.folder(asked.out)

    def say(line: str) -> None:
        console.print(Text(harmless(line)), soft_wrap=True)

    def made() -> Path:
        place.mkdir(parents=True, exist_ok=True)
        return place

    tree = compose(asked.words)
    if asked.idle:
        say(f"Without effect here, where only steps are timed: {', '.join(asked.idle)}")
    if asked.decode:
        figures = {"kind": "decode", **decoding.bench(tree, asked, say)}
    elif asked.components:
        figures = {"kind": "components", **variants.bench(asked.words, asked, compose, say)}
    else:
        figures = {"kind": "step", **stepping.bench(tree, asked, made, say)}
    device = choose_device(tree["trainer"]["device"])
    whole: dict[str, Any] = {**figures, **record.circumstances(torch.device(device), asked.command)}
    table.show(console, whole)
    say(f"figures  {record.write(place, whole)}")
