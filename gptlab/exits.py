"""How a command ends: 0 done, 2 what the user asked is wrong, 130 interrupted, 1 anything else."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gptlab.errors import ConfigError, GptlabError, Interrupted, LostRank, TrainingError

WAIT_SECONDS = 3.0  # for another rank to speak first


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, like all others."""

    def add_run(self) -> None:
        """The run that a command is about, and which of its checkpoints."""
        self.add_argument("run", help="a run directory, or latest")
        self.add_argument("--step", type=int, help="of a checkpoint that is kept (default the newest, or the best)")

    def error(self, message: str) -> NoReturn:
        """ConfigError with what argparse says."""
        raise ConfigError(f"{message[:1].upper()}{message[1:]}: see {self.prog} --help.")


def run(door: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Call a door and exit with its code. What a user caused is one line, without a traceback."""
    try:
        door(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except GptlabError as error:
        _leave(f"gptlab: {error}", 2)
    except TrainingError as error:
        if isinstance(error, LostRank):
            time.sleep(1.0)  # so that torchrun sees first whose fault it was
        _leave(f"gptlab: {error}", 1)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader went away (`| head`): nothing is wrong, and nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _leave(line: str, code: int) -> None:
    if rank := _rank():  # rank 0 most often says the same, and torchrun then ends us
        time.sleep(WAIT_SECONDS)
        line = line.replace("gptlab: ", f"gptlab: rank {rank}: ", 1)
    line = " ".join(line.split("\n"))
    print(line, file=sys.stderr, flush=True)
    if told := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # for the table in which torchrun names who failed
        about = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        Path(told).write_text(json.dumps({"message": about}), encoding="utf-8")
    sys.exit(code)


def _rank() -> int:
    """Which of several ranks this process is; 0 for a process alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
