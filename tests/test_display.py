"""What a person sees: the same facts live and plain, and nothing that a model writes can steer the terminal."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from gptlab.display import (
    BARS,
    LiveDisplay,
    PlainDisplay,
    duration,
    harmless,
    make_display,
    place_on_ruler,
    sparkline,
    summarize,
)

RULER = {1: 3.35, 2: 2.48, 3: 2.03, 4: 1.80, 5: 1.64}
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07 [bold red]not bold[/] :smile: \u202egnp.exe \x9b31m \r\b\ud800 caf\u00e9\tend\nline two"
)
SUMMARY = {
    "status": "done",
    "train_loss": 1.5,
    "val_loss": 1.75,
    "best_val_loss": 1.7,
    "val_bpb": 2.4527,
    "parameters": 812_345,
    "tokens": 1_536_000,
    "seconds": 3723,
    "ruler": {str(order): nats for order, nats in RULER.items()},
    "run_dir": "runs/my run",
    "curve": "runs/my run/curve.png",
}


class Clock:
    """A clock that moves when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "tokens": step * 768, "seconds": step * 0.1, "train/loss": 4.0 - step / 1000, **more}


def live(width: int = 100) -> tuple[LiveDisplay, Terminal, Clock]:
    stream, clock = Terminal(), Clock()
    console = Console(file=stream, force_terminal=True, width=width, height=30, _environ={"TERM": "xterm-256color"})
    return LiveDisplay(console, clock), stream, clock


def plain() -> tuple[PlainDisplay, Terminal, Clock]:
    stream, clock = Terminal(), Clock()
    return PlainDisplay(stream, clock), stream, clock


def test_a_plain_line_says_it_all() -> None:
    display, stream, clock = plain()
    display.start(2000, ["a title"], ruler=RULER)
    display.update(row(50))
    clock.now += 4.0
    display.update(row(100, **{"val/loss": 1.72, "lr": 1e-3, "tokens_per_second": 41_000.4, "mfu": 0.417}))
    assert stream.getvalue().splitlines() == [
        "a title",
        "step 50/2,000  loss 3.950",
        (
            "step 100/2,000  loss 3.900  val 1.720 · beats the 4-gram 1.80, 5-gram 1.64 next"
            "  lr 1.0e-03  41,000 tok/s  mfu 42%  2m32s left"
        ),
    ]


def test_the_time_left_follows_the_latest_pace() -> None:
    display, stream, clock = plain()
    display.start(1000, [])
    display.update(row(1))
    clock.now += 1000.0  # a slow first step (compilation) is forgotten after a while
    for step in range(2, 30):
        clock.now += 1.0
        display.update(row(step))
    assert stream.getvalue().splitlines()[-1].endswith("16m11s left")


@pytest.mark.parametrize(
    ("loss", "place"),
    [
        (4.0, "behind the 1-gram 3.35"),
        (3.0, "beats the 1-gram 3.35, 2-gram 2.48 next"),
        (1.72, "beats the 4-gram 1.80, 5-gram 1.64 next"),
        (1.64, "beats the 4-gram 1.80, 5-gram 1.64 next"),  # equal is not better
        (1.0, "beats the 5-gram 1.64"),
        (float("nan"), "behind the 1-gram 3.35"),
    ],
)
def test_a_loss_stands_beside_the_ruler(loss: float, place: str) -> None:
    assert place_on_ruler(loss, RULER) == place
    assert place_on_ruler(loss, {}) == ""


def test_a_ruler_that_gets_worse_with_order_is_read_by_its_levels() -> None:
    assert place_on_ruler(5.0, {1: 7.0, 2: 4.8, 3: 5.2}) == "beats the 3-gram 5.20, 2-gram 4.80 next"


def test_nothing_the_model_writes_can_steer_the_terminal() -> None:
    safe = harmless(HOSTILE)
    assert not {"\x1b", "\x07", "\x9b", "\r", "\b", "\u202e", "\ud800"} & set(safe)
    assert "caf\u00e9\tend\nline two" in safe
    assert "\N{SYMBOL FOR ESCAPE}[2J" in safe
    assert len(safe) == len(HOSTILE)


def test_ordinary_text_is_left_as_it_is() -> None:
    text = "def f(x):\n\treturn 'é中文🙂👩\u200d💻'\u00a0# ok"
    assert harmless(text) == text


@pytest.mark.parametrize("make", [live, plain])
def test_a_hostile_sample_arrives_as_text(make: Any) -> None:
    display, stream, _ = make()
    display.start(10, [HOSTILE])
    display.sample(3, HOSTILE)
    display.note(HOSTILE)
    display.finish({"status": HOSTILE})
    shown = stream.getvalue()
    for sequence in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\x1b[31m"):
        assert sequence not in shown
    assert "[bold red]not bold[/] :smile:" in shown


def test_an_ascii_pipe_does_not_end_a_training() -> None:
    raw = io.BytesIO()
    display = PlainDisplay(io.TextIOWrapper(raw, encoding="ascii"))
    display.start(10, ["größe"])
    display.update(row(1, **{"val/loss": 2.0}))
    display.sample(1, "日本語")
    assert raw.getvalue().startswith(b"gr??e\n")


@pytest.mark.parametrize("make", [live, plain])
def test_the_end_says_where_the_run_stands_and_how_to_go_on(make: Any) -> None:
    display, stream, _ = make()
    display.start(100, [], ruler=RULER)
    display.update(row(100))
    display.finish(SUMMARY)
    shown = stream.getvalue()
    for fact in (
        "done",
        "1.7500 nats per token",
        "1.7000 nats per token",
        "2.4527 bits per byte",
        "beats the 4-gram 1.80, 5-gram 1.64 next",
        "812,345",
        "1,536,000 tokens",
        "1h02m",
        "runs/my run/curve.png",
        "python -m gptlab.sample 'runs/my run'",
    ):
        assert fact in shown, fact


@pytest.mark.parametrize("make", [live, plain])
def test_a_run_that_failed_before_it_started_still_ends_in_words(make: Any) -> None:
    display, stream, _ = make()
    display.finish({"status": "failed"})
    assert "failed" in stream.getvalue()


def test_the_ruler_stands_right_after_the_losses() -> None:
    labels = [label for label, _ in summarize(SUMMARY)]
    assert labels[labels.index("n-gram ruler") - 1 :][:3] == ["val", "n-gram ruler", "parameters"]


def test_the_live_display_draws_first_and_then_at_most_four_times_a_second() -> None:
    display, stream, clock = live()
    display.start(1000, [])
    draws = 0
    for step in range(1, 101):
        before = len(stream.getvalue())
        display.update(row(step))
        draws += len(stream.getvalue()) > before
        assert draws >= 1  # the first step is on the screen
        clock.now += 0.01
    display.finish({})
    assert draws <= 5


def test_the_live_display_starts_no_thread_and_gives_the_cursor_back() -> None:
    display, stream, _ = live()
    before = threading.active_count()
    display.start(10, [])
    display.update(row(1))
    assert threading.active_count() == before
    display.finish({"status": "interrupted"})
    shown = stream.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


@pytest.mark.parametrize("width", [20, 60, 200])
def test_the_panel_fits_and_shows_the_newest_sample(width: int) -> None:
    display, stream, _ = live(width)
    display.start(10, [], ruler=RULER)
    display.update(row(1, **{"val/loss": 1.72, "val/bpb": 2.4, "lr": 1e-3, "tokens_per_second": 1.0, "mfu": 0.1}))
    display.sample(1, "first words")
    display.sample(2, "x" * 5000 + "\n" * 100)
    display.note("a note")
    display.finish({})
    shown = stream.getvalue()
    assert "xxxx" in shown
    assert "a note" in shown
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown))
    assert max(map(len, lines)) <= width


def test_rows_of_nan_and_null_are_shown_not_raised() -> None:
    for make in (live, plain):
        display, stream, clock = make()
        display.start(0, [], ruler=RULER)
        for step, loss in enumerate([float("nan"), None, float("inf"), 2.0], start=1):
            display.update({"step": step, "train/loss": loss, "val/loss": loss})
            clock.now += 1.0
        display.finish({"val_loss": None})
        assert "nan" in stream.getvalue()


def test_a_sparkline_shows_the_course_of_a_loss() -> None:
    assert sparkline([float(value) for value in range(8)]) == BARS
    assert sparkline([1.0, 1.0]) == BARS[0] * 2
    assert sparkline([2.0, float("nan"), 1.0]) == f"{BARS[-1]} {BARS[0]}"
    assert sparkline([]) == sparkline([float("nan")]) == ""
    falling = sparkline([1000.0 - step for step in range(1000)])
    assert len(falling) == 40
    assert falling[-1] == BARS[0]
    assert list(falling) == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (45, "45s"), (59.6, "1m00s"), (80, "1m20s"), (7500, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h")],
)
def test_a_duration_is_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_live_only_on_a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    xterm, dumb = {"TERM": "xterm"}, {"TERM": "dumb"}
    pipe, ascii_terminal = io.StringIO(), Terminal()
    ascii_terminal.encoding = "ascii"
    assert isinstance(make_display(Console(file=Terminal(), _environ=xterm)), LiveDisplay)
    assert isinstance(make_display(Console(file=Terminal(), _environ=dumb)), PlainDisplay)
    assert isinstance(make_display(Console(file=ascii_terminal, _environ=xterm)), PlainDisplay)
    # Colours that are forced do not make a pipe a terminal.
    assert isinstance(make_display(Console(file=pipe, _environ={"FORCE_COLOR": "1"})), PlainDisplay)
    monkeypatch.setenv("CI", "true")
    assert isinstance(make_display(Console(file=Terminal(), _environ=xterm)), PlainDisplay)
