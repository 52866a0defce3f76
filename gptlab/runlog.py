"""Where a run's numbers go: metrics.jsonl and samples.jsonl always, the display and a dashboard beside them.

One strict JSON object a line, numbers that are not finite as null. Nothing that fails in here ends a training.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from gptlab.display import Display
from gptlab.errors import ConfigError, DataError
from gptlab.files import write_atomically

Note = Callable[[str], None]


class Dashboard(Protocol):
    """What shows a run elsewhere. It raises nothing."""

    def update(self, row: Mapping[str, Any]) -> None:
        """Show one row of metrics."""

    def sample(self, step: int, text: str) -> None:
        """Show a text of the model."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Show the summary; nothing comes after it."""


class RunLog:
    """The one object a training reports to. Appends to what `run_dir` holds; ConfigError where it cannot be written."""

    def __init__(self, run_dir: Path, *, display: Display, wandb: Dashboard | None = None) -> None:
        self.run_dir = run_dir
        self._display, self._seen, self.wandb = display, True, wandb
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._metrics = _Lines(run_dir / "metrics.jsonl", self.note)
            self._samples = _Lines(run_dir / "samples.jsonl", self.note)
        except OSError as error:
            raise ConfigError(
                f"run_dir must be writable, but {run_dir} is not ({error.strerror}). Choose another."
            ) from None

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Write one row: `step`, `tokens`, `seconds` and whatever else was measured (nats, bits, tokens/s)."""
        self._metrics.append(row)
        self._show(self._display.update, row)
        if self.wandb:
            self.wandb.update(row)

    def sample(self, step: int, text: str) -> None:
        """Keep a text the model wrote after `step` steps."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no valid JSON
        self._samples.append({"step": step, "text": text})
        self._show(self._display.sample, step, text)
        if self.wandb:
            self.wandb.sample(step, text)

    def note(self, text: str) -> None:
        """Say one line to whoever watches."""
        self._show(self._display.note, text)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, finish the dashboard and the display."""
        self._metrics.flush()
        self._samples.flush()
        try:
            write_summary(self.run_dir, summary)
        except DataError as error:
            self.note(f"{error} The checkpoints are not affected.")
        if self.wandb:
            self.wandb.finish(summary)
        self._show(self._display.finish, summary)

    def _show(self, action: Callable[..., None], *arguments: object) -> None:
        """A terminal that went away (a closed pipe, a dropped connection) is no reason to stop training."""
        if self._seen:
            try:
                action(*arguments)
            except OSError:
                self._seen = False


class SilentLog(RunLog):
    """The log of a rank that is not the first: it says and writes nothing."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.wandb = run_dir, None

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def sample(self, step: int, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


class _Lines:
    """A file of JSON lines. What a full disk refuses waits in memory and is written when there is room again."""

    def __init__(self, path: Path, note: Note) -> None:
        self._path, self._note = path, note
        self._waiting, self._failing = b"", False
        _drop_torn_end(path)

    def append(self, row: Mapping[str, Any]) -> None:
        self._waiting += (to_json(row) + "\n").encode("utf-8", "replace")
        self.flush()

    def flush(self) -> None:
        try:
            if self._waiting:
                _append_whole(self._path, self._waiting)
        except OSError as error:
            if not self._failing:
                self._note(f"{self._path.name} cannot be written ({error.strerror}); its rows are kept in memory.")
            self._failing = True
            return
        if self._failing:
            self._note(f"{self._path.name} is written again; no row is missing.")
        self._waiting, self._failing = b"", False


def _append_whole(path: Path, data: bytes) -> None:
    # Unbuffered, so that a row is in the kernel's hands at once: kill -9 cannot take it back.
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def _drop_torn_end(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)


def to_json(value: object) -> str:
    """`value` as JSON that strict parsers accept: NaN and infinity become null, keys become strings."""
    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False)


def strict(value: Any) -> Any:
    """`value` in what JSON knows: mappings, lists, strings, finite numbers; null for the others."""
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [strict(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary` to run_dir/summary.json, atomically. DataError when it cannot be."""
    path = run_dir / "summary.json"
    text = json.dumps(strict(summary), ensure_ascii=False, allow_nan=False, indent=2)
    write_atomically(path, (text + "\n").encode("utf-8", "replace"))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. A last line that a killed process left half written is passed over.

    Raises DataError when the file is not there, or when a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Name the directory of a run.") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise DataError(f"Each line of {path} must be one JSON object, but line {number} is not. Delete that line.")
    return rows


def rewind(run_dir: Path, step: int) -> None:
    """Drop what a run wrote after `step`: a run resumed from its checkpoint there writes those rows again."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = run_dir / name
        if path.exists():
            kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
            write_atomically(path, "".join(to_json(row) + "\n" for row in kept).encode("utf-8"))
