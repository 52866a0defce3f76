"""What a card holds: meaning, paper, needs, options, presets, and the record of what was measured and judged.

All of it is read, not run, so that it needs no torch. A record of another source than today's is no record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptlab import catalogue, presets, sources
from gptlab.catalogue import Entry, Written
from gptlab.registry import SLOTS
from gptlab.sources import Source

RECORDS = Path(__file__).resolve().parent / "records.json"
JUDGED = ("attention", "position", "norm", "mlp", "block")  # slots of which there are costs, laws and so records
HOOKS = ("embed", "rotate", "terms")


@dataclass(frozen=True)
class Record:
    """What was measured of a variant's source: costs beside those of GPT-2, what it works with, the laws it kept."""

    source: str
    torch: str
    costs: dict[str, list[float]] = field(default_factory=dict)  # [with the variant, of GPT-2]
    partners: list[str] = field(default_factory=list)  # positions of an attention, attentions of a position
    kernels: list[str] = field(default_factory=list)
    laws: dict[str, int] = field(default_factory=dict)  # cases that each was judged on; empty: not judged
    n_cases: int = 0
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """All that is known of a variant without running it, and its record where that is of today's source."""

    slot: str
    name: str
    meaning: str
    cited: str
    needs: str
    refuses: tuple[str, ...]
    reference: str
    options: tuple[Written, ...]
    presets: tuple[presets.Preset, ...]
    source: str
    record: Record | None = None

    @property
    def choice(self) -> str:
        """What chooses it on a command line."""
        return f"{SLOTS[self.slot].group}={self.name}"


def recorded() -> dict[str, Record]:
    """`slot/name` -> record, of whatever source."""
    kept = json.loads(RECORDS.read_text("utf-8")) if RECORDS.is_file() else {}
    return {variant: Record(**record) for variant, record in kept.items()}


def deck(plugin_files: Iterable[Path] = (), any_source: bool = False) -> list[Card]:
    """The card of every variant of the package and of `plugin_files`, in the order of the slots.

    With `any_source` also with records of other sources than today's, as pages that are written now and then have them.
    """
    extra, order = tuple(plugin_files), list(SLOTS)
    entries = sorted(catalogue.entries(extra), key=lambda entry: order.index(entry.slot))
    groups = {slot: presets.of(place.group) for slot, place in SLOTS.items()}
    records = recorded()
    made = [_card(entry, extra, groups[entry.slot]) for entry in entries]
    return [replace(card, record=_record_of(card, records, any_source)) for card in made]


def _record_of(card: Card, records: dict[str, Record], any_source: bool) -> Record | None:
    record = records.get(f"{card.slot}/{card.name}")
    return record if record and (any_source or record.source == card.source) else None


def cite(line: str) -> tuple[str, str]:
    """A docstring's first line as its meaning and the citation that ends it, empty where there is none."""
    sentences = re.split(r"(?<!et al)\. (?=\S)", line)
    if len(sentences) > 1 and re.search(r"\b(19|20)\d\d\b", sentences[-1]):
        return ". ".join(sentences[:-1]) + ".", sentences[-1].removesuffix(".")
    return line, ", ".join(re.findall(r"arXiv:\d+\.\d+", line))


def default_of(option: Written) -> str:
    """An option's default as a command line writes it."""
    return {"None": "null", "": "required", "True": "true", "False": "false"}.get(
        option.default, option.default.strip("'")
    )


def kind_of(option: Written) -> str:
    """An option's type in a few words."""
    choices = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), option.type)
    return re.sub(r"dict\[.*?\]", "a mapping", choices).replace("None", "null").replace(" | ", " or ")


def _card(entry: Entry, extra: tuple[Path, ...], beside: list[presets.Preset]) -> Card:
    meaning, cited = cite(entry.meaning)
    source = sources.find(entry.slot, entry.name, extra)
    says = source.says if source else dict[str, Any]().get
    today = sources.digest(entry.slot, source) if source and entry.slot in JUDGED else ""
    return Card(
        entry.slot,
        entry.name,
        meaning,
        cited,
        _needs(entry, source),
        tuple(sorted(says("refuses") or ())),
        source.checked_against if source else "",
        entry.options,
        tuple(preset for preset in beside if preset.variant == entry.name),
        today,
    )


def _needs(entry: Entry, source: Source | None) -> str:
    """Options that have no default; then what the other side of attention and position must do, in a few words."""
    node = SLOTS[entry.slot].typed
    needs = [f"{node}.{option.name}" for option in entry.options if not option.default]
    if source and entry.slot == "attention" and (honours := source.says("honours")) is not None:
        unused = [hook for hook in HOOKS[1:] if hook not in honours]
        needs += [f"a position without {' and '.join(unused)}"] if unused else []
        needs += ["an encoder, which a run has not"] if source.says("reads_memory") else []
    if source and entry.slot == "position":
        acts = [hook for hook in HOOKS[1:] if source.defines(hook)]
        needs += [f"an attention with {' and '.join(acts)}"] if acts else []
        needs += ["a kernel with vector terms"] if source.says("pointwise") is False else []
    return "; ".join(needs)
