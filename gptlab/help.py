"""What `--help` shows: every group, every variant with its one-line meaning, every setting. Needs no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab import catalogue, conf_dir
from gptlab import presets as kept
from gptlab.cards import default_of, kind_of
from gptlab.config import LoraConfig, ModelConfig, RunConfig, TrainerConfig
from gptlab.errors import ConfigError, did_you_mean
from gptlab.plugins import ENTRY_POINTS
from gptlab.registry import SLOTS

VERBS = {
    "train": "train a model, watch it, and let it write",
    "sample": "let the model of a run write",
    "evaluate": "loss, perplexity and bits per byte of a run on a split or a text",
    "watch": "follow runs in the browser as they train",
    "look": "look inside a model: attention maps, logit lens, attribution, heads, and more",
    "export": "write a run as a directory that transformers opens",
    "study": "arms and seeds, run and judged: is it better?",
    "compare": "runs side by side: effects, intervals, verdicts, a page",
    "tune": "search for hyper-parameters",
    "bench": "how long a step takes and where the time goes; of variants; of decoding",
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
STUDY_EXAMPLES = (
    "gptlab study model/mlp=gelu,relu2,swiglu seeds=5 match=params",
    "gptlab study study=mlps data.path=input.txt hydra.launcher.jobs=2",
    "gptlab study optimizer=adamw,muon tune=lr experiment=shakespeare_char_cpu",
    "gptlab study dir=runs/mlps/2026-01-31_study seeds=8",
)
STUDY_WORDS = {
    "KEY=A,B,...": "an arm for each value; several such words: one for each combination",
    "KEY=VALUE": "an override of all runs, as gptlab train takes it (gptlab train --help)",
    "hydra/launcher=NAME": "where points run: processes (here, side by side), basic (one by one), submitit_slurm, ray",
    "hydra.launcher.jobs=N": "points at a time, for processes",
}
TUNE_EXAMPLES = (
    "gptlab tune optimizer.lr=log:1e-4..1e-2 model/mlp=gelu,swiglu trials=50",
    "gptlab tune optimizer.lr=1e-4,1e-3,1e-2 schedule.warmup=0,100 sampler=grid",
    "gptlab tune dir=runs/tune/2026-01-31_tune",
)
TUNE_WORDS = {
    "KEY=LOW..HIGH": "any number between; a whole one where the setting is of whole numbers",
    "KEY=log:LOW..HIGH": "evenly over its magnitudes",
    "KEY=A,B,...": "one of these",
    "KEY=VALUE": "an override of all trials, as gptlab train takes it (gptlab train --help)",
}
SETTINGS = {"": RunConfig, "model.": ModelConfig, "trainer.": TrainerConfig, "lora.": LoraConfig}
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
    """Groups, variants, presets and settings of a training, or what can be set of the variants that `words` choose.

    ConfigError for a choice that there is not.
    """
    chosen = dict(word.partition("=")[::2] for word in words)
    brought = [plugin.strip() for plugin in chosen.get("plugins", "").strip("[]").split(",") if plugin.strip()]
    found = catalogue.entries(Path(plugin) for plugin in brought if plugin.endswith(".py"))
    unread = any(not plugin.endswith(".py") for plugin in brought)
    unread |= any(word.startswith(("--config-dir", "-cd")) for word in words) or bool(entry_points(group=ENTRY_POINTS))
    asked = list(_asked(chosen, found, strict=not unread))
    console = Console(highlight=False)
    console.print("Train a GPT composed from parts: gptlab train [GROUP=NAME ...] [SETTING=VALUE ...] [FLAG ...]\n")
    for group, one in asked:
        show_choice(console, group, one)
    if asked:
        return
    for slot, place in SLOTS.items():
        console.print(f"[bold]{place.group}=[/]  {escape(place.meaning)}")
        mine = [(entry.name, _with_options(entry, place.typed)) for entry in found if entry.slot == slot]
        console.print(_table([*mine, *presets(place.group)]))
    for group, meaning in kept.WHOLE.items():
        console.print(f"[bold]{group}=[/]  {meaning}")
        console.print(_table(presets(group)))
    for title, cls in SETTINGS.items():
        console.print(f"[bold]{title or 'settings'}[/]")
        console.print(_table(_settings(title, cls)))
    console.print("[bold]flags[/]")
    console.print(_table(FLAGS.items()))
    console.print("Options with their meaning: name a variant beside --help, as in gptlab train position=rope --help\n")
    console.print("[bold]examples[/]")
    for example in EXAMPLES:
        console.print(f"  {escape(example)}")


def show_study(words: list[str], settings: type) -> None:
    """The words of a study and its presets, or the file of the preset that `words` choose. ConfigError for none."""
    name = dict(word.partition("=")[::2] for word in words).get("study")
    known = {preset.name: preset for preset in kept.of("study")}
    console = Console(highlight=False)
    console.print("Which is better? gptlab study [KEY=A,B ...] [SETTING=VALUE ...]: runs, a verdict, a page\n")
    if name and name not in known:
        raise ConfigError(f"There is no study named {name!r}. {did_you_mean(name, known)}")
    if name:
        console.print(escape((conf_dir.find() / "study" / f"{name}.yaml").read_text(encoding="utf-8")))
        return
    console.print("[bold]words[/]")
    console.print(_table(STUDY_WORDS.items()))
    console.print("[bold]study=[/]  a whole study, with its question")
    console.print(_table(presets("study")))
    console.print("[bold]settings[/]")
    console.print(_table(_settings("", settings)))
    console.print("[bold]examples[/]")
    for example in STUDY_EXAMPLES:
        console.print(f"  {escape(example)}")


def show_tune(settings: type) -> None:
    """The words of a search and its settings."""
    console = Console(highlight=False)
    console.print("Which values are good? gptlab tune [KEY=LOW..HIGH ...] [SETTING=VALUE ...]: trials, ranked\n")
    console.print("[bold]words[/]")
    console.print(_table(TUNE_WORDS.items()))
    console.print("[bold]settings[/]")
    console.print(_table(_settings("", settings)))
    console.print("[bold]examples[/]")
    for example in TUNE_EXAMPLES:
        console.print(f"  {escape(example)}")


def show_choice(console: Console, group: str, one: catalogue.Entry | kept.Preset) -> None:
    """What can be set of a variant: type, default and meaning, as its signature says. Of a whole preset, its file."""
    console.print(f"[bold]{group}={one.name}[/]  {escape(one.meaning)}")
    if isinstance(one, kept.Preset):
        console.print(escape(kept.written(group, one.name)))
        return
    rows = [(f"{SLOTS[one.slot].typed}.{option.name}", _with_default(option)) for option in one.options]
    console.print(_table(rows) if rows else "  It has no options.")


def _asked(
    chosen: dict[str, str], found: list[catalogue.Entry], strict: bool
) -> Iterator[tuple[str, catalogue.Entry | kept.Preset]]:
    """Group and meaning of each choice of a variant or preset; an unknown one is a ConfigError where that is sure."""
    for group in (*(place.group for place in SLOTS.values()), *kept.WHOLE):
        known = _choices(group, found)
        for name in chosen.get(group, "").split(","):
            if name in known:
                yield group, known[name]
            elif strict and name not in ("", "null"):
                raise ConfigError(f"There is no {group.rpartition('/')[2]} named {name!r}. {did_you_mean(name, known)}")


def _choices(group: str, found: list[catalogue.Entry]) -> dict[str, catalogue.Entry | kept.Preset]:
    """The variants and presets of a group by name: a preset of a variant is that variant with other defaults."""
    variants = {entry.name: entry for entry in found if SLOTS[entry.slot].group == group}
    both: dict[str, catalogue.Entry | kept.Preset] = {**variants}
    for preset in kept.of(group):
        base = variants.get(preset.variant)
        both[preset.name] = _preset_of(base, preset) if base else preset
    return both


def _preset_of(base: catalogue.Entry, preset: kept.Preset) -> catalogue.Entry:
    """The variant as the preset sets it."""
    set_to = {key: repr(value) for key, value in preset.settings.items()}
    options = (dataclasses.replace(o, default=set_to.get(o.name, o.default)) for o in base.options)
    meaning = f"{preset.meaning} A preset of {base.name}."
    return catalogue.Entry(base.slot, preset.name, meaning, tuple(options))


def presets(group: str) -> list[tuple[str, str]]:
    """The presets of a group and the comment that opens each."""
    return [(preset.name, preset.meaning) for preset in kept.of(group)]


def _with_default(option: catalogue.Written) -> str:
    return f"= {default_of(option)}  {option.meaning} ({kind_of(option)})"


def _with_options(entry: catalogue.Entry, node: str) -> str:
    return entry.meaning + (f" [{node}.: {' '.join(option.name for option in entry.options)}]" if entry.options else "")


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
