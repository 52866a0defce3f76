"""What a person sees of a study's points: all of them live on a terminal, a line for each that ended elsewhere.

It only reads the files of the points, so it does not matter where they run.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gptlab.comparison.records import TEST
from gptlab.display import duration, harmless
from gptlab.points import Order

REFRESH_SECONDS = 0.5
TAIL_BYTES = 8192  # of metrics.jsonl: the last rows
ENDED = ("done", "pruned", "failed")


class Point:
    """One point as its files tell of it now."""

    def __init__(self, order: Order, metric: str) -> None:
        self.order, self.metric = order, metric
        self.status = "waiting"
        self.rows: list[dict[str, Any]] = []
        self.ended = False

    @property
    def steps(self) -> int:
        """Steps it takes to the end."""
        return int(self.order.config["trainer"]["steps"])

    @property
    def title(self) -> str:
        """swiglu seed 3, tune swiglu lr 0.003 seed 10000, x0.5 swiglu seed 3."""
        extra = [f"{key} {value:g}" for key, value in self.order.extra.items()]
        phase = [] if self.order.phase == TEST else [self.order.phase]
        return " ".join([*phase, self.order.arm, *extra, f"seed {self.order.seed}"])

    def look(self) -> None:
        """Read the files again."""
        if not self.ended:
            self.status = self.order.status()
            self.rows = tail(self.order.run_dir / "metrics.jsonl")
            self.ended = self.status in ENDED

    def latest(self, key: str) -> Any:
        """The newest value of a number; None where there is none yet."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    @property
    def seconds(self) -> float:
        """Since it began, as of its newest row."""
        return float(self.latest("seconds") or 0)

    @property
    def seconds_left(self) -> float | None:
        """At its pace so far; None before its second row."""
        step = self.latest("step")
        return self.seconds * (self.steps - step) / step if step and step > 1 else None


def tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a file of JSON lines that another process is writing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    whole = lines[:-1] if size <= TAIL_BYTES else lines[1:-1]
    return [json.loads(line) for line in whole]


@contextmanager
def watching(orders: Sequence[Order], metric: str, console: Console) -> Iterator[None]:
    """Within, the points are shown as they go on; the reading is done by a thread."""
    view = _Panel if console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI") else _Lines
    shown, over = view([Point(order, metric) for order in orders], console), threading.Event()

    def look() -> None:
        while not over.wait(REFRESH_SECONDS):
            shown.refresh()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        shown.refresh()
        shown.close()


class _Lines:
    """A line for each point that has ended: for pipes, files and CI."""

    def __init__(self, points: Sequence[Point], console: Console) -> None:
        self.points, self.console, self.n_ended = points, console, 0

    def refresh(self) -> None:
        """Say what has ended since."""
        for point in self.points:
            if not point.ended:
                point.look()
                if point.ended:
                    self.n_ended += 1
                    self._say(f"{self.n_ended} of {len(self.points)} {outcome(point)}")

    def close(self) -> None:
        """Nothing is left to do."""

    def _say(self, line: str) -> None:
        self.console.print(Text(harmless(line)), soft_wrap=True)


class _Panel(_Lines):
    """The points in progress, a bar for all of them; what failed is said above, where it stays."""

    def __init__(self, points: Sequence[Point], console: Console) -> None:
        super().__init__(points, console)
        self.began = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self.live.start()

    def refresh(self) -> None:
        """Draw again."""
        super().refresh()
        self.live.update(self._panel(), refresh=True)

    def close(self) -> None:
        """Leave the panel as it is last."""
        self.live.stop()

    def _panel(self) -> Group:
        share = sum(_share(point) for point in self.points) / len(self.points)
        passed = time.monotonic() - self.began
        left = f"{duration(passed / share - passed)} left" if 0.005 < share < 1 else ""
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(ProgressBar(1.0, share), Text(f"{self.n_ended} of {len(self.points)}  {left}"))
        running = [point for point in self.points if point.status == "running"]
        room = max(1, self.console.height - 6)
        body = Table.grid(padding=(0, 2))
        for point in running[:room]:
            body.add_row(*(Text(cell) for cell in _cells(point)))
        more = len(running) - room
        return Group(head, body, *([Text(f"and {more} more", "dim")] if more > 0 else []))


def outcome(point: Point) -> str:
    """What became of a point, in a line."""
    if point.status == "failed":
        return f"{point.title} failed: {point.order.error() or 'no reason was left'} ({point.order.log})"
    value = point.latest(point.metric)
    found = "no value" if value is None else f"{value:.4f}"
    return f"{point.title} {point.metric} {found} in {duration(point.seconds)}"


def _share(point: Point) -> float:
    return 1.0 if point.ended else (point.latest("step") or 0) / point.steps


def _cells(point: Point) -> list[str]:
    loss, value, left = point.latest("train/loss"), point.latest(point.metric), point.seconds_left
    return [
        point.title,
        f"step {point.latest('step') or 0:,}/{point.steps:,}",
        "" if loss is None else f"loss {loss:.3f}",
        "" if value is None else f"{point.metric} {value:.3f}",
        "" if left is None else f"{duration(left)} left",
    ]
