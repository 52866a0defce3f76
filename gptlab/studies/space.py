"""What a search is over: a range or a list where a value would stand; and how it is done. Words in, settings out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptlab.comparison.records import direction
from gptlab.config import require
from gptlab.errors import ConfigError, did_you_mean
from gptlab.files import write_atomically
from gptlab.registry import Option
from gptlab.studies.settings import KEYS, LEAN, TUNING_SEEDS, key_of, merged, split

FILE, FORMAT = "search.json", 1
TRIALS = 50  # unless more are asked for, or the grid has fewer
GROWS = {"dir", "trials", "hours", "jobs"}  # what a later command may say otherwise
DIGITS = 4  # of a value that was drawn
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")
MEANT = re.compile(r"log:.*|[^/\\'\"]*(?:\d\.\.|\.\.\d)[^/\\'\"]*")  # as a range, and is none; a path has no such dots
GRAMMAR = "low..high (in whole numbers where the setting is), log:low..high, or values with commas between"

Compose = Callable[[Sequence[str]], dict[str, Any]]


@dataclass
class TuneConfig:
    """A search as it is asked for: all but what it is over."""

    name: str = "tune"  # first folder under runs/, and the W&B project
    dir: str | None = None  # the search's directory, new or begun; null: runs/<name>/<date>_tune
    trials: int | None = None  # in all; null: 50, or the whole grid
    hours: float | None = None  # after which no more trials begin
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # tpe learns from trials; grid takes all combinations
    prune: Literal["median", "hyperband", "none"] = "median"  # ends trials that look worse than others did
    jobs: int | None = None  # trials at a time, each a process; 1: in this process; null: what the machine has room for
    threads: int | None = None  # of each trial, on a CPU; null: the cores over the trials at a time
    seed: int = TUNING_SEEDS  # of all runs, and of what is tried; a study tests on others
    metric: str = "val/loss"  # what is searched for, as in metrics.jsonl
    better: Literal["auto", "lower", "higher"] = "auto"  # values of the metric; auto: higher shares of right answers

    def __post_init__(self) -> None:
        self.better = direction(self.metric) if self.better == "auto" else self.better
        for name in ("trials", "jobs", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be 1 or more, but is {value}.")
        require(self.hours is None or self.hours > 0, f"hours must be above 0, but is {self.hours}.")
        require(self.seed >= 0, f"seed must be 0 or more, but is {self.seed}.")
        require(re.fullmatch(r"\w[\w.-]*", self.name) is not None, f"name is a folder under runs/, not {self.name!r}.")


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: the values it may take, as they are written, or the ends of its range."""

    key: str
    values: list[str]
    ranges: bool = False
    log: bool = False
    whole: bool = False  # the setting is one of whole numbers

    @property
    def ends(self) -> tuple[float, float]:
        """Of a range."""
        low, high = map(float, self.values)
        return low, high

    def override(self, drawn: Any) -> str:
        """KEY=VALUE for a value that was drawn; of a number in as many digits as a person reads."""
        if self.ranges and not self.whole:
            low, high = self.ends
            drawn = f"{min(high, max(low, float(f'{drawn:.{DIGITS}g}'))):g}"
        return f"{self.key}={drawn}"

    def grid(self) -> list[Any]:
        """All that it can be. ConfigError where that is endless."""
        if not self.ranges:
            return list(self.values)
        require(
            self.whole,
            f"A grid takes values one by one, but {self.key} has a range: list them, as in "
            f"{self.key}={','.join(self.values)}.",
        )
        low, high = map(int, self.ends)
        return list(range(low, high + 1))


@dataclass(frozen=True)
class Request:
    """What a command line asks for: how to search, over what, and what all trials share."""

    settings: TuneConfig
    space: list[Dimension]
    base: list[str]
    named: frozenset[str] = frozenset()  # the settings that the command line names

    def words(self, drawn: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial, without those that all share."""
        return [dimension.override(drawn[dimension.key]) for dimension in self.space]

    def overrides(self, words: Sequence[str]) -> list[str]:
        """All overrides of a trial with these words."""
        return merged(LEAN, [f"name={self.settings.name}"], self.base, words)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, in a drawn order, so that the first of them lie anywhere. ConfigError for no end."""
        keys = [dimension.key for dimension in self.space]
        values = itertools.product(*(dimension.grid() for dimension in self.space))
        found = [dict(zip(keys, chosen, strict=True)) for chosen in values]
        random.Random(self.settings.seed).shuffle(found)
        return found

    @property
    def n_trials(self) -> int:
        """How many trials there are to be, in all."""
        if self.settings.sampler != "grid":
            return self.settings.trials or TRIALS
        most = math.prod(len(dimension.grid()) for dimension in self.space)
        return min(self.settings.trials or most, most)


OPTIONS = {
    f.name: Option(f.name, typing.get_type_hints(TuneConfig)[f.name], f.default, "")
    for f in dataclasses.fields(TuneConfig)
}


def read(words: Sequence[str]) -> Request:
    """The words after `gptlab tune`. ConfigError in one line for a word that means nothing."""
    given: dict[str, Any] = {}
    space: dict[str, Dimension] = {}
    base: dict[str, str] = {}
    for word in words:
        key, assigned, value = word.partition("=")
        _refuse_odd(word, key, assigned)
        if key_of(word) in {*given, *space, *base}:
            raise ConfigError(f"{key} is said twice: leave one of them out.")
        if key in OPTIONS:
            given[key] = OPTIONS[key].check(_plain(value), key)
        elif dimension := _dimension(key, value):
            space[key_of(word)] = dimension
        else:
            base[key_of(word)] = word
    return Request(TuneConfig(**given), list(space.values()), list(base.values()), frozenset(given))


def settled(request: Request, compose: Compose) -> tuple[Request, list[dict[str, Any]]]:
    """The request with the kind of each range known, and a config for every end and value in it.

    ConfigError for a setting or a value that there is not, as a training would say it.
    """
    if not request.space:
        raise ConfigError(
            f"A search needs a setting to search: write {GRAMMAR}, as in optimizer.lr=log:1e-4..1e-2 (gptlab tune "
            "--help)."
        )
    require(
        request.settings.prune == "none" or all(key_of(f"{one.key}=") != "trainer.steps" for one in request.space),
        "Pruning compares trials at equal steps, so where trainer.steps is searched there is none: say prune=none.",
    )
    first = [f"{dimension.key}={dimension.values[0]}" for dimension in request.space]
    trees = [compose(request.overrides(first))]
    for dimension in request.space:
        trees += [compose(request.overrides([*first, f"{dimension.key}={end}"])) for end in dimension.values[1:]]
    space = [_of_kind(dimension, trees[0]) for dimension in request.space]
    return dataclasses.replace(request, space=space), trees


def held(directory: Path) -> Request | None:
    """The search that a directory holds; None where there is none. ConfigError for one that cannot be read."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        space = [Dimension(**dimension) for dimension in tree["space"]]
        return Request(TuneConfig(**tree["settings"]), space, tree["base"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a search ({error}): restore it, or begin another.") from None


def write(directory: Path, request: Request) -> None:
    """Write what a later command goes on with."""
    settings = {key: value for key, value in vars(request.settings).items() if key not in ("dir", "hours", "jobs")}
    space = [dataclasses.asdict(dimension) for dimension in request.space]
    tree = {"format": FORMAT, "settings": settings, "base": request.base, "space": space}
    write_atomically(directory / FILE, json.dumps(tree, indent=1).encode())


def extended(before: Request, asked: Request) -> Request:
    """A search that has begun, as a later command wants it: longer. ConfigError for anything else that it says anew."""
    for name in sorted(asked.named - GROWS):
        now, was = getattr(asked.settings, name), getattr(before.settings, name)
        require(
            now == was, f"{name} cannot change in a search that has begun with {was!r}, as {now!r} asks: leave it out."
        )
    known = {written(dimension) for dimension in before.space} | set(before.base)
    for word in (*map(written, asked.space), *asked.base):
        require(
            word in known,
            f"What is searched cannot change, but {word!r} is not of this search ({' '.join(sorted(known))}): leave it "
            "out, or begin another.",
        )
    grown = {name: getattr(asked.settings, name) for name in asked.named & GROWS}
    return dataclasses.replace(before, settings=dataclasses.replace(before.settings, **grown))


def _refuse_odd(word: str, key: str, assigned: str) -> None:
    """ConfigError for what is neither a setting of the search nor one of a run."""
    if not assigned or not key:
        raise ConfigError(f"gptlab tune takes KEY=VALUE, but {word!r} is not. See gptlab tune --help.")
    if key in ("run_dir", "resume"):
        raise ConfigError(f"{key}= is of one run, and a search has many: say dir=, to begin or to go on.")
    if key.startswith("hydra"):
        raise ConfigError(f"gptlab tune runs its trials on this machine, without {key}: say jobs=, how many at a time.")
    if not re.search(r"[./]", key) and key.lstrip("+~") not in {*OPTIONS, *KEYS}:
        raise ConfigError(f"There is no setting {key!r}. {did_you_mean(key, {*OPTIONS, *KEYS}, 'gptlab tune --help')}")


def _plain(text: str) -> Any:
    """A word as the number that it writes, or as it is."""
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) else None if text == "null" else text


def _dimension(key: str, text: str) -> Dimension | None:
    """What a value says of a search; None for one value, which all trials share."""
    if found := RANGE.fullmatch(text):
        made = Dimension(key, [found[2], found[3]], ranges=True, log=bool(found[1]))
        low, high = made.ends
        require(low < high, f"A range goes up, but {key} goes from {found[2]} to {found[3]}: turn it round.")
        require(low > 0 or not made.log, f"A range in log: begins above 0, but {key} begins at {found[2]}.")
        return made
    if MEANT.fullmatch(text):
        raise ConfigError(f"{key}={text} is no range: write {GRAMMAR}.")
    values = split(text)
    if len(values) == 1:
        return None
    require("" not in values and len({*values}) == len(values), f"{key}={text} lists a value twice, or none: mend it.")
    return Dimension(key, values)


def _of_kind(dimension: Dimension, tree: Mapping[str, Any]) -> Dimension:
    """The dimension knowing whether its setting is of whole numbers. ConfigError for a range of what is no number."""
    value = _at(tree, key_of(f"{dimension.key}="))
    if not dimension.ranges:
        return dimension
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"A range is of numbers, but {dimension.key} is none: list its values with commas between.")
    return dataclasses.replace(dimension, whole=isinstance(value, int))


def _at(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a setting in a config; None where it is none of its own."""
    node: Any = tree
    for part in re.sub(r"^position\.", "model.position.", key).split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def written(dimension: Dimension) -> str:
    """The word that a dimension came from."""
    low_high = f"{'log:' * dimension.log}{'..'.join(dimension.values)}"
    return f"{dimension.key}={low_high if dimension.ranges else ','.join(dimension.values)}"
