"""What a person sees of a run: a live panel on a terminal, one line a step everywhere else.

Losses are nats per token and stand beside the n-gram ruler of the same split, {order: nats per token}.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Row = Mapping[str, Any]
Ruler = Mapping[int, float]  # order of the n-gram -> nats per token on the validation split
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # characters of the small loss curve
SAMPLE_LINES = 12
REFRESH_SECONDS = 0.25  # a refresh comes no sooner than this, and never costs more than 2% of the time
DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


class Display(Protocol):
    """What a run shows itself to: `start`, then rows, samples and notes as they come, then `finish`."""

    def start(self, total_steps: int, title: Sequence[str], *, ruler: Ruler | None = None) -> None:
        """Say what begins; `ruler` is {order: nats per token}."""

    def update(self, row: Row) -> None:
        """Take one row of metrics."""

    def sample(self, step: int, text: str) -> None:
        """Take a text that the model wrote after `step` steps."""

    def note(self, text: str) -> None:
        """Take one line for a person."""

    def finish(self, summary: Row) -> None:
        """Take the summary and end."""


def make_display(console: Console | None = None) -> Display:
    """Live on a terminal that can show it; plain in a pipe, a file, CI or a dumb terminal."""
    stream = cast("TextIO", console.file) if console else sys.stdout
    if not stream.isatty() or os.environ.get("CI") or not _speaks_unicode(stream):
        return PlainDisplay(stream)
    from rich.console import Console

    console = console or Console()
    return PlainDisplay(stream) if console.is_dumb_terminal else LiveDisplay(console)


class SilentDisplay:
    """Shows nothing: for all ranks but the first."""

    def start(self, total_steps: int, title: Sequence[str], *, ruler: Ruler | None = None) -> None:
        """Nothing."""

    def update(self, row: Row) -> None:
        """Nothing."""

    def sample(self, step: int, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def finish(self, summary: Row) -> None:
        """Nothing."""


@dataclass
class Progress:
    """What is known so far: the newest value of everything, the losses, and how fast the steps go by."""

    total_steps: int = 0  # steps; 0 = not known
    ruler: Ruler = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic  # seconds
    latest: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    _pace: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=20))

    def add(self, row: Row) -> None:
        """Take in one row of metrics."""
        self.latest.update({key: value for key, value in row.items() if value is not None})
        if row.get("train/loss") is not None:
            self.losses.append(row["train/loss"])
        self._pace.append((row["step"], self.clock()))

    def seconds_left(self) -> float | None:
        """Time left at the pace of the last rows, their evaluations and saves included; None when not known yet."""
        if len(self._pace) < 2:
            return None
        (first, began), (last, ended) = self._pace[0], self._pace[-1]
        if last <= first or self.total_steps < last:
            return None
        return (self.total_steps - last) * (ended - began) / (last - first)


class PlainDisplay:
    """Lines of text: for pipes, files, CI and terminals that cannot move their cursor."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stdout
        self._progress = Progress(clock=clock)

    def start(self, total_steps: int, title: Sequence[str], *, ruler: Ruler | None = None) -> None:
        """Print the title lines."""
        self._progress = Progress(total_steps, ruler or {}, self._progress.clock)
        for line in title:
            self._print(line)

    def update(self, row: Row) -> None:
        """Print one row of metrics as one line."""
        self._progress.add(row)
        self._print(describe(row, self._progress))

    def sample(self, step: int, text: str) -> None:
        """Print a text, indented."""
        self._print(f"  sample at step {step:,}:")
        for line in harmless(text).split("\n"):
            self._print(f"    | {line}")

    def note(self, text: str) -> None:
        """Print one line."""
        self._print(_one_line(text))

    def finish(self, summary: Row) -> None:
        """Print what the run came to."""
        for label, value in summarize(summary):
            self._print(f"{label:>16}  {value}")

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"  # an ASCII pipe shows "?" where it has no letter
        print(harmless(line).encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)


class LiveDisplay:
    """A panel that redraws itself in place. No thread: it is drawn from `update`, at most four times a second."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._progress = Progress(clock=clock)
        self._live: Live | None = None
        self._sample: tuple[int, str] | None = None
        self._next = 0.0

    def start(self, total_steps: int, title: Sequence[str], *, ruler: Ruler | None = None) -> None:
        """Print the title lines and open the panel below them."""
        from rich.live import Live

        self._progress = Progress(total_steps, ruler or {}, self._clock)
        for line in title:
            self._say(line)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()
        atexit.register(self._live.stop)  # whatever ends the process, the cursor comes back

    def update(self, row: Row) -> None:
        """Take in one row of metrics and redraw when it is time; the first is always drawn."""
        self._progress.add(row)
        if self._clock() >= self._next:
            self._draw()

    def sample(self, step: int, text: str) -> None:
        """Show a text in the panel in place of the one before."""
        self._sample = (step, harmless(text))
        self._draw()

    def note(self, text: str) -> None:
        """Print one line above the panel, where it stays."""
        self._say(_one_line(text))

    def finish(self, summary: Row) -> None:
        """Leave the panel as it is last, and print below it what the run came to."""
        from rich.table import Table
        from rich.text import Text

        if self._live:
            self._draw()
            self._live.stop()
            atexit.unregister(self._live.stop)
            self._live = None
        table = Table.grid(padding=(0, 2))
        for label, value in summarize(summary):
            table.add_row(Text(label, "bold"), Text(harmless(value), overflow="fold"))
        self._console.print(table)

    def _say(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text(harmless(line)))

    def _draw(self) -> None:
        if self._live:
            began = self._clock()
            self._live.update(self._panel(), refresh=True)
            now = self._clock()
            self._next = now + max(REFRESH_SECONDS, 50 * (now - began))

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step = self._progress.latest.get("step", 0)
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            ProgressBar(max(self._progress.total_steps, 1), step),
            Text("  ".join(filter(None, (_step(step, self._progress), _time_left(self._progress))))),
        )
        body = Table.grid(padding=(0, 2))
        for label, value in self._facts():
            body.add_row(Text(label, "dim"), Text(value))
        return Group(head, body, *self._sample_panel())

    def _facts(self) -> list[tuple[str, str]]:
        latest = self._progress.latest
        facts = []
        if "train/loss" in latest:
            facts.append(("train", f"{latest['train/loss']:.3f}  {sparkline(self._progress.losses)}"))
        if "val/loss" in latest:
            place = place_on_ruler(latest["val/loss"], self._progress.ruler)
            bits = f"{latest['val/bpb']:.3f} bits per byte" if "val/bpb" in latest else ""
            facts.append(("val", " · ".join(filter(None, (f"{latest['val/loss']:.3f}", place, bits)))))
        if pace := "  ".join([*_rates(latest), *_tokens(latest)]):
            facts.append(("pace", pace))
        return facts

    def _sample_panel(self) -> list[RenderableType]:
        from rich.panel import Panel
        from rich.text import Text

        if self._sample is None:
            return []
        step, text = self._sample
        room = max(1, min(SAMPLE_LINES, self._console.height - 8))
        lines = Text(text).wrap(self._console, max(1, self._console.width - 4))[:room]
        title = Text(f"sample at step {step:,}", "dim")
        return [Panel(Text("\n").join(lines), title=title, title_align="left", border_style="dim")]


def describe(row: Row, progress: Progress) -> str:
    """One row as one line: `step 100/2,000  loss 2.341  val 2.301 · behind the 3-gram 2.03  ...  1m20s left`."""
    parts = [_step(row["step"], progress)]
    if row.get("train/loss") is not None:
        parts.append(f"loss {row['train/loss']:.3f}")
    if row.get("val/loss") is not None:
        place = place_on_ruler(row["val/loss"], progress.ruler)
        right = f"{row['val/accuracy']:.1%} right" if row.get("val/accuracy") is not None else ""
        parts.append(" · ".join(filter(None, (f"val {row['val/loss']:.3f}", place, right))))
    return "  ".join(filter(None, [*parts, *_rates(row), _time_left(progress)]))


def place_on_ruler(loss: float, ruler: Ruler) -> str:
    """Where a loss (nats per token) stands: `beats the 4-gram 1.80, 5-gram 1.64 next`; empty without a ruler."""
    beaten = [order for order in ruler if loss < ruler[order]]
    ahead = [order for order in ruler if not loss < ruler[order]]  # a NaN beats nothing
    best = min(beaten, key=lambda order: (ruler[order], order), default=None)
    next_one = max(ahead, key=lambda order: (ruler[order], -order), default=None)
    parts = [] if best is None else [f"beats {level(best)} {ruler[best]:.2f}"]
    if next_one is not None:
        aim = f"{level(next_one)} {ruler[next_one]:.2f}".removeprefix("the " if parts else "")
        parts.append(f"{aim} next" if parts else f"behind {aim}")
    return ", ".join(parts)


def level(order: int) -> str:
    """What a level of the ruler is called: an n-gram, or of order 0 a uniform guess."""
    return f"the {order}-gram" if order else "chance"


def summarize(summary: Row) -> list[tuple[str, str]]:
    """The lines of summary.json that a person wants, as (label, value); what the summary lacks is left out."""
    lines = [(label, write(summary[key])) for key, label, write in SUMMARY if summary.get(key) is not None]
    ruler = {int(order): nats for order, nats in (summary.get("ruler") or {}).items()}
    best = summary.get("best_val_loss", summary.get("val_loss"))
    if best is not None and (place := place_on_ruler(best, ruler)):
        lines.insert(len([label for label, _ in lines if label in RESULTS]), ("n-gram ruler", place))
    if summary.get("run_dir") is not None and summary.get("status") in ("interrupted", "failed"):
        lines.append(("go on", f"python -m gptlab.train resume={shlex.quote(str(summary['run_dir']))}"))
    if summary.get("run_dir") is not None:
        lines.append(("sample from it", f"python -m gptlab.sample {shlex.quote(str(summary['run_dir']))}"))
    return lines


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """The values as at most `width` bars, lowest to highest; those that are not finite are a blank."""
    width = min(width, len(values))
    # The last value is always shown, the others evenly spaced before it.
    shown = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    finite = [value for value in shown if abs(value) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(BARS) - 1
    return "".join(
        BARS[round((value - low) / span * top) if span else 0] if abs(value) < float("inf") else " " for value in shown
    )


def harmless(text: str) -> str:
    """`text` with nothing left that steers a terminal: escapes, control characters, direction overrides."""
    return "".join(char if char in "\n\t" or char.isprintable() else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode picture of a control character: ␛ for ESC
    if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(char) in DIRECTIONS:
        return "\N{REPLACEMENT CHARACTER}"
    return char


def duration(seconds: float) -> str:
    """Seconds as `45s`, `1m20s`, `2h05m` or `3d04h`."""
    whole = round(seconds)
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{part}"
    return f"{whole}s"


def _step(step: int, progress: Progress) -> str:
    return f"step {step:,}" + (f"/{progress.total_steps:,}" if progress.total_steps else "")


def _time_left(progress: Progress) -> str:
    left = progress.seconds_left()
    return "" if left is None else f"{duration(left)} left"


def _rates(row: Row) -> list[str]:
    texts = (("lr", "lr {:.1e}"), ("tokens_per_second", "{:,.0f} tok/s"), ("mfu", "mfu {:.0%}"))
    return [text.format(row[key]) for key, text in texts if row.get(key) is not None]


def _tokens(row: Row) -> list[str]:
    return [f"{row['tokens']:,} tokens"] if row.get("tokens") is not None else []


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _speaks_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def _nats(loss: float) -> str:
    return f"{loss:.4f} nats per token"


# What summary.json calls it, what a person calls it, how it is written.
SUMMARY: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("status", "status", str),
    ("train_loss", "train loss", _nats),
    ("val_loss", "val loss", _nats),
    ("best_val_loss", "best val loss", _nats),
    ("best_step", "best step", "{:,}".format),
    ("val_bpb", "val", "{:.4f} bits per byte".format),
    ("accuracy", "right", lambda shares: ", ".join(f"{name} {share:.4f}" for name, share in shares.items())),
    ("parameters", "parameters", "{:,}".format),
    ("tokens", "trained on", "{:,} tokens".format),
    ("seconds", "time", duration),
    ("run_dir", "run", str),
    ("curve", "curve", str),
)
RESULTS = frozenset({"status", "train loss", "val loss", "best val loss", "val", "right"})
