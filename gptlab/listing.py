"""The catalogue as a person reads it: a table of all variants, and a card of each; on a terminal and in docs/."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from gptlab import cards
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
HEAD = "| variant | what it is | source | needs |\n|---|---|---|---|\n"
MADE = "<!-- Made by scripts/write_catalogue.py from the variants' sources: edit those. -->\n"


def show(words: list[str], as_json: bool) -> None:
    """A table of everything or of the slots named, or the cards of the variants named."""
    files = plugin_files(word for word in words if word.startswith("plugins="))
    deck, words = cards.deck(files), [word for word in words if not word.startswith("plugins=")]
    slots = [slot for slot in SLOTS if {slot, SLOTS[slot].group} & set(words)]
    groups = {*slots, *(SLOTS[slot].group for slot in slots)}
    named = [_with_record(find(word, deck), files) for word in words if word not in groups]
    listed = [card for card in deck if card.slot in slots or not words]
    console = Console(highlight=False)
    if as_json:
        print(json.dumps([dataclasses.asdict(card) for card in (*listed, *named)], indent=1))
        return
    if listed:
        console.print(table(listed))
    for card in named:
        console.print(Markdown(text_of(card) + _laws(card.record)))


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


def find(word: str, deck: list[Card]) -> Card:
    """The card of `attention/flash`, `flash`, or of what a preset sets. ConfigError for none, or several."""
    found = [c for c in deck if word in _names(c)] or [c for c in deck if word in _preset_names(c)]
    if not found:
        known = {*SLOTS, *(name for card in deck for name in (*_names(card), *_preset_names(card)))}
        raise ConfigError(f"There is no slot, variant or preset named {word!r}. {did_you_mean(word, known)}")
    if len(found) > 1:
        choices = " or ".join(f"{card.slot}/{word}" for card in found)
        raise ConfigError(f"{word!r} names a variant in several slots: say {choices}.")
    return found[0]


def table(deck: list[Card]) -> Table:
    """A row for each variant, its presets below it."""
    rows = Table(show_edge=False, pad_edge=False)
    rows.add_column("variant", no_wrap=True)
    for title, ratio in {"what it is": 5, "source": 4, "needs": 3}.items():
        rows.add_column(title, ratio=ratio)
    for slot, place in SLOTS.items():
        mine = [card for card in deck if card.slot == slot]
        if mine:
            rows.add_section()
            rows.add_row(f"[bold]{place.group}=[/]", f"[bold]{place.meaning}[/]")
        for card in mine:
            rows.add_row(f"  {card.name}", *(escape(text) for text in (card.meaning, card.cited, card.needs)))
            for preset in card.presets:
                meaning, cited = cards.cite(preset.meaning)
                rows.add_row(f"    {preset.name}", f"preset: {escape(meaning)}", escape(cited))
    return rows


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
    return text


def page(slot: str, deck: list[Card]) -> str:
    """The page of a slot: its pictures, and the card of each variant."""
    text = f"{MADE}\n# {slot}: {SLOTS[slot].meaning}\n\nChosen by `{SLOTS[slot].group}=NAME`.\n"
    text += "".join(f"\n![{caption}]({name})\n\n{caption}\n" for name, caption in PICTURES.get(slot, {}).items())
    return text + "".join(f"\n{text_of(card, 2)}" for card in deck if card.slot == slot)


def pages(deck: list[Card]) -> dict[str, str]:
    """File name -> text of everything in docs/catalogue that is text."""
    return {"index.md": index(deck), **{f"{slot}.md": page(slot, deck) for slot in SLOTS}}


def _names(card: Card) -> set[str]:
    return {card.name, f"{card.slot}/{card.name}", card.choice}


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
    node = SLOTS[card.slot].node.replace("model.position", "position")
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
