"""One run of a study, from its order to its end: what is to be run is a file, and so is all that became of it.

`python -m gptlab.points FILE` runs one for as long as whoever started it holds its standard input open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from gptlab import distributed, exits, plugins, run, rundir
from gptlab.config import from_dict, require
from gptlab.display import PlainDisplay, SilentDisplay
from gptlab.errors import DataError, GptlabError, Interrupted, TrainingError
from gptlab.files import write_atomically
from gptlab.hardware import choose_device

if sys.platform != "win32":  # there two studies that run the same point at the same time are not kept apart
    import fcntl

FINISHED = ("done", "pruned")  # statuses of a run that need not be run again
NO_RESULT = {"run_dir", "logger"}  # settings that change no number


@dataclass(frozen=True)
class Order:
    """What is to be run, and for which place in a study. Beside its file are the run directory and the log."""

    study: Path
    phase: str  # test, tune, screen1, x0.5, ...
    arm: str
    seed: int
    config: dict[str, Any]  # of a whole RunConfig
    threads: int  # of torch: they decide how sums are split, and with that the last bits
    extra: dict[str, Any] = field(default_factory=dict)  # what tells points of one arm and seed apart: {"lr": 0.003}

    def __post_init__(self) -> None:
        for word in (self.phase, self.arm, self.name):
            folder = Path(word).name == word and word not in ("", "..")
            require(folder, f"A phase, an arm and a point are folders of a study, but {word!r} is no name of a folder.")
        require(self.threads >= 1, f"threads must be at least 1, but is {self.threads}.")

    @property
    def name(self) -> str:
        """seed3, or lr0.003_seed3."""
        return "_".join(f"{key}{value}" for key, value in {**self.extra, "seed": self.seed}.items())

    @property
    def file(self) -> Path:
        """Where the order is written."""
        return self.study / self.phase / self.arm / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        """Where the run leaves its files."""
        return self.file.with_suffix("")

    @property
    def log(self) -> Path:
        """All that the point printed. Whoever runs the point holds a lock on it."""
        return self.file.with_suffix(".log")

    @property
    def failed(self) -> Path:
        """The line that says why the point failed; it is there only if it did."""
        return self.file.with_suffix(".failed")

    @property
    def hash(self) -> str:
        """16 digits that two orders share when their runs give the same numbers."""
        decides = {key: value for key, value in self.config.items() if key not in NO_RESULT}
        text = json.dumps([decides, self.threads], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def place(self) -> dict[str, Any]:
        """What command.json and W&B are told; `id` is the same whenever this point is run again."""
        place = {"phase": self.phase, "arm": self.arm, "seed": self.seed, **self.extra, "hash": self.hash}
        named = hashlib.sha256(json.dumps([self.study.absolute().name, place]).encode()).hexdigest()[:16]
        return {"dir": str(self.study), **place, "id": named}

    def write(self) -> None:
        """Write the order to its file."""
        held = {"phase": self.phase, "arm": self.arm, "seed": self.seed, "hash": self.hash, "threads": self.threads}
        order = {**held, "extra": self.extra, "study": str(self.study), "config": self.config}
        write_atomically(self.file, json.dumps(order, indent=1).encode())

    @staticmethod
    def read(file: Path) -> Order:
        """The order in a file. Its study is where the file lies, so that a study may be moved."""
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            keys = ("phase", "arm", "seed", "config", "threads", "extra")
            return Order(study=file.absolute().parents[2], **{key: held[key] for key in keys})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} cannot be read as the order of a point ({error}): plan its study again.") from None

    def ended(self) -> str | None:
        """How the run of this very order ended, done or pruned; None where it is still to be run."""
        held = _read(self.run_dir / rundir.COMMAND).get("study") or {}
        status = _read(self.run_dir / rundir.SUMMARY).get("status")
        return str(status) if status in FINISHED and held.get("hash") == self.hash else None

    def status(self) -> str:
        """done, pruned, running, failed, begun (and given up), or waiting: what the files say."""
        if ended := self.ended():
            return ended
        if taken(self.log):
            return "running"
        if self.failed.exists():
            return "failed"
        return "begun" if self.log.exists() else "waiting"

    def error(self) -> str | None:
        """The line of a point that failed."""
        return self.failed.read_text(encoding="utf-8") if self.status() == "failed" else None

    def fail(self, reason: str) -> None:
        """Leave the reason, in one line, in the log and beside it."""
        line = " ".join(reason.split())
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        write_atomically(self.failed, line.encode())


def carry_out(file: Path, watch: run.Watch | None = None) -> str:
    """Run the point of an order in this process, unless it is done, and return how it ended: its status.

    An attempt that was given up is removed first. Where another process is at this point, its end is waited for.
    No Exception comes out of it: a failure is left in the log and beside it.
    """
    order = Order.read(file)
    with distributed.joined(_device(order)):
        if not distributed.is_first():
            return _follow(order)
        with alone(order.log) as log:
            if ended := distributed.of_first(order.ended):
                return ended
            log.truncate(0)
            order.failed.unlink(missing_ok=True)
            shutil.rmtree(order.run_dir, ignore_errors=True)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), on_threads(order.threads):
                return _attempt(order, PlainDisplay(log), watch)


def _device(order: Order) -> torch.device:
    try:
        return distributed.own(choose_device(str(order.config["trainer"].get("device", "auto"))))
    except GptlabError:  # the run is refused in its own log
        return torch.device("cpu")


def _follow(order: Order) -> str:
    """What the other ranks of a point do: train with the first, which has the log and says how it ended."""
    if ended := distributed.of_first(order.ended):
        return ended
    with on_threads(order.threads):
        plugins.load(order.config["plugins"])
        status, _ = run.start(from_dict({**order.config, "run_dir": str(order.run_dir)}), {}, SilentDisplay())
    return status


def _attempt(order: Order, display: PlainDisplay, watch: run.Watch | None) -> str:
    place = {"overrides": [], "study": order.place}
    try:
        plugins.load(order.config["plugins"])
        status, _ = run.start(from_dict({**order.config, "run_dir": str(order.run_dir)}), place, display, watch)
    except (GptlabError, TrainingError) as error:
        order.fail(str(error))
    except Exception as error:  # a fault, ours or a plugin's: where it is helps whoever looks for it
        traceback.print_exc()
        order.fail(f"{type(error).__name__}: {error}")
    else:
        return status
    return "failed"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Compute on so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[TextIO]:
    """A text file opened to append, once no other process has it so. However a process ends, its lock does too."""
    with path.open("a", buffering=1, encoding="utf-8") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def taken(path: Path) -> bool:
    """Whether a process, this one included, has a file alone."""
    if sys.platform == "win32" or not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _end_with_parent() -> None:
    """Wait until whoever started this process is gone, and end at once: the point is run again by whoever goes on."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(argv: list[str]) -> None:
    """Run the point of an order file, in a process that was started for it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    status = carry_out(Path(argv[0]))
    if status == "interrupted":
        raise Interrupted
    sys.exit(status == "failed")


if __name__ == "__main__":
    exits.run(main)
