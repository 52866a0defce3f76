"""The presets of a group: YAML files under conf/ that pick a variant and set its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlab import conf_dir


@dataclass(frozen=True)
class Preset:
    """A preset: its name, the variant that it sets options of (empty for a whole model or run), its opening comment."""

    name: str
    variant: str
    meaning: str
    settings: dict[str, Any]


def of(group: str) -> list[Preset]:
    """The presets of a group, by name."""
    return [_read(path) for path in sorted((conf_dir.find() / group).glob("*.yaml"))]


def _read(path: Path) -> Preset:
    text = path.read_text(encoding="utf-8")
    comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    settings = yaml.safe_load(text) or {}
    bases = [base for base in settings.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    meaning = next((line for line in comments if not line.startswith("@package")), "")
    return Preset(path.stem, bases[0] if bases else "", meaning, settings)
