"""What run directories hold, read on from where the last look ended. Nothing is written there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab import rundirs
from gptlab.errors import ConfigError
from gptlab.rundir import kept
from gptlab.rundirs import CONFIG, TOKENIZER

Row = dict[str, Any]
METRICS, SAMPLES, SUMMARY = "metrics.jsonl", "samples.jsonl", "summary.json"


@dataclass
class Lines:
    """The rows of a file that grows. Where it was replaced, as a run that goes on does, they begin again."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    generation: int = 0  # times that they began again
    at: int = 0  # bytes that were read
    file: int = 0  # its inode
    lock: threading.Lock = field(default_factory=threading.Lock)  # a server looks from several threads

    def look(self) -> tuple[int, list[Row]]:
        """The generation, and all rows there are by now; a last line without its end is not one yet."""
        with self.lock:
            self._read()
            return self.generation, list(self.rows)

    def _read(self) -> None:
        try:
            found = self.path.stat()
            if found.st_ino != self.file or found.st_size < self.at:
                self.rows, self.at = [], 0
                self.generation, self.file = self.generation + bool(self.file), found.st_ino
            with self.path.open("rb") as file:
                file.seek(self.at)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or just being replaced
            return
        self.at += len(whole) + len(end)
        self.rows += _parsed(whole)


class Followed:
    """A run: what it is, how far it is, its rows and samples."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.metrics, self.samples = Lines(path / METRICS), Lines(path / SAMPLES)

    def about(self) -> Row:
        """Its name, status, steps, model, the steps that are kept, and ruler, as JSON."""
        summary, (_, rows) = _json(self.path / SUMMARY), self.metrics.look()
        chosen = summary.get("variants") or {}
        return {
            "name": self.name,
            "status": summary.get("status") or "waiting",
            "step": rows[-1].get("step", 0) if rows else 0,
            "changed": _changed(self.path / METRICS),
            "steps": summary.get("steps"),
            "parts": " ".join(str(chosen[slot]) for slot in ("attention", "position", "norm", "mlp") if slot in chosen),
            "parameters": summary.get("parameters"),
            "checkpoints": list(kept(self.path)),
            "ruler": summary.get("ruler") or {},
        }


class Runs:
    """The runs in directories that somebody named, and those that come to be there. A number stands for each."""

    def __init__(self, places: Sequence[Path]) -> None:
        for place in places:
            if not place.is_dir():
                raise ConfigError(f"There is no directory {place}: name one of a run, a study or a sweep, or latest.")
        self.places, self.known, self.lock = list(places), dict[Path, Followed](), threading.Lock()

    def look(self) -> list[Followed]:
        """All of them, those first that were found first."""
        with self.lock:
            for place in self.places:
                for path in _runs_in(place):
                    self.known.setdefault(path, Followed(path, _name(path, place)))
            return list(self.known.values())

    def one(self, number: str | None) -> Followed:
        """The run that a number stands for. ConfigError for any other word: no path comes from outside."""
        found = list(self.known.values()) or self.look()
        if number is None or not number.isdecimal() or int(number) >= len(found):
            raise ConfigError(f"There is no run {number!r} here.")
        return found[int(number)]


def named(words: Sequence[str]) -> list[Path]:
    """The directories that words name: paths, and `latest`."""
    return [rundirs.find(word) if word == "latest" else Path(word).expanduser() for word in words]


def _runs_in(place: Path) -> Iterator[Path]:
    if (place / CONFIG).is_file():
        yield place
        return
    yield from sorted(path.parent for path in place.rglob(CONFIG) if (path.parent / TOKENIZER).is_file())


def _name(path: Path, place: Path) -> str:
    return "/".join(path.resolve().parts[-2:]) if path == place else f"{place.name}/{path.relative_to(place)}"


def _parsed(lines: bytes) -> list[Row]:
    found = []
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill has torn
            continue
        found += [row] if isinstance(row, dict) else []
    return found


def _json(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _changed(path: Path) -> float:
    """When a file was last written, in seconds; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
