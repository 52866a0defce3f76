"""docs/catalogue/ is what the sources and the records say today. The laws are not run: their record is read."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gptlab import cards, listing

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "catalogue"
AGAIN = "run python scripts/write_catalogue.py (--laws also runs the laws)"
DECK = cards.deck(any_source=True)
PAGES = listing.pages(DECK)


def pictures() -> Any:
    """scripts/pictures.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "scripts" / "pictures.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_a_record_with_verdicts() -> None:
    """Of the day they were taken: that the laws hold today is what tests/test_conformance.py finds out."""
    bare = [f"{card.slot}/{card.name}" for card in DECK if card.source and not (card.record and card.record.laws)]
    assert not bare, f"{', '.join(bare)}: {AGAIN}"
    assert cards.recorded().keys() == {f"{card.slot}/{card.name}" for card in DECK if card.source}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_sources_say(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name], f"docs/catalogue/{name} is old: {AGAIN}"


def test_no_page_is_left_of_a_slot_that_is_no_more() -> None:
    drawn = {picture for slot in listing.PICTURES.values() for picture in slot}
    assert {path.name for path in DOCS.iterdir()} == {*PAGES, *drawn}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w.]+)(?:#(\w+))?\)", PAGES[name]):
        assert (DOCS / target).exists(), target
        titles = re.findall(r"^## (.+)$", PAGES.get(target, ""), re.MULTILINE)
        assert not anchor or anchor in {title.replace("/", "") for title in titles}, anchor


def test_no_broken_law_is_on_record() -> None:
    assert [broken for card in DECK if card.record for broken in card.record.broken] == []


@pytest.mark.slow
def test_pictures_are_drawn_the_same_twice(tmp_path: Path) -> None:
    draw = pictures().draw
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert path.stat().st_size < 100_000
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p for slot in listing.PICTURES.values() for p in slot}
