"""What a user did wrong, and the way out: one line each, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 20  # names that one line of an error may list


class GptlabError(Exception):
    """Base of everything a user can cause. Its message is one line: the rule, the value, the way out."""


class ConfigError(GptlabError, ValueError):
    """A choice, an option or a combination of them that cannot be."""


class DataError(GptlabError, ValueError):
    """A text or token file that cannot be used."""


class CheckpointError(GptlabError, RuntimeError):
    """A run directory or checkpoint that cannot be read, or does not fit."""


class TrainingError(RuntimeError):
    """A training that cannot go on (loss not finite, out of memory): exit code 1, the run stays on disk."""


class LostRank(TrainingError):
    """A training that cannot go on because another of its ranks has ended."""

    def __init__(self, seen: BaseException) -> None:
        line = next(iter(str(seen).strip().splitlines()), type(seen).__name__)
        super().__init__(
            "Another rank has ended or does not answer, and this one cannot train on without it: what it or torchrun "
            f"said is the cause. Seen here: {line[:200]}"
        )


class Pruned(Exception):
    """A run that whoever watches it ends before its time: no failure, status "pruned"."""


class Interrupted(BaseException):
    """The user stopped a command, which has saved what it had: exit code 130."""


def did_you_mean(word: str, choices: Iterable[str], shown_by: str = "gptlab train --help") -> str:
    """The nearest right word as a sentence; when none is near all of them, or, of many, the command that shows them."""
    names = sorted(choices)
    if near := nearest(word, names):
        return near
    if len(names) > MANY:
        return f"None of the {len(names)} is near: `{shown_by}` shows them."
    return f"Choose one of: {', '.join(names)}." if names else "There are none."


def nearest(word: str, choices: Iterable[str]) -> str:
    """The nearest right word as a sentence; empty when none is near."""
    near = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""
