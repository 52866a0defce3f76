"""Run directories as arms and seeds: a study by its plan, any other runs by what differs in their configs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from gptlab import rundirs
from gptlab.comparison.pairing import unpaired
from gptlab.comparison.records import NO_DIFFERENCE, TEST, Arms, Comparison, RunRecord, differences, direction, settings
from gptlab.errors import ConfigError, DataError, did_you_mean
from gptlab.rundirs import CONFIG

__all__ = ["Comparison", "RunRecord", "asked", "paired", "read", "read_runs", "read_study"]

PLAN = "plan.json"
TOGETHER = (PLAN, "search.json", "multirun.yaml")  # what a directory of several runs holds: a study, a search, a sweep
LATEST = Path("latest")


def read(
    dirs: Sequence[Path], metric: str | None = None, baseline: str | None = None, margin: float | None = None
) -> Comparison:
    """One study by its plan, or any runs; judged as it declares, or as is asked. `latest` names the newest of them."""
    dirs = [_latest() if directory == LATEST and not directory.exists() else directory for directory in dirs]
    if len(dirs) == 1 and (dirs[0] / PLAN).is_file():
        return asked(read_study(dirs[0]), metric, baseline, margin)
    comparison = read_runs(dirs, metric or "val/loss", baseline)
    return comparison if margin is None else replace(comparison, margin=margin)


def read_study(directory: Path) -> Comparison:
    """A study by its plan.json: every arm that was planned, and every one that ran. DataError when there is no plan."""
    plan = _json(directory / PLAN)
    if "arms" not in plan:
        raise DataError(f"A study holds a {PLAN} that names its arms, but {directory} does not: name its directory.")
    phases: dict[str, Arms] = {TEST: {str(arm["name"]): [] for arm in plan["arms"]}}
    for file in sorted(directory.glob("*/*/*.json"), key=_natural):
        order = _json(file)
        if {"phase", "arm", "seed"} <= order.keys():
            record = _record_of_order(file, order)
            phases.setdefault(record.phase, {}).setdefault(record.arm, []).append(record)
    arms = phases.pop(TEST)
    for planned in plan["arms"]:
        name = str(planned["name"])
        let_go = not arms[name] and any(name in found for phase, found in phases.items() if phase.startswith("screen"))
        arms[name] += [] if let_go else _waiting(directory, plan, planned, {record.seed for record in arms[name]})
        arms[name].sort(key=lambda record: record.seed)
    comparison = Comparison(
        title=str(plan.get("question") or ""),
        arms=arms,
        baseline=str(plan.get("baseline") or next(iter(arms), "")),
        metric=str(plan.get("metric", "val/loss")),
        better=str(plan.get("better", "lower")),
        margin=float(plan.get("margin", 0.005)),
        others={phase: _in_order(found, arms) for phase, found in phases.items()},
        plan=plan,
        facts=_json(directory / "summary.json"),
        path=directory,
        given=[directory],
    )
    return paired(comparison)


def read_runs(dirs: Sequence[Path], metric: str = "val/loss", baseline: str | None = None) -> Comparison:
    """Run directories, sweeps and studies, found by name or below it: an arm is what differs only in its seed.

    ConfigError when there is no run, no such metric or no such baseline.
    """
    below = {directory: list(_runs_below(directory)) for directory in dirs}
    for directory, found in below.items():
        if not found:
            raise ConfigError(f"A comparison needs directories of runs, but {directory} holds none: look under runs/.")
    runs = list(dict.fromkeys(run for found in below.values() for run in found))
    records = [_record_of_run(run) for run in runs]
    damaged = [f"{record.path} holds a {CONFIG} that cannot be read." for record in records if not record.config]
    records = [record for record in records if record.config]
    if not records:
        named = ", ".join(map(str, dirs))
        raise ConfigError(f"A comparison needs directories of runs, but {named} holds none: look under runs/.")
    arms, twice = _grouped(records)
    comparison = Comparison(
        title="",
        arms=arms,
        baseline=next(iter(arms)),
        metric=metric,
        better=direction(metric),
        path=Path(os.path.commonpath([directory.absolute() for directory in dirs])),
        given=list(dirs),
    )
    comparison = asked(comparison, metric=metric, baseline=baseline)
    return replace(comparison, unpaired=[*damaged, *twice, *comparison.unpaired])


def asked(
    comparison: Comparison, metric: str | None = None, baseline: str | None = None, margin: float | None = None
) -> Comparison:
    """The comparison judged by another metric, baseline or margin. ConfigError for one that there is not."""
    if baseline is not None and baseline not in comparison.arms:
        raise ConfigError(f"There is no arm {baseline!r}. {did_you_mean(baseline, comparison.arms)}")
    if metric is not None:
        done = [record for record in comparison.records() if record.status == "done"]
        if done and not any(record.value(metric) is not None for record in done):
            known = {key for record in done for row in record.rows()[-1:] for key in row if "/" in key}
            raise ConfigError(f"None of the runs measured {metric!r}. {did_you_mean(metric, known)}")
    metric = metric or comparison.metric
    better = comparison.better
    if metric != comparison.metric:
        better = direction(metric)
    margin = comparison.margin if margin is None else margin
    baseline = baseline or comparison.baseline
    return paired(replace(comparison, metric=metric, better=better, baseline=baseline, margin=margin))


def paired(comparison: Comparison) -> Comparison:
    """The comparison with its lines of what could not be paired."""
    return replace(comparison, unpaired=unpaired(comparison))


def _latest() -> Path:
    """The study, search or sweep of the newest run under runs/, else that run. CheckpointError where there is none."""
    run = rundirs.find(str(LATEST))
    around = (above for above in run.parents if rundirs.ROOT in above.parents)
    return next((above for above in around if any((above / name).is_file() for name in TOGETHER)), run)


def _record_of_order(file: Path, order: Mapping[str, Any]) -> RunRecord:
    """A point of a study. It is done when its run is, and was run for this very order."""
    path = file.with_suffix("")
    failed, log = file.with_suffix(".failed"), file.with_name(f"{path.name}.log")
    record = _record_of_run(path, arm=str(order["arm"]), seed=int(order["seed"]), phase=str(order["phase"]))
    record.config = dict(order.get("config") or record.config)
    held = (_json(path / "command.json").get("study") or {}).get("hash")
    if record.status == "done" and held != order.get("hash"):
        record.status, record.error = "waiting", "its run is of an earlier order"
    elif record.status != "done" and failed.is_file():
        record.status = "failed"
        record.error = _last_line(failed) or record.error or _last_line(log)
    elif record.status == "failed":
        record.error = record.error or _last_line(log)
    return record


def _record_of_run(path: Path, arm: str = "", seed: int | None = None, phase: str = TEST) -> RunRecord:
    config, summary = _yaml(path / CONFIG), _json(path / "summary.json")
    error = summary.get("error")
    return RunRecord(
        path=path,
        arm=arm,
        seed=int(config.get("seed") or 0) if seed is None else seed,
        phase=phase,
        status=str(summary.get("status") or ("running" if path.is_dir() else "waiting")),
        error=None if error is None else " ".join(str(error).split()),
        config=config,
        summary=summary,
        overrides=[str(word) for word in _json(path / "command.json").get("overrides") or []],
    )


def _waiting(directory: Path, plan: Mapping[str, Any], planned: Mapping[str, Any], there: set[int]) -> list[RunRecord]:
    """The runs of a planned arm that have no order yet."""
    name, config = str(planned["name"]), dict(planned.get("config") or {})
    seeds = [int(seed) for seed in plan.get("seeds") or [] if seed not in there]
    return [RunRecord(directory / TEST / name / f"seed{seed}", name, seed, config=config) for seed in seeds]


def _in_order(found: Arms, arms: Arms) -> Arms:
    """The arms of a phase in the order of the plan."""
    return {arm: found[arm] for arm in dict.fromkeys([*arms, *found]) if arm in found}


def _runs_below(directory: Path) -> Iterator[Path]:
    """The run directories at or below a directory; of a study those of its test."""
    if (directory / CONFIG).is_file():
        yield directory
    elif (directory / PLAN).is_file():
        yield from _runs_below(directory / TEST)
    elif directory.is_dir():
        for below in sorted((path for path in directory.iterdir() if path.is_dir()), key=_natural):
            yield from _runs_below(below)


def _grouped(records: Sequence[RunRecord]) -> tuple[Arms, list[str]]:
    """Arms by name, each with one run of a seed; and lines about seeds that ran twice, of which the last counts."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        key = json.dumps(settings(record.config), sort_keys=True, default=str)
        groups.setdefault(key, []).append(record)
    arms: Arms = {}
    twice = []
    for name, group in zip(_names(list(groups.values())), groups.values(), strict=True):
        kept: dict[int, RunRecord] = {}
        for record in sorted(group, key=lambda record: (record.status == "done", _natural(record.path))):
            if record.seed in kept:
                twice.append(f"{name}: seed {record.seed} ran more than once; {record.path} counts.")
            kept[record.seed] = replace(record, arm=name)
        arms[name] = [kept[seed] for seed in sorted(kept)]
    return arms, twice


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """A name for each group: the words it was started with that not all were, else the settings that tell it apart."""
    if len(groups) == 1:
        return ["all"]
    words = [[word for word in group[0].overrides if _key(word) not in NO_DIFFERENCE] for group in groups]
    shared = set(words[0]).intersection(*words[1:])
    names = [", ".join(_short(word) for word in mine if word not in shared) for mine in words]
    return names if all(names) and len({*names}) == len(names) else _settings_as_names(groups)


def _settings_as_names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """As few of the differing settings as tell all groups apart, names of variants first."""
    differing = differences(group[0].config for group in groups)
    names = [""] * len(groups)
    for key in sorted(differing, key=lambda key: not key.endswith(".name")):
        short = key.removesuffix(".name").rpartition(".")[2]
        longer = [f"{name}, {short}={value}" for name, value in zip(names, differing[key], strict=True)]
        if len({*longer}) > len({*names}):
            names = longer
    return [name.removeprefix(", ") for name in names]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _short(word: str) -> str:
    """model/mlp=gelu as mlp=gelu."""
    key, equals, value = word.partition("=")
    return f"{re.split(r'[/.]', key)[-1]}{equals}{value}"


def _natural(path: Path) -> list[Any]:
    """A key by which seed10 comes after seed9."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdigit() else part for part in parts]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it cannot be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _last_line(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
