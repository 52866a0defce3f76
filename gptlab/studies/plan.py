"""The declared plan of a study: written and hashed before the first run, so that nothing can be chosen after it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gptlab.config import require
from gptlab.errors import ConfigError
from gptlab.files import write_atomically
from gptlab.matching import Tree, changed
from gptlab.points import Order
from gptlab.studies.settings import Request, StudyConfig, key_of

FORMAT = 1
FILE = "plan.json"
OF_A_COMMAND = {"study", "dir", "yes", "dry", "arms", "threads", "seeds"}  # what is not declared, or stands elsewhere
GROWS = {"arms", "seeds", "dir", "yes", "dry"}  # what a later command may say otherwise


@dataclass
class Arm:
    """One arm at one size: what makes it, its whole config without a seed, what that costs, and how it was matched."""

    name: str
    overrides: list[str]
    config: Tree
    costs: dict[str, float] = field(default_factory=dict)
    match: dict[str, Any] | None = None


@dataclass
class Plan:
    """A study before its first run."""

    study: StudyConfig
    threads: int
    arms: list[Arm]
    sizes: dict[str, list[Arm]] = field(default_factory=dict)  # phase of the ladder -> the arms at that size
    created: str = field(default_factory=lambda: datetime.now().isoformat(timespec="seconds"))

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.study.baseline or self.arms[0].name

    @property
    def seeds(self) -> list[int]:
        """Those of the test."""
        return self.study.seeds_run

    def to_dict(self) -> dict[str, Any]:
        """What plan.json holds: the declaration, and a hash of all of it."""
        declared = {k: v for k, v in dataclasses.asdict(self.study).items() if k not in OF_A_COMMAND}
        tree = {
            "format": FORMAT,
            **declared,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "threads": self.threads,
            "created": self.created,
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "sizes": {phase: [dataclasses.asdict(arm) for arm in arms] for phase, arms in self.sizes.items()},
        }
        return {**tree, "hash": hash_of(tree)}


def hash_of(tree: Mapping[str, Any]) -> str:
    """sha256 of a plan but for its hash."""
    rest = {key: value for key, value in tree.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(directory: Path) -> Plan | None:
    """The plan of a study that has begun; None where none has. ConfigError for one that was changed by hand."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = hash_of(tree) == tree.get("hash")
    except (OSError, ValueError, AttributeError):
        found = False
    if not found:
        raise ConfigError(f"A plan is not to be changed once declared, but {path} was (its hash differs): restore it.")
    arms = [Arm(**arm) for arm in tree["arms"]]
    known = {f.name for f in dataclasses.fields(StudyConfig)} - {"arms"}
    settings = {key: value for key, value in tree.items() if key in known}
    study = StudyConfig(**settings, arms={arm.name: arm.overrides for arm in arms})
    sizes = {phase: [Arm(**arm) for arm in made] for phase, made in tree["sizes"].items()}
    return Plan(study, tree["threads"], arms, sizes, tree["created"])


def write(directory: Path, plan: Plan) -> None:
    """Write plan.json, unless it is this very plan; one before it is kept as plan_1.json, plan_2.json, ..."""
    path, text = directory / FILE, json.dumps(plan.to_dict(), indent=1)
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return
        n = 1 + len(list(directory.glob("plan_*.json")))
        write_atomically(directory / f"plan_{n}.json", path.read_bytes())
    write_atomically(path, text.encode())


def extended(held: Plan, request: Request) -> StudyConfig:
    """What a later command makes of a study: more seeds and arms. ConfigError for anything else that it says anew."""
    asked, declared = request.study, held.study
    _refuse_another_base(declared, asked.base)
    for name in sorted(request.named - GROWS - {"base"}):
        now, before = getattr(asked, name), held.threads if name == "threads" else getattr(declared, name)
        if now != before and not (name == "baseline" and now == held.baseline):
            raise ConfigError(
                f"{name} cannot change in a study that has begun: its plan has {before!r}, asked was {now!r}. "
                "Leave it out, or begin another study. What may grow: seeds, arms."
            )
    for name, overrides in asked.arms.items() if "arms" in request.named else ():
        if overrides != declared.arms.get(name, overrides):
            raise ConfigError(f"The arm {name} is {declared.arms[name]} in this study, not {overrides}: rename it.")
    more = asked.seeds_run if "seeds" in request.named else []
    arms = {**declared.arms, **(asked.arms if "arms" in request.named else {})}
    seeds = list(dict.fromkeys([*held.seeds, *more]))
    return dataclasses.replace(declared, arms=arms, seeds=seeds, baseline=held.baseline)


def kept(held: Plan, request: Request) -> Iterator[str]:
    """Lines about what a later command leaves out and the study keeps: nothing that was declared is taken back."""
    if "seeds" in request.typed and not {*held.seeds} <= {*request.study.seeds_run}:
        seeds = ", ".join(map(str, held.seeds))
        yield f"seeds: the study keeps {seeds}, for what was declared is not taken back"


def _refuse_another_base(declared: StudyConfig, words: Sequence[str]) -> None:
    """ConfigError for the first override of all runs that the plan does not have."""
    known = {key_of(word): word.partition("=")[2] for word in declared.base}
    for key, value in ((key_of(word), word.partition("=")[2]) for word in words):
        require(
            key in known or not all(key in map(key_of, made) for made in declared.arms.values()),
            f"The arms of this study differ in {key}, so {key}={value} is not of all runs: to add an arm, list its "
            "value after one that there is, with a comma.",
        )
        before = f"{key}={known[key]}" if key in known else "none"
        require(
            known.get(key) == value,
            f"{key} cannot change in a study that has begun: its plan has {before}, asked was {key}={value}. Leave it "
            "out, or begin another study. What may grow: seeds, arms.",
        )


def order(
    plan: Plan, directory: Path, phase: str, arm: Arm, seed: int, settings: Mapping[str, Any], **extra: float
) -> Order:
    """One point: the arm with a seed, and what its phase sets."""
    config = {**copy.deepcopy(arm.config), "seed": seed, "run_dir": None}
    for path, value in settings.items():
        config = changed(config, path, value)
    return Order(directory, phase, arm.name, seed, config, plan.threads, dict(extra))
