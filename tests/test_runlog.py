"""What a run writes down: whole lines, strict JSON, and no failure of a disk or a terminal that ends it."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import ConfigError, DataError
from gptlab.runlog import RunLog, read_rows, rewind, write_summary


class Watcher:
    """A display that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def update(self, row: Any) -> None:
        self.seen.append(("row", row["step"]))

    def sample(self, step: int, text: str) -> None:
        self.seen.append(("sample", step, text))

    def note(self, text: str) -> None:
        self.seen.append(("note", text))

    def finish(self, summary: Any) -> None:
        self.seen.append(("finish", summary["status"]))

    @property
    def notes(self) -> list[str]:
        return [what[1] for what in self.seen if what[0] == "note"]


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "tokens": 64 * step, "seconds": step / 10, "train/loss": 4.0 / step, **more}


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a real error from the kernel, as a full disk gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_is_on_disk_before_the_next_and_every_watcher_hears_of_it(tmp_path: Path) -> None:
    watcher = Watcher()
    log = RunLog(tmp_path, display=watcher)
    for step in (1, 2, 3):
        log.metrics(row(step))
        assert read_rows(tmp_path / "metrics.jsonl")[-1] == row(step)
    log.sample(3, "two\nlines \u2028 é \ud800")  # half a surrogate pair is no JSON
    log.close({"status": "done"})
    assert read_rows(tmp_path / "samples.jsonl") == [{"step": 3, "text": "two\nlines \u2028 é ?"}]
    assert [what[0] for what in watcher.seen] == ["row", "row", "row", "sample", "finish"]
    assert strict((tmp_path / "summary.json").read_text()) == {"status": "done"}


def test_every_line_is_strict_json_whatever_the_numbers(tmp_path: Path) -> None:
    import numpy as np
    import torch

    log = RunLog(tmp_path, display=Watcher())
    odd = {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.int64(7), "e": torch.tensor(2.5), "f": None}
    log.metrics(row(1, **odd))
    line = (tmp_path / "metrics.jsonl").read_text()
    assert strict(line) == row(1, a=None, b=None, c=0.5, d=7, e=2.5, f=None)
    write_summary(tmp_path, {"ruler": {1: 3.3}, "best": math.inf, "run_dir": tmp_path, "shape": (1, 2)})
    text = (tmp_path / "summary.json").read_text()
    assert strict(text) == {"ruler": {"1": 3.3}, "best": None, "run_dir": str(tmp_path), "shape": [1, 2]}


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    log = RunLog(tmp_path, display=Watcher())
    values = [0.1 + 0.2, 1e-308, 1 / 3, 123456789.123456789]
    for step, value in enumerate(values):
        log.metrics({"step": step, "train/loss": value})
    assert [found["train/loss"] for found in read_rows(tmp_path / "metrics.jsonl")] == values


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    RunLog(tmp_path, display=Watcher()).metrics(row(1))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + whole[: min(cut, len(whole) - 2)])
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1)]
    RunLog(tmp_path, display=Watcher()).metrics(row(2))
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1), row(2)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is not"):
        read_rows(tmp_path / "metrics.jsonl")


def test_kill_9_leaves_whole_rows_that_a_resume_goes_on_from(tmp_path: Path) -> None:
    code = """
        import sys; from pathlib import Path; from gptlab.display import PlainDisplay; from gptlab.runlog import RunLog
        log = RunLog(Path(sys.argv[1]), display=PlainDisplay(open("/dev/null", "w")))
        for step in range(1, 10**9): log.metrics({"step": step, "pad": "x" * (step % 5000)})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
    path = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [found["step"] for found in read_rows(path)]
    assert steps == list(range(1, len(steps) + 1))
    rewind(tmp_path, 7)
    log = RunLog(tmp_path, display=Watcher())
    log.metrics({"step": 8})
    assert [found["step"] for found in read_rows(path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_rewind_drops_what_came_after_in_both_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path, display=Watcher())
    for step in range(1, 6):
        log.metrics(row(step))
        log.sample(step, f"text {step}")
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    rewind(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:3])
    assert [found["step"] for found in read_rows(tmp_path / "samples.jsonl")] == [1, 2, 3]
    rewind(tmp_path / "new", 0)  # nothing there, nothing to do
    rewind(tmp_path, 0)
    assert read_rows(tmp_path / "metrics.jsonl") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_a_full_disk_costs_no_row(tmp_path: Path) -> None:
    watcher = Watcher()
    log = RunLog(tmp_path, display=watcher)
    log.metrics(row(1))
    with file_limit((tmp_path / "metrics.jsonl").stat().st_size + 20):  # room for a part of a row
        for step in (2, 3, 4):
            log.metrics(row(step))
        assert read_rows(tmp_path / "metrics.jsonl") == [row(1)]
    log.metrics(row(5))
    assert read_rows(tmp_path / "metrics.jsonl") == [row(step) for step in range(1, 6)]
    said_when_it_began, said_when_it_ended = watcher.notes
    assert said_when_it_began.startswith("metrics.jsonl cannot be written")
    assert said_when_it_ended == "metrics.jsonl is written again; no row is missing."


def test_a_full_disk_at_the_end_leaves_the_old_summary_whole(tmp_path: Path) -> None:
    watcher = Watcher()
    log = RunLog(tmp_path, display=watcher)
    write_summary(tmp_path, {"status": "running"})
    with file_limit(10):
        log.close({"status": "done"})
    assert strict((tmp_path / "summary.json").read_text()) == {"status": "running"}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert "summary.json cannot be written (File too large)" in watcher.notes[0]
    assert watcher.seen[-1] == ("finish", "done")


def test_a_terminal_that_went_away_does_not_end_the_training(tmp_path: Path) -> None:
    class Gone(Watcher):
        def update(self, row: Any) -> None:
            raise BrokenPipeError

    watcher = Gone()
    log = RunLog(tmp_path, display=watcher)
    for step in (1, 2):
        log.metrics(row(step))
    log.close({"status": "done"})
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1), row(2)]
    assert watcher.seen == []


def test_a_run_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir must be writable"):
        RunLog(tmp_path / "file" / "run", display=Watcher())
