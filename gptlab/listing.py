"""The catalogue as a person reads it: a table of all variants, and a card of each; on a terminal and in docs/."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from gptlab import cards
from gptlab import presets as kept
from gptlab.cards import Card, Record, default_of, kind_of
from gptlab.errors import ConfigError, did_you_mean
from gptlab.registry import SLOTS

COSTS = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs per token, forward and backward",
    "cache_bytes_per_token": "bytes of cache per token, bf16",
}
PICTURES = {
    "attention": {"masks.svg": "What a token (row) sees: dark, by the plan of each; the convolution by its gradient."},
    "position": {
        "rope.svg": "Rotary encodings stretched from 1,024 to 4,096 tokens: how long each pair takes to turn once.",
        "biases.svg": "What is added to the scores over distance, as each encoding begins.",
    },
}
ROOM = 100  # columns of a terminal from which on a variant's source and needs stand beside its meaning
HEAD = "| variant | what it is | source | needs |\n|---|---|---|---|\n"
MADE = "<!-- Made by scripts/write_catalogue.py from the variants' sources: edit those. -->\n"


def show(words: list[str], as_json: bool) -> None:
    """A table of everything or of the groups named, or the cards of the variants and whole presets named."""
    files = plugin_files(word for word in words if word.startswith("plugins="))
    deck, words = cards.deck(files), [word for word in words if not word.startswith("plugins=")]
    slots = [slot for slot in SLOTS if {slot, SLOTS[slot].group} & set(words)]
    groups = {*slots, *(SLOTS[slot].group for slot in slots), *kept.WHOLE}
    found = [find(word, deck) for word in words if word not in groups]
    named = [one if isinstance(one, Whole) else _with_record(one, files) for one in found]
    listed = [card for card in deck if card.slot in slots or not words]
    whole = [one for one in wholes() if one.slot in words or not words]
    console = Console(highlight=False)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in (*listed, *whole, *named)], indent=1))
        return
    if listed or whole:
        _print_table(console, listed, whole)
    for one in named:
        console.print(Markdown(one.text() if isinstance(one, Whole) else text_of(one) + _laws(one.record)))


def _with_record(card: Card, files: list[Path]) -> Card:
    """The card with what its record would hold; measured now, which needs torch, where there is none of its source."""
    if card.record or card.slot not in cards.JUDGED:
        return card
    with Console(stderr=True).status(f"measuring {card.slot}/{card.name}"):
        from gptlab import plugins, recording

        plugins.load(map(str, files))
        return dataclasses.replace(card, record=recording.measure(card))


def plugin_files(words: Iterable[str]) -> list[Path]:
    """The files of `plugins=[./one.py,...]`. ConfigError for what is none: only files are read without running them."""
    names = [part.strip() for word in words for part in word.partition("=")[2].strip("[]").split(",") if part.strip()]
    for name in names:
        if not Path(name).is_file():
            raise ConfigError(f"gptlab list reads plugins that are files, but there is no file {name}: give ./mine.py.")
    return [Path(name) for name in names]


@dataclasses.dataclass(frozen=True)
class Whole:
    """A preset of a whole model or run: what it is, and its file."""

    slot: str
    name: str
    meaning: str
    cited: str
    written: str

    @property
    def choice(self) -> str:
        """What chooses it on a command line."""
        return f"{self.slot}={self.name}"

    def text(self) -> str:
        """Its card in Markdown."""
        about = " ".join(filter(None, (_plain(self.meaning), _linked(self.cited))))
        return f"# {self.slot}/{self.name}\n\n{about}\n\n- chosen by: `{self.choice}`\n\n```yaml\n{self.written}\n```\n"


def wholes() -> list[Whole]:
    """Every preset of a whole model or run, by group and name."""
    return [
        Whole(group, preset.name, *cards.cite(preset.meaning), kept.written(group, preset.name))
        for group in kept.WHOLE
        for preset in kept.of(group)
    ]


def find(word: str, deck: list[Card]) -> Card | Whole:
    """The card of `attention/flash`, `flash`, `llama`, or of what a preset sets. ConfigError for none, or several."""
    everything: list[Card | Whole] = [*deck, *wholes()]
    found: list[Card | Whole] = [one for one in everything if word in _names(one)]
    found = found or [card for card in deck if word in _preset_names(card)]
    if not found:
        known = {*SLOTS, *kept.WHOLE, *(name for one in everything for name in _names(one))}
        known |= {name for card in deck for name in _preset_names(card)}
        way_out = did_you_mean(word, known, "gptlab list")
        raise ConfigError(f"There is no slot, variant or preset named {word!r}. {way_out}")
    if len(found) > 1:
        choices = " or ".join(f"{one.slot}/{word}" for one in found)
        raise ConfigError(f"{word!r} names several things to choose: say {choices}.")
    return found[0]


def _print_table(console: Console, deck: list[Card], whole: list[Whole]) -> None:
    """As wide as the terminal; in a pipe, where nobody can widen it, as wide as its text."""
    piped = not console.is_terminal and "COLUMNS" not in os.environ
    rows = table(deck, whole, narrow=console.width < ROOM and not piped)
    if piped:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), rows).maximum
    console.print(rows)


def table(deck: list[Card], whole: list[Whole], narrow: bool = False) -> Table:
    """A row for each variant, its presets below it; where it is narrow, source and needs are below the meaning."""
    rows = Table(show_edge=False, pad_edge=False)
    rows.add_column("variant", no_wrap=True)
    for title in ("what it is, source, needs",) if narrow else ("what it is", "source", "needs"):
        rows.add_column(title, overflow="fold")

    def add(name: str, *texts: str) -> None:
        rows.add_row(name, *(["\n".join(map(escape, filter(None, texts)))] if narrow else map(escape, texts)))

    shown: list[Card | Whole] = [*deck, *whole]
    for slot, (group, meaning) in _groups().items():
        mine = [one for one in shown if one.slot == slot]
        if mine:
            rows.add_section()
            rows.add_row(f"[bold]{group}=[/]", f"[bold]{meaning}[/]")
        for one in mine:
            add(f"  {one.name}", one.meaning, one.cited, one.needs if isinstance(one, Card) else "")
            for preset in one.presets if isinstance(one, Card) else ():
                meaning, cited = cards.cite(preset.meaning)
                add(f"    {preset.name}", f"preset: {meaning}", cited)
    return rows


def _groups() -> dict[str, tuple[str, str]]:
    """Slot, or group without one -> its group and its meaning."""
    slots = {slot: (place.group, place.meaning) for slot, place in SLOTS.items()}
    return slots | {group: (group, meaning) for group, meaning in kept.WHOLE.items()}


def text_of(card: Card, level: int = 1) -> str:
    """A card in Markdown."""
    parts = [
        f"{'#' * level} {card.slot}/{card.name}",
        " ".join(filter(None, (_plain(card.meaning), _linked(card.cited)))),
        "\n".join(f"- {name}: {text}" for name, text in _facts(card) if text),
        _options(card),
        "\n".join(_presets(card)),
        _costs(card.record) if card.record else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def index(deck: list[Card]) -> str:
    """The first page of docs/catalogue: every variant in a line."""
    text = f"{MADE}\n# Catalogue\n\nEvery variant, as `gptlab list` shows it. `gptlab list NAME` shows one.\n"
    for slot, place in SLOTS.items():
        text += f"\n## [{slot}]({slot}.md): {place.meaning}\n\n{HEAD}"
        for card in (card for card in deck if card.slot == slot):
            row = (f"[{card.name}]({slot}.md#{slot}{card.name})", _plain(card.meaning), _linked(card.cited), card.needs)
            text += _row(*row)
            for preset in card.presets:
                meaning, cited = cards.cite(preset.meaning)
                text += _row(f"{card.name}: {preset.name}", f"preset: {_plain(meaning)}", _linked(cited), "")
    for group, meaning in kept.WHOLE.items():
        text += f"\n## {group}: {meaning}\n\n{HEAD}"
        for one in (one for one in wholes() if one.slot == group):
            text += _row(one.name, _plain(one.meaning), _linked(one.cited), "")
    return text


def page(slot: str, deck: list[Card]) -> str:
    """The page of a slot: its pictures, and the card of each variant."""
    text = f"{MADE}\n# {slot}: {SLOTS[slot].meaning}\n\nChosen by `{SLOTS[slot].group}=NAME`.\n"
    text += "".join(f"\n![{caption}]({name})\n\n{caption}\n" for name, caption in PICTURES.get(slot, {}).items())
    return text + "".join(f"\n{text_of(card, 2)}" for card in deck if card.slot == slot)


def pages(deck: list[Card]) -> dict[str, str]:
    """File name -> text of everything in docs/catalogue that is text."""
    return {"index.md": index(deck), **{f"{slot}.md": page(slot, deck) for slot in SLOTS}}


def _names(one: Card | Whole) -> set[str]:
    return {one.name, f"{one.slot}/{one.name}", one.choice}


def _preset_names(card: Card) -> set[str]:
    return {word for preset in card.presets for word in (preset.name, f"{card.slot}/{preset.name}")}


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    """The lines of a card."""
    record = card.record or Record("", "")
    yield "chosen by", f"`{card.choice}`"
    yield "needs", card.needs
    yield {"attention": "positions", "position": "attentions"}.get(card.slot, "with"), _listed(record.partners)
    yield "kernels", _listed(record.kernels)
    yield "cannot do", _listed(card.refuses)
    yield "checked against", card.reference
    if card.slot in cards.JUDGED:
        yield "laws", _verdict(card, record)


def _verdict(card: Card, record: Record) -> str:
    if not record.laws:
        return f"not recorded for this source: `gptlab check {card.slot}/{card.name}`"
    broken = f"broken: {', '.join(record.broken)}" if record.broken else "all held"
    return f"{len(record.laws)} on {record.n_cases} cases, {broken} when last recorded (torch {record.torch})"


def _laws(record: Record | None) -> str:
    """The laws on record by name, each with the number of its cases."""
    laws = record.laws.items() if record else ()
    return "\n" + "\n".join(f"- {_plain(law.replace('_', ' '))}: {n} cases" for law, n in laws)


def _options(card: Card) -> str:
    if not card.options:
        return "It has no options."
    node = SLOTS[card.slot].typed
    rows = (_row(f"`{o.name}`", f"`{default_of(o)}`", _plain(kind_of(o)), _plain(o.meaning)) for o in card.options)
    return f"| `{node}.` | default | type | meaning |\n|---|---|---|---|\n" + "".join(rows).rstrip()


def _presets(card: Card) -> Iterator[str]:
    for preset in card.presets:
        settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in preset.settings.items())
        yield f"- preset `{preset.name}`: {_plain(preset.meaning)} `{settings}`"


def _costs(record: Record) -> str:
    rows = (
        _row(title, *(f"{round(number):,}" for number in record.costs[key]))
        for key, title in COSTS.items()
        if key in record.costs
    )
    head = "| at the size of GPT-2 124M | with it | GPT-2 |\n|---|---:|---:|\n"
    return head + "".join(rows).rstrip() if record.costs else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing of its own."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def _linked(cited: str) -> str:
    """A citation with its arXiv numbers as links."""
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", _plain(cited))
