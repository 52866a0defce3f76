"""What a user did wrong, and the way out: one line each, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class Interrupted(BaseException):
    """The user stopped a command, which has saved what it had: exit code 130."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The nearest right word as a sentence, or all of them when none is near."""
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Choose one of: {', '.join(names)}." if names else "There are none."
