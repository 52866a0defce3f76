"""Shell completion: what may follow the words typed so far, found without torch, and the scripts that ask for it."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Literal

from gptlab import catalogue
from gptlab.errors import ConfigError, did_you_mean
from gptlab.help import SETTINGS, VERBS, presets
from gptlab.registry import SLOTS
from gptlab.rundirs import ROOT, recent

SCRIPTS = {
    "bash": """_gptlab() {
  local word="${COMP_LINE:0:COMP_POINT}"; word="${word##*[[:space:]]}"
  local typed="${COMP_LINE:0:COMP_POINT}"
  local IFS=$'\\n'
  COMPREPLY=($(gptlab complete "$typed"))
  [[ "$word" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
  [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
  return 0
}
complete -o default -F _gptlab gptlab
""",
    "zsh": """#compdef gptlab
_gptlab() { compadd -Q -S '' -- ${(f)"$(gptlab complete "${LBUFFER}")"} }
compdef _gptlab gptlab
""",
    "fish": """complete -c gptlab -f -a '(gptlab complete (commandline -cp))'
""",
}

LAUNCHERS = ("processes", "basic", "submitit_local", "submitit_slurm", "ray", "joblib")


def script(shell: str) -> str:
    """The completion script of a shell. ConfigError for a shell there is none for."""
    if shell not in SCRIPTS:
        raise ConfigError(f"There is completion for bash, zsh and fish, but not for {shell!r}.")
    return SCRIPTS[shell]


def candidates(line: str, study: type | None = None) -> list[str]:
    """What may stand in place of the last word of `line`, a command line up to the cursor.

    `study` is the dataclass of a study's settings, which stands above this file.
    """
    words = line.split()
    word = "" if line[-1:].isspace() or not words else words[-1]
    before = words[1:] if word == "" else words[1:-1]
    if not before:
        found = list(VERBS)
    elif before[0] in ("train", "tune", "bench"):
        found = _train(word, before[1:])
    elif before[0] == "study":
        found = [*_study(word, study), *_train(word, before[1:])]
    elif before[0] == "compare":
        found = [*_studies(), *recent()]
    elif before[0] == "watch":
        found = ["latest", *_studies(), *recent()]
    elif before[0] in ("sample", "evaluate", "look", "export"):
        found = ["latest", *recent()]
    elif before[0] == "completion":
        found = list(SCRIPTS)
    else:
        slots = list(SLOTS) if before[0] == "list" else []
        found = [*slots, *(f"{e.slot}/{e.name}" for e in catalogue.entries())]
    return sorted(x for x in found if x.startswith(word))


def _train(word: str, before: list[str]) -> list[str]:
    key, assigned, typed = word.partition("=")
    chosen = dict(part.partition("=")[::2] for part in before)
    plugin_files = [Path(p.strip()) for p in chosen.get("plugins", "").strip("[]").split(",") if p.endswith(".py")]
    entries = catalogue.entries(plugin_files)
    if assigned:
        done = typed.rpartition(",")[0] + "," if "," in typed else ""  # a sweep: complete the last of several
        return [f"{key}={done}{value}" for value in _values(key, entries)]
    groups = [f"{place.group}=" for place in SLOTS.values()] + ["model=", "experiment=", "resume="]
    settings = [f"{name}=" for prefix, cls in SETTINGS.items() for name in _fields(prefix, cls)]
    options = [
        f"{SLOTS[e.slot].typed}.{option.name}="
        for e in entries
        if chosen.get(SLOTS[e.slot].group, e.name) == e.name
        for option in e.options
    ]
    return [*groups, *settings, *dict.fromkeys(options)]


def _study(word: str, settings: type | None) -> list[str]:
    """What a study takes besides what a training does."""
    key, assigned, _ = word.partition("=")
    hints = typing.get_type_hints(settings) if settings else {}
    if not assigned:
        return [
            *(f"{name}=" for name in hints if name not in ("arms", "base")),
            "hydra/launcher=",
            "hydra.launcher.jobs=",
        ]
    values = {
        "study": [name for name, _ in presets("study")],
        "dir": _studies(),
        "hydra/launcher": list(LAUNCHERS),
        **{name: list(typing.get_args(hint)) for name, hint in hints.items() if typing.get_origin(hint) is Literal},
    }
    return [f"{key}={value}" for value in values.get(key, [])]


def _studies() -> list[str]:
    """The studies under runs/, those declared last first."""
    plans = {path.parent: path.stat().st_mtime_ns for path in ROOT.rglob("plan.json")}
    return [str(study) for study in sorted(plans, key=lambda study: -plans[study])]


def _values(key: str, entries: list[catalogue.Entry]) -> list[str]:
    if key == "resume":
        return ["latest", *recent()]
    slot = next((slot for slot, place in SLOTS.items() if place.group == key), None)
    return [e.name for e in entries if e.slot == slot] + [name for name, _ in presets(key)]


def _fields(prefix: str, cls: type) -> list[str]:
    return [f"{prefix}{f.name}" for f in dataclasses.fields(cls) if f.name not in (*SLOTS, "model", "trainer", "lora")]


def did_not_match(verb: str) -> ConfigError:
    """The error for a verb that is not one."""
    return ConfigError(f"There is no verb {verb!r}. {did_you_mean(verb, VERBS)}")
