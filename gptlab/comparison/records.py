"""A run and arms of runs as data: what a comparison is made of, whatever directories it was read from."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptlab.errors import DataError
from gptlab.runlog import read_rows

TEST = "test"  # the phase that the verdict is read from
NO_DIFFERENCE = {  # settings that say where a run is and how it is watched, not what comes out
    *("seed", "run_dir", "resume", "logger", "plugins", "name"),
    *("trainer.device", "trainer.compile", "trainer.keep", "trainer.log_every", "trainer.eval_every"),
    *("trainer.save_every", "trainer.sample_every", "trainer.sample_tokens"),
    *("trainer.sample_prompt", "trainer.sample_temperature"),
}
ENDED = ("done", "waiting", "pruned")  # what is no failure
DIVERGED = ("not finite", "gradients overflow")  # what the trainer says of a run whose numbers left the floats


def direction(metric: str) -> Literal["lower", "higher"]:
    """Which values of a metric are better, where nobody says: higher shares of right answers, else lower ones."""
    return "higher" if metric.partition("@")[0].endswith(("accuracy", "solved")) else "lower"


@dataclass
class RunRecord:
    """One run of an arm, as its files tell it."""

    path: Path
    arm: str
    seed: int
    phase: str = TEST
    status: str = "waiting"  # done, failed, interrupted, pruned, running, waiting
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return _lines(self.path / "metrics.jsonl")

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl; empty when there is none that can be read."""
        return self._rows

    def samples(self) -> list[dict[str, Any]]:
        """samples.jsonl, likewise."""
        return _lines(self.path / "samples.jsonl")

    def value(self, metric: str) -> float | None:
        """The metric at the end of the run: NaN when it was not finite, None when it was not measured."""
        key = metric.replace("/", "_")
        found = [row[metric] for row in self.rows() if metric in row][-1:]
        found = [self.summary[key]] if key in self.summary else found
        return (math.nan if found[0] is None else float(found[0])) if found else None

    def diverged(self, metric: str) -> bool:
        """Whether the training itself left the numbers: an outcome of the arm, not an accident."""
        if self.status == "done":
            value = self.value(metric)
            return value is not None and not math.isfinite(value)
        return any(words in (self.error or "") for words in DIVERGED)

    def reason(self) -> str:
        """Why the run did not end as it should, in one line."""
        return self.error or ("it was stopped, or is under way" if self.status == "running" else "no error is known")

    def failure(self) -> str:
        """Which run that is, how it ended and why."""
        phase = "" if self.phase == TEST else f"{self.phase} "
        return f"{self.arm} {phase}seed {self.seed} {self.status}: {self.reason()} ({self.path})"


Arms = dict[str, list[RunRecord]]


@dataclass
class Comparison:
    """Arms side by side, and how they are to be judged."""

    title: str
    arms: Arms  # of the phase test
    baseline: str
    metric: str = "val/loss"
    better: str = "lower"
    margin: float = 0.005  # below which a difference does not matter, in the metric's unit
    others: dict[str, Arms] = field(default_factory=dict)  # phase -> arms: tune, screen1, x0.5, ...
    plan: dict[str, Any] | None = None
    unpaired: list[str] = field(default_factory=list)  # lines: what could not be paired, and why
    path: Path = Path()  # of the study, or what the runs are under
    facts: dict[str, Any] = field(default_factory=dict)  # of the study's own summary.json: what its phases came to
    given: list[Path] = field(default_factory=list)  # the directories that were named

    def __post_init__(self) -> None:
        others = ", ".join(arm for arm in self.arms if arm != self.baseline)
        self.title = self.title or (f"{others} against {self.baseline}" if others else "A comparison")

    def values(self, arms: Arms | None = None) -> dict[str, dict[int, float | None]]:
        """Arm -> seed -> the metric at the end; None where the run diverged. What cannot be compared is left out."""
        found: dict[str, dict[int, float | None]] = {}
        for arm, records in (self.arms if arms is None else arms).items():
            found[arm] = {}
            for record in records:
                value = record.value(self.metric)
                if record.diverged(self.metric):
                    found[arm][record.seed] = None
                elif record.status == "done" and value is not None and not self.other_text(record, arms):
                    found[arm][record.seed] = value
        return found

    def other_text(self, record: RunRecord, arms: Arms | None = None) -> bool:
        """Whether a run learned from another text than the baseline's, so that their losses cannot be compared.

        Bits per byte can, where only the tokenizers differ.
        """
        theirs = (self.arms if arms is None else arms).get(self.baseline, [])
        theirs = [one for one in theirs if one.summary.get("data")]
        mine = record.summary.get("data")
        if not theirs or not mine:
            return False
        other = next((one for one in theirs if one.seed == record.seed), theirs[0])
        if self.metric.endswith("bpb") and record.config.get("data") == other.config.get("data"):
            return False
        return bool(mine != other.summary["data"])

    def records(self) -> Iterator[RunRecord]:
        """Every run of every phase."""
        for arms in (self.arms, *self.others.values()):
            for records in arms.values():
                yield from records

    def failures(self) -> list[RunRecord]:
        """The runs of any phase that ended otherwise than they should."""
        return [record for record in self.records() if record.status not in ENDED]

    def first(self, arm: str) -> RunRecord | None:
        """The run that shows what an arm is: its first finished one, or its first."""
        records = self.arms.get(arm) or [record for record in self.records() if record.arm == arm]
        return next((record for record in records if record.status == "done"), records[0] if records else None)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a config by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config can change a result: dotted key -> value."""
    return {key: value for key, value in flat(config) if key not in NO_DIFFERENCE}


def differences(trees: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings in which configs differ: key -> the value in each, None where there is none."""
    tables = [settings(tree) for tree in trees]
    keys = dict.fromkeys(key for table in tables for key in table)
    return {
        key: [table.get(key) for table in tables]
        for key in keys
        if len({json.dumps(table.get(key), default=str) for table in tables}) > 1
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_rows(path)
    except DataError:
        return []
