"""What a person typed wrong, in one line: the errors of Hydra and OmegaConf in the words of the registry."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any

from gptlab import registry
from gptlab.config import RunConfig
from gptlab.errors import ConfigError, did_you_mean
from gptlab.registry import SLOTS, Option

GROUPS = {"model", "experiment", *(place.group for place in SLOTS.values())}


def in_a_line(error: Exception, words: Sequence[str]) -> ConfigError:
    """The ConfigError that says the same: the rule, the value, the way out."""
    unread = getattr(error, "override", None)
    if isinstance(unread, str):
        return ConfigError(f"Write KEY=VALUE, with quotes around what is special (key='\"é, ü\"'), but not {unread!r}.")
    cause = error.__cause__ or error
    key, holder = getattr(cause, "full_key", None), getattr(cause, "object_type", None)
    missing = re.search(
        r"Could not find '(?:(.+)/)?([^/']*)'(?:\s+Available options in '.*':\n((?:\t.+\n)+))?", str(error)
    )
    if missing:
        return _unknown_choice(missing[1] or "", missing[2], (missing[3] or "").split())
    if not key:
        return ConfigError(_first_sentence(error))
    given = next(
        (word.partition("=")[2] for word in reversed(words) if word.partition("=")[0].lstrip("+~") == key), None
    )
    known = _known(holder)
    name = str(key).rpartition(".")[2]
    if name not in known or given is None:
        return _unknown_key(str(key), holder, known)
    try:
        known[name].check(None if given in ("", "null") else given, str(key))
    except ConfigError as explained:
        return explained
    return ConfigError(f"{key}: {_first_sentence(cause)}")


def refuse_odd(words: Sequence[str]) -> None:
    """ConfigError for what Hydra would take, and no run could: a setting without a name, and one that is deleted."""
    for word in words:
        if word.startswith("="):
            raise ConfigError(f"Write KEY=VALUE, but {word!r} has no KEY.")
        key, _, value = word.partition("=")
        if key in GROUPS and re.fullmatch(r"[-+.\d]+|true|null", value):
            raise ConfigError(f"A choice of {key} is a name, but {value!r} is not. See gptlab train --help.")
        if word.startswith("~"):
            raise ConfigError(
                f"Every setting has a value, so none can be deleted as {word!r} asks: choose another value."
            )


def chosen_by_group(slot: str) -> ConfigError:
    """The error for a slot that is set like an option."""
    names = ", ".join(registry.names(slot))
    return ConfigError(f"{slot!r} is chosen by its group: write {SLOTS[slot].group}=... (one of {names}).")


def _unknown_choice(group: str, name: str, choices: list[str]) -> ConfigError:
    if not group:
        return ConfigError(f"There is no preset file {name!r} in conf/.")
    slot = next((slot for slot, place in SLOTS.items() if place.group == group), group)
    return ConfigError(f"There is no {slot} named {name!r}. {did_you_mean(name, choices)}")


def _unknown_key(key: str, holder: Any, known: dict[str, Option]) -> ConfigError:
    name = key.rpartition(".")[2]
    variant = getattr(holder, "variant", None)
    if variant:
        slot, label = variant
        way_out = did_you_mean(name, known) if known else "It has no options."
        return ConfigError(f"{slot} {label!r} has no option {name!r}. {way_out}")
    if key in SLOTS:
        group = SLOTS[key].group
        return ConfigError(
            f"{key!r} is chosen by its group: write {group}=... (one of {', '.join(registry.names(key))})."
        )
    if "/" in key:
        return ConfigError(f"There is no group {key!r}. {did_you_mean(key, GROUPS)}")
    where = key[: -len(name)]
    choices = {f"{where}{setting}" for setting in known}
    return ConfigError(f"There is no setting {key!r}. {did_you_mean(key, choices if where else choices | GROUPS)}")


def _known(holder: Any) -> dict[str, Option]:
    """The settings of a config node by name: a variant's options, or the fields of a dataclass."""
    variant = getattr(holder, "variant", None)
    if variant:
        return registry.options(registry.get(*variant))
    cls = holder if dataclasses.is_dataclass(holder) else RunConfig
    hints = typing.get_type_hints(cls)
    return {f.name: Option(f.name, hints[f.name], f.default, "") for f in dataclasses.fields(cls)}


def _first_sentence(error: BaseException) -> str:
    return " ".join(re.split(r"\n\n|\n    full_key:", str(error).strip())[0].split())
