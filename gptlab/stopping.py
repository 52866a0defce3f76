"""Ctrl-C and SIGTERM as a wish to stop after the step in progress; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deaf() -> Iterator[None]:
    """Within, SIGTERM is not heard: what is done there takes a moment and is worth finishing."""
    try:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within, the signals only set what the yielded function tells. Outside the main thread they are left alone."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        note("Stopping after this step, to save. Once more to stop at once.")

    try:
        before = {number: signal.signal(number, receive) for number in SIGNALS}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
