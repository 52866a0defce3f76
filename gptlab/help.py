"""What `--help` shows: every group, every variant with its one-line meaning, every setting. Needs no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab import catalogue
from gptlab import presets as kept
from gptlab.cards import default_of, kind_of
from gptlab.config import ModelConfig, RunConfig, TrainerConfig
from gptlab.registry import SLOTS

VERBS = {
    "train": "train a model, watch it, and let it write",
    "sample": "let the model of a run write",
    "evaluate": "loss, perplexity and bits per byte of a run on a split or a text",
    "export": "write a run as a directory that transformers opens",
    "list": "what there is to choose from, and the card of a variant",
    "check": "hold variants, your own included, to the laws",
    "completion": "print the completion script of a shell: bash, zsh or fish",
}
EXAMPLES = (
    "gptlab train model/attention=flash position=rope",
    "gptlab train model=llama data=text data.path=book.txt tokenizer=bpe",
    "gptlab train experiment=shakespeare_char_cpu",
    "gptlab train -m model/norm=layernorm,rmsnorm seed=0,1",
    "gptlab train plugins=[./mixer.py] model/attention=mixer",
    "gptlab train resume=latest",
)
FLAGS = {
    "-m": "train every combination of comma-separated values",
    "--cfg job": "print the composed config and stop",
    "--info": "print what Hydra knows: search path, defaults, config",
    "--config-dir DIR": "look for presets in DIR too",
    "--hydra-help": "the flags of Hydra",
}


def show_verbs() -> None:
    """The commands of gptlab."""
    console = Console()
    console.print(
        "gptlab: compose a GPT from parts, train it, and know what each part is worth.\n\nUsage: gptlab VERB ...\n"
    )
    console.print(_table((verb, meaning) for verb, meaning in VERBS.items()))
    console.print("\nEach verb has a --help of its own. `python -m gptlab.VERB` is the same.")


def show_train(words: list[str]) -> None:
    """Groups, variants, presets and settings of a training, and the options of each variant that `words` choose."""
    console = Console(highlight=False)
    console.print("Train a GPT composed from parts: gptlab train [GROUP=NAME ...] [SETTING=VALUE ...] [FLAG ...]\n")
    chosen = dict(word.partition("=")[::2] for word in words)
    files = (Path(plugin.strip()) for plugin in chosen.get("plugins", "").strip("[]").split(","))
    found = catalogue.entries(path for path in files if path.suffix == ".py")
    if named := [entry for entry in found if entry.name in chosen.get(SLOTS[entry.slot].group, "").split(",")]:
        show_options(console, named)
        return
    for slot, place in SLOTS.items():
        console.print(f"[bold]{place.group}=[/]  {escape(place.meaning)}")
        mine = [(entry.name, _with_options(entry, place.node)) for entry in found if entry.slot == slot]
        console.print(_table([*mine, *presets(place.group)]))
    for group, meaning in (("model", "sizes and parts together"), ("experiment", "a whole run, with its question")):
        console.print(f"[bold]{group}=[/]  {meaning}")
        console.print(_table(presets(group)))
    for title, cls in (("", RunConfig), ("model.", ModelConfig), ("trainer.", TrainerConfig)):
        console.print(f"[bold]{title or 'settings'}[/]")
        console.print(_table(_settings(title, cls)))
    console.print("[bold]flags[/]")
    console.print(_table(FLAGS.items()))
    console.print("Options with their meaning: name a variant beside --help, as in gptlab train position=rope --help\n")
    console.print("[bold]examples[/]")
    for example in EXAMPLES:
        console.print(f"  {escape(example)}")


def show_options(console: Console, entries: list[catalogue.Entry]) -> None:
    """What can be set of some variants: type, default and meaning, as their signatures say."""
    for entry in entries:
        place = SLOTS[entry.slot]
        console.print(f"[bold]{place.group}={entry.name}[/]  {escape(entry.meaning)}")
        node = "position" if entry.slot == "position" else place.node
        rows = [(f"{node}.{option.name}", _with_default(option)) for option in entry.options]
        console.print(_table(rows) if rows else "  It has no options.")


def presets(group: str) -> list[tuple[str, str]]:
    """The presets of a group and the comment that opens each."""
    return [(preset.name, preset.meaning) for preset in kept.of(group)]


def _with_default(option: catalogue.Written) -> str:
    return f"= {default_of(option)}  {option.meaning} ({kind_of(option)})"


def _with_options(entry: catalogue.Entry, node: str) -> str:
    short = node.removeprefix("model.") if node == "model.position" else node
    return entry.meaning + (
        f" [{short}.: {' '.join(option.name for option in entry.options)}]" if entry.options else ""
    )


def _settings(prefix: str, cls: type) -> Iterator[tuple[str, str]]:
    """Plain settings of a dataclass with their defaults and the comment beside each in its source."""
    comments = dict(re.findall(r"^    (\w+): .*?#\s*(.+)$", inspect.getsource(cls), re.MULTILINE))
    for item in dataclasses.fields(cls):
        if item.name not in SLOTS and item.default_factory in (dataclasses.MISSING, list):
            default: Any = [] if item.default is dataclasses.MISSING else item.default
            yield f"{prefix}{item.name}", f"= {'null' if default is None else default}  {comments.get(item.name, '')}"


def _table(rows: Any) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, meaning in rows:
        table.add_row(f"  {escape(name)}", escape(meaning))
    return table
