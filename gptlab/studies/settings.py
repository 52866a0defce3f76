"""What a study is asked: the words of a command line and a preset, as settings, arms, and overrides of the runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from gptlab import conf_dir
from gptlab.comparison.records import direction
from gptlab.config import RunConfig, require
from gptlab.errors import ConfigError, did_you_mean
from gptlab.registry import SLOTS, Option

TUNING_SEEDS, SCREENING_SEEDS = 10_000, 20_000  # the first of each; test seeds come before
LEAN = ("trainer.save_every=0", "trainer.sample_every=0", "trainer.keep=1")  # one checkpoint and sample, at the end
RESERVED = {
    "seed": "the points of a study have a seed each: say seeds=.",
    "run_dir": "the points of a study are in its directory: say dir=.",
    "resume": "a study goes on by itself: say dir=.",
}
NEEDS = {  # setting -> another one, and the values of that which give it an effect
    "width": ("match", ("params", "flops")),
    "tolerance": ("match", ("params", "flops", "time")),
    **dict.fromkeys(("tune_points", "tune_extra", "tune_seeds"), ("tune", ("lr",))),
}
KEYS = {
    "model",
    "experiment",
    *(slot.group for slot in SLOTS.values()),
    *(f.name for f in dataclasses.fields(RunConfig)),
}


@dataclass
class StudyConfig:
    """A study as it is declared, before anything is composed or counted."""

    study: str | None = None  # a preset under conf/study, or a YAML file
    question: str = ""  # what the study asks, in a sentence
    name: str = "study"  # first folder under runs/, and the W&B project
    dir: str | None = None  # the study's directory, new or begun; null: runs/<name>/<date>_study
    arms: dict[str, Any] = field(default_factory=dict)  # name -> the overrides that make the arm
    base: list[str] = field(default_factory=list)  # overrides that all arms share
    baseline: str | None = None  # the arm that the others are compared with; null: the first
    seeds: int | list[int] = 5  # how many, or which; each is one run of every arm
    match: Literal["none", "params", "flops", "time"] = "none"  # what arms have in common: params, flops, time
    width: str | None = None  # the setting that match= may change; null: what the arm's MLP says
    tolerance: float = 0.01  # share by which a matched cost may miss
    tune: Literal["none", "lr"] = "none"  # lr: every arm gets its own learning rate, at the same budget
    tune_points: int = 5  # learning rates that each arm begins with, factors of 2 apart
    tune_extra: int = 3  # more of them, beyond an edge or beside the best
    tune_seeds: int = 2  # runs of each rate, on seeds of their own
    screen: list[float] | None = None  # shares of the steps; after each, arms that cannot be better leave
    ladder: list[float] | None = None  # factors of the width at which the study is done again
    stepwise: bool = False  # each arm builds on the one before it: the page says what it adds and what that brought
    published: dict[str, Any] | None = None  # arm -> what others report of it, beside its step
    metric: str = "val/loss"  # what is compared, as in metrics.jsonl
    better: Literal["auto", "lower", "higher"] = "auto"  # values of the metric; auto: higher shares of right answers
    margin: float = 0.005  # a difference below this makes arms equivalent, in units of the metric
    threads: int | None = None  # of each point, on a CPU; null: the cores over the points at a time
    yes: bool = False  # begin without being asked
    dry: bool = False  # show the plan and stop

    def __post_init__(self) -> None:
        self.better = direction(self.metric) if self.better == "auto" else self.better
        seeds = self.seeds_run
        require(len({*seeds}) == len(seeds) > 0, f"seeds says how many, 1 or more, or lists them, not {self.seeds}.")
        require(
            0 <= min(seeds) <= max(seeds) < TUNING_SEEDS,
            f"seeds are from 0 to {TUNING_SEEDS - 1}, later ones are for tuning and screening, but are {self.seeds}.",
        )
        for name, least in (("tune_points", 5), ("tune_extra", 0), ("tune_seeds", 1), ("threads", 1)):
            value = getattr(self, name)
            require(value is None or value >= least, f"{name} must be {least} or more, but is {value}.")
        for name, value in (("tolerance", self.tolerance), ("margin", self.margin)):
            require(0 <= value < math.inf, f"{name} must be a number of 0 or more, but is {value}.")
        require(
            all(0 < share < 1 for share in self.screen or ()) and sorted({*(self.screen or ())}) == (self.screen or []),
            f"screen lists rising shares of the steps, between 0 and 1, but is {self.screen}.",
        )
        require(all(factor > 0 for factor in self.ladder or ()), f"ladder lists factors above 0, not {self.ladder}.")
        require(
            self.ladder is None or len({1.0, *self.ladder}) >= 3,
            f"A ladder has three sizes or more, but {self.ladder} makes {len({1.0, *(self.ladder or ())})} with 1: "
            "try ladder=0.5,1,2.",
        )
        require(
            self.stepwise or not self.published,
            "published stands beside the steps of a study, but this one has none: say stepwise=true, or leave it out.",
        )
        for arm in self.published or {}:
            require(arm in self.arms, f"published names arms, but {arm!r} is none. {did_you_mean(arm, self.arms)}")
        require(re.fullmatch(r"\w[\w.-]*", self.name) is not None, f"name is a folder under runs/, not {self.name!r}.")

    @property
    def seeds_run(self) -> list[int]:
        """The seeds by number."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


@dataclass(frozen=True)
class Request:
    """What a command line asks for: the study, where its points run, and what it says itself."""

    study: StudyConfig
    launcher: list[str]
    named: frozenset[str]  # the settings that the command line, or its preset, names
    typed: frozenset[str]  # those that the command line names itself
    changed: list[str]  # lines: what the command line makes of a preset


OPTIONS = {
    f.name: Option(f.name, typing.get_type_hints(StudyConfig)[f.name], f.default, "")
    for f in dataclasses.fields(StudyConfig)
}


def read(words: Sequence[str]) -> Request:
    """The words after `gptlab study`. ConfigError in one line for a word that means nothing."""
    words = [word for word in words if word not in ("-m", "--multirun")]  # a study is one
    given: dict[str, Any] = {}
    launcher: list[str] = []
    overrides: list[str] = []
    for word in words:
        key, assigned, value = word.partition("=")
        _refuse_odd(word, key, assigned)
        if key in OPTIONS:
            given[key] = _value(key, value)
        elif key.startswith(("hydra/launcher", "hydra.launcher")):
            launcher.append(word)
        else:
            overrides.append(word)
    _refuse_twice([*words, *given.get("base", [])])
    preset = _preset(given["study"]) if given.get("study") else {}
    _refuse_twice(preset.get("base", []))
    for word in (*preset.get("base", []), *given.get("base", [])):
        _refuse_odd(word, *word.partition("=")[:2])
        _refuse_setting(word)
    swept = [word for word in overrides if len(split(word.partition("=")[2])) > 1]
    typed = [word for word in overrides if word not in swept]
    if swept:  # other arms answer another question
        for of_its_arms in ("question", "stepwise", "published"):
            preset.pop(of_its_arms, None)
    tree = {**preset, **given, "base": merged(preset.get("base", []), given.get("base", []), typed)}
    if swept:
        tree["arms"] = _combinations(swept)
    tree["arms"] = {name: _arm(name, made) for name, made in tree.get("arms", {}).items()}
    _refuse_shadowed(typed, tree["arms"])
    empty = {key for key in ("arms", "base") if not tree[key]}
    changed = _changes(preset, {**given, **({"arms": tree["arms"]} if swept else {})}, typed)
    return Request(StudyConfig(**tree), launcher, frozenset(tree) - {"study", *empty}, frozenset(given), list(changed))


def refuse_idle(names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """ConfigError for a setting, among those that are named, which the others leave without an effect."""
    for name in sorted(NEEDS.keys() & set(names)):
        other, values = NEEDS[name]
        now = settings.get(other, OPTIONS[other].default)
        require(
            now in values,
            f"{name} has an effect only with {other}={' or '.join(values)}, but {other} is {now}: leave "
            f"{name}={settings[name]} out, or say {other}={values[0]}.",
        )


def merged(*lists: Iterable[str]) -> list[str]:
    """Overrides in their order; a later one of the same setting takes the place of an earlier one."""
    found: dict[str, str] = {}
    for word in itertools.chain(*lists):
        found[key_of(word)] = word
    return list(found.values())


def key_of(override: str) -> str:
    """The setting that an override is of."""
    return re.sub(r"^model\.position\.", "position.", override.partition("=")[0].lstrip("+"))


def split(text: str) -> list[str]:
    """The text between those commas that no bracket and no quote encloses."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char in "\"'":
            quote = "" if quote == char else quote or char
        depth += 0 if quote else (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _refuse_odd(word: str, key: str, assigned: str) -> None:
    """ConfigError for what is neither a setting of the study, nor of its launcher, nor an override of a run."""
    if not assigned or not key:
        names = [path.stem for path in (conf_dir.find() / "study").glob("*.yaml")]
        meant = f" Did you mean study={word}?" if word in names else ""
        raise ConfigError(f"gptlab study takes KEY=VALUE and -m, but {word!r} is neither.{meant}")
    if key in RESERVED:
        raise ConfigError(f"{key}= is no override of a study: {RESERVED[key]}")
    if key.startswith("hydra") and not key.startswith(("hydra/launcher", "hydra.launcher")):
        raise ConfigError(f"Of Hydra's settings a study takes hydra/launcher= and hydra.launcher.*, but not {key}.")
    if not re.search(r"[./]", key) and key.lstrip("+~") not in {*OPTIONS, *KEYS}:
        raise ConfigError(f"There is no setting {key!r}. {did_you_mean(key, {*OPTIONS, *KEYS}, 'gptlab study --help')}")


def _refuse_twice(words: Iterable[str]) -> None:
    """ConfigError for a setting that is said twice, since one of both would be lost."""
    for key, n in Counter(map(key_of, words)).items():
        require(n == 1, f"{key} is said twice: leave one of them out.")


def _value(key: str, text: str) -> Any:
    """A setting as its type. ConfigError where it is another."""
    kind = OPTIONS[key].type
    lists = any(typing.get_origin(t) is list for t in (kind, *typing.get_args(kind)))
    if lists and len(split(text)) > 1:
        value: Any = [_plain(part) for part in split(text)]
    else:
        words = any(t is str or typing.get_origin(t) is Literal for t in (kind, *typing.get_args(kind)))
        value = (None if text == "null" else text) if words and not lists else _plain(text)
        if lists and kind != int | list[int] and not isinstance(value, list) and value is not None:
            value = [value]
    return OPTIONS[key].check(value, key)


def _plain(text: str) -> Any:
    """A word as the number, truth value or list that it writes."""
    try:
        return float(text) if re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", text) else yaml.safe_load(text)  # YAML wants 1.0e-3
    except (ValueError, yaml.YAMLError):
        return text


def _preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by name or path. ConfigError for one that there is not, or that holds what is none."""
    folder = conf_dir.find() / "study"
    choices = [file.stem for file in folder.glob("*.yaml")]
    own = "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else folder / f"{name}.yaml"
    if own and not path.is_file():
        raise ConfigError(
            f"study= takes a YAML file or the name of a preset, but there is no file {path.absolute()}: mend the path, "
            f"or choose one of {', '.join(sorted(choices))}."
        )
    if not path.is_file():
        raise ConfigError(f"There is no study named {name!r}. {did_you_mean(name, choices, 'gptlab study --help')}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings of a study, but holds {tree!r}.")
    tree = {"name": path.stem, **tree}
    for key in tree:
        if key not in OPTIONS or key in ("study", "dir", "yes", "dry"):
            raise ConfigError(f"{path} sets {key!r}, which a preset does not have. {did_you_mean(str(key), OPTIONS)}")
    found = {key: OPTIONS[key].check(value, f"{key} in {path}") for key, value in tree.items()}
    refuse_idle((key for key, value in found.items() if value != OPTIONS[key].default), found)
    return found


def _combinations(swept: Sequence[str]) -> dict[str, list[str]]:
    """One arm for each combination of the values that are listed, named by them."""
    keys = [word.partition("=")[0] for word in swept]
    arms: dict[str, list[str]] = {}
    listed = [split(word.partition("=")[2]) for word in swept]
    for word, parts in zip(swept, listed, strict=True):
        require(
            "" not in parts and len({*parts}) == len(parts),
            f"Each value makes an arm, but {word} lists one twice, or none: mend it. Two names of one arm are written "
            "in the arms of a preset.",
        )
    for values in itertools.product(*listed):
        name = "_".join(_label(key, value) for key, value in zip(keys, values, strict=True))
        name = name if name not in arms else f"{name}_{len(arms)}"
        arms[name] = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    return arms


def _label(key: str, value: str) -> str:
    """A value as a part of an arm's name: a choice by itself, an option with what it is called."""
    label = re.sub(r"[^\w.+-]+", "-", value).strip("-.")[:40]
    return label if "." not in key and label[:1].isalpha() else re.split(r"[./]", key)[-1] + label


def _arm(name: Any, made: Any) -> list[str]:
    """The overrides of an arm of a preset. ConfigError for what cannot be one."""
    if not re.fullmatch(r"\w[\w.+-]*", str(name)):
        raise ConfigError(f"An arm is named by letters, digits and . _ + -, but {name!r} is not.")
    if not isinstance(made, list) or not all(isinstance(word, str) and "=" in word for word in made):
        raise ConfigError(f"An arm is a list of overrides KEY=VALUE, but {name} is {made!r}.")
    for word in made:
        _refuse_odd(word, *word.partition("=")[:2])
        _refuse_setting(word)
    _refuse_twice(made)
    return made


def _refuse_setting(word: str) -> None:
    """ConfigError for a setting of the study among the overrides of its runs."""
    if word.partition("=")[0] in OPTIONS:
        raise ConfigError(f"{word!r} is a setting of the study, not of its runs: take it out of base and arms.")


def _refuse_shadowed(typed: Iterable[str], arms: Mapping[str, list[str]]) -> None:
    """ConfigError for a word that would be lost, since every arm says something else there."""
    for word in typed:
        if arms and all(key_of(word) in map(key_of, made) for made in arms.values()):
            raise ConfigError(
                f"The arms differ in {key_of(word)}, so {word!r} would have no effect: list several values."
            )


def _changes(preset: Mapping[str, Any], given: Mapping[str, Any], typed: Sequence[str]) -> Iterable[str]:
    """Lines about what the command line makes of a preset."""
    held = {key_of(word): word for word in preset.get("base", [])}
    for key, value in given.items():
        if key in preset and preset[key] != value:
            before, after = ((", ".join(x) if isinstance(x, dict) else x) for x in (preset[key], value))
            yield f"{key}: {after} (the preset has {before})"
    for word in typed if preset else ():
        before = held.get(key_of(word), "nothing")
        if before != word:
            yield f"base: {word} (the preset has {before})"
