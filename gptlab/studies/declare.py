"""From what was asked to a plan: every arm composed, checked, matched, counted and timed before anything is run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptlab import matching
from gptlab.config import from_dict
from gptlab.display import Display
from gptlab.errors import ConfigError, did_you_mean
from gptlab.matching import Tree
from gptlab.run import check
from gptlab.studies import ladder, plan, trial
from gptlab.studies.plan import Arm, Plan
from gptlab.studies.settings import LEAN, Request, StudyConfig, merged

Compose = Callable[[Sequence[str]], Tree]
CORES = os.cpu_count() or 1


def declare(request: Request, held: Plan | None, compose: Compose, display: Display) -> Plan:
    """The plan that a command asks for; where its study has begun, that plan with the seeds and arms that are new."""
    study = plan.extended(held, request) if held else request.study
    _refuse_too_few(study)
    threads = held.threads if held else study.threads or threads_of(request.launcher)
    known = {arm.name: arm for arm in held.arms} if held else {}
    found = {name: _compose(study, name, made, compose) for name, made in study.arms.items() if name not in known}
    if not found and held:
        return dataclasses.replace(held, study=study)
    found = {name: trial.checked(tree, [*study.base, *study.arms[name]], display) for name, tree in found.items()}
    for tree in found.values():
        trial.require_metric(study.metric, tree)
    arms = [known.get(name) or Arm(name, study.arms[name], found[name]) for name in study.arms]
    made = Plan(study, threads, arms)
    arms = _costed(made, arms, known)
    sizes = {}
    for factor in ladder.factors(study):
        phase = ladder.phase_of(factor)
        before = {arm.name: arm for arm in held.sizes[phase]} if held else {}
        wide = [dataclasses.replace(arm, config=ladder.scaled(arm.config, factor)) for arm in made.arms]
        sizes[phase] = _costed(made, [before.get(arm.name, arm) for arm in wide], before)
    return dataclasses.replace(held or made, study=study, arms=arms, sizes=sizes)


def threads_of(launcher: Sequence[str]) -> int:
    """Threads for a point, where none are said: the cores of this machine over the points that are run on it."""
    words = dict(word.partition("=")[::2] for word in launcher)
    if words.get("hydra/launcher") == "basic":
        return CORES
    jobs, told = words.get("hydra.launcher.jobs", ""), words.get("hydra.launcher.cpus_per_task", "1")
    if jobs.isdigit() and int(jobs) > 0:
        return max(1, CORES // int(jobs))
    return max(1, int(told)) if told.isdigit() else 1


def _refuse_too_few(study: StudyConfig) -> None:
    if not study.arms and study.dir:
        raise ConfigError(f"{study.dir} holds no study to go on with: mend dir=, or list values to begin one there.")
    if len(study.arms) < 2:
        raise ConfigError(
            f"A study compares two arms or more, but has {len(study.arms)}: list values of a setting, as in "
            "model/mlp=gelu,swiglu, or choose study=NAME (gptlab study --help)."
        )
    if study.baseline is not None and study.baseline not in study.arms:
        raise ConfigError(f"There is no arm {study.baseline!r}. {did_you_mean(study.baseline, study.arms)}")


def _compose(study: StudyConfig, name: str, overrides: Sequence[str], compose: Compose) -> Tree:
    try:
        return compose(merged(LEAN, [f"name={study.name}"], study.base, overrides))
    except ConfigError as error:
        raise ConfigError(f"The arm {name} cannot be: {error}") from error


def _costed(made: Plan, arms: Sequence[Arm], known: Mapping[str, Arm]) -> list[Arm]:
    """The arms matched to the baseline, counted and timed; those that are known stay as they are."""
    by_time = made.study.match == "time"
    times = _times(made, arms) if by_time else {}
    base = next(arm for arm in arms if arm.name == made.baseline)
    matched = [arm if arm.name in known or arm is base else _match(made, base, arm, times) for arm in arms]
    for arm in matched:
        check(from_dict({**arm.config, "seed": 0}))
    fresh = [arm for arm in matched if arm.name not in known]
    times = times or _times(made, fresh)
    costs = {arm.name: trial.counted(arm.config, times[arm.name]) for arm in fresh}
    return [dataclasses.replace(arm, costs=costs.get(arm.name, arm.costs)) for arm in matched]


def _times(made: Plan, arms: Sequence[Arm]) -> dict[str, float]:
    """Arm -> seconds of a step."""
    measured = trial.paces([(arm.name, arm.config) for arm in arms], made.threads)
    return {arm.name: seconds for arm, seconds in zip(arms, measured, strict=True)}


def _match(made: Plan, base: Arm, arm: Arm, times: Mapping[str, float]) -> Arm:
    study = made.study
    names = {id(base.config): base.name, id(arm.config): arm.name}

    def seconds(tree: Tree) -> float:
        return times[names[id(tree)]]

    try:
        tree, match = matching.match(base.config, arm.config, study.match, study.width, study.tolerance, seconds)
    except ConfigError as error:
        raise ConfigError(f"The arm {arm.name} cannot be matched: {error}") from error
    facts: dict[str, Any] | None = dataclasses.asdict(match) if match else None
    return dataclasses.replace(arm, config=tree, match=facts)
