"""How a command ends: 0 done, 2 what the user asked is wrong, 130 interrupted, 1 anything else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gptlab.errors import ConfigError, GptlabError, Interrupted, TrainingError


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, like all others."""

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
        _leave(f"gptlab: {error}", 1)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader went away (`| head`): nothing is wrong, and nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _leave(line: str, code: int) -> None:
    print(" ".join(line.split("\n")), file=sys.stderr)
    sys.exit(code)
