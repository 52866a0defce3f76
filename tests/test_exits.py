"""How a command ends, and what a signal asks of it."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import tiny

from gptlab.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from gptlab.stopping import stop_requests


def end_of(error: BaseException | None) -> tiny.Ended:
    def main(argv: list[str]) -> None:
        if error is not None:
            raise error

    return tiny.call(SimpleNamespace(main=main))


@pytest.mark.parametrize(
    "error, code",
    [
        (None, 0),
        (ConfigError("no\nway"), 2),
        (DataError("no way"), 2),
        (CheckpointError("no way"), 2),
        (TrainingError("no way"), 1),
        (Interrupted(), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_an_end_has_its_code_and_at_most_one_line(error: BaseException | None, code: int) -> None:
    ended = end_of(error)
    assert ended.code == code
    assert ended.err == ("gptlab: no way\n" if code in (1, 2) else "")


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        end_of(ZeroDivisionError())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_and_the_second_one_an_order(number: signal.Signals) -> None:
    before, notes = signal.getsignal(number), []
    with stop_requests(notes.append) as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
        assert len(notes) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    told: list[bool] = []

    def work() -> None:
        with stop_requests(lambda text: None) as stopping:
            told.append(stopping())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False]
