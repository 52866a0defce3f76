"""From what was asked to a plan: every arm composed, checked, matched, counted and timed before anything is run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptlab import matching, points
from gptlab.assembly import check
from gptlab.comparison.records import differences
from gptlab.config import from_dict, require
from gptlab.display import Display
from gptlab.errors import ConfigError, GptlabError, did_you_mean
from gptlab.matching import Tree
from gptlab.studies import ladder, plan, trial
from gptlab.studies.plan import Arm, Plan
from gptlab.studies.settings import LEAN, Request, StudyConfig, merged, refuse_idle
from gptlab.studies.tuning import RATE

Compose = Callable[[Sequence[str]], Tree]


def declare(request: Request, held: Plan | None, compose: Compose, display: Display) -> Plan:
    """The plan that a command asks for; where its study has begun, that plan with the seeds and arms that are new."""
    study = plan.extended(held, request) if held else request.study
    _refuse_too_few(study)
    refuse_idle(request.typed, vars(study))
    threads = held.threads if held else study.threads or threads_of(request.launcher)
    known = {arm.name: arm for arm in held.arms} if held else {}
    found = {name: _compose(study, name, compose) for name in study.arms if name not in known}
    if not found and held:
        return dataclasses.replace(held, study=study)
    found = {name: _checked(study, name, tree, display) for name, tree in found.items()}
    for tree in found.values():
        trial.require_metric(study.metric, tree)
    arms = [known.get(name) or Arm(name, study.arms[name], found[name]) for name in study.arms]
    for line in _alike(arms):
        display.note(line)
    sizes = {ladder.phase_of(factor): [_scaled(arm, factor) for arm in arms] for factor in ladder.factors(study)}
    made = Plan(study, threads, arms)
    arms = _costed(made, arms, known)
    for phase, scaled in sizes.items():
        before = {arm.name: arm for arm in held.sizes[phase]} if held else {}
        sizes[phase] = _costed(made, [before.get(arm.name, arm) for arm in scaled], before)
    return dataclasses.replace(held or made, study=study, arms=arms, sizes=sizes)


def threads_of(launcher: Sequence[str]) -> int:
    """Threads for a point, where none are said: the cores of this machine over the points that are run on it."""
    words = dict(word.partition("=")[::2] for word in launcher)
    if words.get("hydra/launcher") == "basic":
        return points.cores()
    jobs, told = words.get("hydra.launcher.jobs", ""), words.get("hydra.launcher.cpus_per_task", "1")
    if jobs.isdigit() and int(jobs) > 0:
        return max(1, points.cores() // int(jobs))
    return max(1, int(told)) if told.isdigit() else 1


def _refuse_too_few(study: StudyConfig) -> None:
    if len(study.arms) < 2:
        raise _too_few(study)
    require(
        not study.screen or (len(study.arms) > 2 and len(study.seeds_run) > 1),
        f"Screening takes three arms, of which two stay, and two seeds or more, but has {len(study.arms)} arms and "
        f"{len(study.seeds_run)} seeds: leave screen= out, or name more.",
    )
    if study.baseline is not None and study.baseline not in study.arms:
        raise ConfigError(f"There is no arm {study.baseline!r}. {did_you_mean(study.baseline, study.arms)}")


def _too_few(study: StudyConfig) -> ConfigError:
    """What to do about a study with less than two arms, by where it came from."""
    rule, values = "A study compares two arms or more", "list values of a setting, as in model/mlp=gelu,swiglu"
    if study.arms:
        return ConfigError(f"{rule}, but {' '.join(study.arms)} is the only one: name another beside it.")
    if study.study:
        return ConfigError(
            f"{rule}, but {study.study} names none: write arms: {{NAME: [KEY=VALUE], ...}}, or {values}."
        )
    if study.dir:
        return ConfigError(f"{study.dir} holds no study to go on with: mend dir=, or {values}, to begin one there.")
    said = f"{study.base[0]} is one value, for all runs" if len(study.base) == 1 else "no word has several values"
    return ConfigError(f"{rule}, but {said}: {values}, or choose study=NAME (gptlab study --help).")


@contextlib.contextmanager
def _naming(name: str, what: str = "cannot be") -> Iterator[None]:
    """Within, what is refused is said of an arm."""
    try:
        yield
    except GptlabError as error:
        raise ConfigError(f"The arm {name} {what}: {error}") from error


def _compose(study: StudyConfig, name: str, compose: Compose) -> Tree:
    with _naming(name):
        return compose(merged(LEAN, [f"name={study.name}"], study.base, study.arms[name]))


def _checked(study: StudyConfig, name: str, tree: Tree, display: Display) -> Tree:
    with _naming(name):
        return trial.checked(tree, [*study.base, *study.arms[name]], display)


def _scaled(arm: Arm, factor: float) -> Arm:
    """The arm at another size of the ladder, not matched yet."""
    with _naming(arm.name, f"cannot be {factor:g} times as wide"):
        return Arm(arm.name, arm.overrides, ladder.scaled(arm.config, factor))


def _alike(arms: Sequence[Arm]) -> Iterator[str]:
    """A line for every two arms that are one under two names."""
    for one, other in itertools.combinations(arms, 2):
        if _asked(one) == _asked(other):
            yield f"{one.name} and {other.name} have the same settings: an A/A, whose runs differ in nothing."


def _refuse_levelled(study: StudyConfig, arms: Sequence[Arm]) -> None:
    """ConfigError for arms that were asked to differ, in what matching or tuning sets for all."""
    for one, other in itertools.combinations(arms, 2):
        if _asked(one) != _asked(other) and _levelled(study, one) == _levelled(study, other):
            keys = ", ".join(differences([_asked(one), _asked(other)]))
            word = f"match={study.match}" if one.config == other.config else f"tune={study.tune}"
            raise ConfigError(
                f"The arms {one.name} and {other.name} differ only in {keys}, which {word} sets for every arm: leave "
                f"{word} out, or one of them."
            )


def _asked(arm: Arm) -> Tree:
    """The config of an arm before it was matched."""
    return matching.changed(arm.config, arm.match["width"], arm.match["before"]) if arm.match else arm.config


def _levelled(study: StudyConfig, arm: Arm) -> Tree:
    """The config of an arm, matched, but for what tuning sets."""
    return matching.changed(arm.config, RATE, None) if study.tune == "lr" else arm.config


def _costed(made: Plan, arms: Sequence[Arm], known: Mapping[str, Arm]) -> list[Arm]:
    """The arms matched to the baseline, counted and timed; those that are known stay as they are."""
    by_time = made.study.match == "time"
    times = _times(made, arms) if by_time else {}
    base = next(arm for arm in arms if arm.name == made.baseline)
    matched = [arm if arm.name in known or arm is base else _match(made, base, arm, times) for arm in arms]
    _refuse_levelled(made.study, matched)
    for arm in matched:
        with _naming(arm.name):
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

    with _naming(arm.name, "cannot be matched"):
        tree, match = matching.match(base.config, arm.config, study.match, study.width, study.tolerance, seconds)
    facts: dict[str, Any] | None = dataclasses.asdict(match) if match else None
    return dataclasses.replace(arm, config=tree, match=facts)
