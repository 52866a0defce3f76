"""What a run writes down: whole lines, strict JSON, and no failure of a disk, a terminal or W&B that ends it."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptlab import runlog
from gptlab.errors import ConfigError, DataError
from gptlab.runlog import RunLog, open_wandb, read_rows, rewind, write_summary

KEY = "0" * 40


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


# --- W&B ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """W&B as on a machine where nobody has used it; its settings and its service end with the test."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path / "run"
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, parts with a seven-byte head)."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as messages

    wandb.teardown()  # as at the end of a process: everything is in the file after it
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little left of a block for a head: filled up with zeros
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or the last part of one
            yield messages.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The rows W&B wrote offline, in the order of their files."""
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                found.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    return [{key: json.loads(value) for key, value in each.items()} for each in found]


def start(run_dir: Path, watcher: Watcher, logger: str = "auto") -> RunLog:
    run_dir.mkdir(exist_ok=True)
    about: dict[str, Any] = {"name": "n", "project": "p", "config": {"model": {"attention": {"name": "flash"}}}}
    return RunLog(run_dir, display=watcher, wandb=open_wandb(logger, run_dir, note=watcher.note, **about))


def test_offline_wandb_has_the_rows_of_metrics_jsonl_and_says_how_to_sync(
    wandb_alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watcher = Watcher()
    log = start(wandb_alone, watcher)
    for step in range(1, 400):
        log.metrics(row(step, **{"val/loss": 3.0} if step % 100 == 0 else {}))
    log.sample(399, "<b>text</b>")
    log.close({"status": "done", "ruler": {1: 3.3}})
    found = history(wandb_alone)
    kept = [{key: value for key, value in each.items() if not key.startswith("_")} for each in found]
    assert kept[:399] == read_rows(wandb_alone / "metrics.jsonl")
    assert kept[399]["step"] == 399
    assert kept[399]["sample/_type"] == "html-file"
    assert len(kept) == 401
    (table,) = wandb_alone.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [[399, "<b>text</b>"]]
    assert watcher.notes == [
        f"W&B offline: no API key (wandb login). To upload: wandb sync {wandb_alone}/wandb/offline-run-*"
    ]
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_is_one_wandb_run(wandb_alone: Path) -> None:
    ids = []
    for first in (1, 3):
        log = start(wandb_alone, Watcher())
        for step in (first, first + 1, first + 2):
            log.metrics(row(step))
        log.close({"status": "interrupted"})
        ids += [path.name for path in wandb_alone.glob("wandb/offline-run-*/*.wandb")]
        time.sleep(1.1)  # W&B names its directories by the second
    assert len(set(ids)) == 1
    assert ids[0] == f"run-{(wandb_alone / 'wandb_id').read_text()}.wandb"
    # Rows that are written twice after a resume are all there: nothing hangs on W&B's own step.
    assert [each["step"] for each in history(wandb_alone) if "train/loss" in each] == [1, 2, 3, 3, 4, 5]


def test_the_config_and_the_token_axis_reach_wandb(wandb_alone: Path) -> None:
    log = start(wandb_alone, Watcher())
    log.metrics(row(1))
    log.close({"status": "done", "best_val_loss": 1.5})
    (path,) = wandb_alone.glob("wandb/offline-run-*/*.wandb")
    by_kind: dict[str, list[Any]] = {}
    for record in records(path):
        by_kind.setdefault(record.WhichOneof("record_type"), []).append(record)
    run = by_kind["run"][0].run
    assert run.display_name == "n"
    assert {"attention": {"name": "flash"}} in [
        json.loads(item.value_json) for item in run.config.update if item.key == "model"
    ]
    axes = {(record.metric.name or record.metric.glob_name): record.metric.step_metric for record in by_kind["metric"]}
    assert axes["*"] == "tokens"
    summary = {item.key: item.value_json for record in by_kind["summary"] for item in record.summary.update}
    assert json.loads(summary["best_val_loss"]) == 1.5


@pytest.mark.parametrize(("logger", "mode"), [("none", "online"), ("auto", "disabled")])
def test_none_and_disabled_leave_no_trace(wandb_alone: Path, monkeypatch: Any, logger: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    start(wandb_alone, watcher := Watcher(), logger).close({"status": "done"})
    assert [path.name for path in wandb_alone.iterdir()] == ["summary.json"]
    assert watcher.notes == []


def test_a_wandb_that_was_asked_for_and_is_not_there_is_said_loudly(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for logger, loud in (("wandb", True), ("auto", False)):
        watcher = Watcher()
        log = start(wandb_alone, watcher, logger)
        log.metrics(row(1))
        assert len(watcher.notes) == 1
        assert watcher.notes[0].startswith("WARNING: logger=wandb was asked for") == loud
    monkeypatch.setenv("WANDB_MODE", "disabled")
    start(wandb_alone, watcher := Watcher(), "wandb")
    assert "WANDB_MODE=disabled wins" in watcher.notes[0]


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        open_wandb("wandbb", tmp_path, name="n", project="p", config={}, note=print)


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_a_key_without_a_network_falls_back_to_offline(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    with socket.socket() as listener:  # a port that nobody answers on
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        if where == "environment":
            monkeypatch.setenv("WANDB_API_KEY", KEY)
        else:
            (wandb_alone.parent / "netrc").write_text(f"machine {host} login user password {KEY}\n")
        monkeypatch.setattr(runlog, "INIT_SECONDS", 1)
        watcher = Watcher()
        began = time.monotonic()
        log = start(wandb_alone, watcher)
        assert time.monotonic() - began < 15
    log.metrics(row(1))
    log.close({"status": "done"})
    assert [each["step"] for each in history(wandb_alone)] == [1]
    assert watcher.notes[0].startswith("W&B offline: not reachable (")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "key", "why"), [("offline", KEY, "WANDB_MODE=offline"), ("online", "", "no API key (wandb login)")]
)
def test_the_mode_wins_over_a_key_and_a_missing_key_over_the_mode(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch, mode: str, key: str, why: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    watcher = Watcher()
    start(wandb_alone, watcher).close({"status": "done"})
    assert watcher.notes[0].startswith(f"W&B offline: {why}. To upload: wandb sync ")


def test_a_wandb_that_breaks_is_said_once_and_left_alone(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def log(self, row: Any) -> None:
            self.calls += 1
            raise RuntimeError("the service died\nwith details")

    run, watcher = Broken(), Watcher()
    log = RunLog(tmp_path, display=watcher, wandb=runlog.WandbLog(run, tmp_path, watcher.note))  # type: ignore[arg-type]
    for step in (1, 2, 3):
        log.metrics(row(step))
    log.sample(3, "text")
    log.close({"status": "done"})
    assert run.calls == 1
    assert watcher.notes == ["W&B is off from here on (the service died); metrics.jsonl goes on."]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3
