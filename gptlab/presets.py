"""The presets of a group: YAML files under conf/ that pick a variant and set its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlab import conf_dir

WHOLE = {"model": "sizes and parts together", "experiment": "a whole run, with its question"}  # groups without a slot


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


def written(group: str, name: str) -> str:
    """A preset as its file has it, without the comments that open it."""
    lines = (conf_dir.find() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _read(path: Path) -> Preset:
    text = path.read_text(encoding="utf-8")
    comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    settings = yaml.safe_load(text) or {}
    bases = [base for base in settings.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    meaning = next((line for line in comments if not line.startswith("@package")), "")
    return Preset(path.stem, bases[0] if bases else "", meaning, settings)
