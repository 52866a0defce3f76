"""A learning rate for each arm, found at the same budget for all, and how much it matters. No seed of it is tested.

Sensitivity: Wortsman et al. 2023, arXiv:2309.14322.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.comparison.runs import RunRecord, read_study
from gptlab.points import Order
from gptlab.studies.plan import Arm, Plan, order
from gptlab.studies.settings import TUNING_SEEDS

PHASE = "tune"
RATE = "optimizer.lr"
STEP = 2.0  # factor between two rates
DIGITS = 4  # of a rate

Losses = dict[float, float]  # rate -> the metric, mean over the tuning seeds, so that lower is better


@dataclass(frozen=True)
class Tuned:
    """What tuning found for an arm."""

    rate: float
    tried: Losses
    sensitivity: float | None  # mean excess over the best, on the rates that all arms begin with; of the metric
    at_edge: bool  # whether the budget ended with the best rate at an edge


def tune(
    plan: Plan, directory: Path, carry_out: Callable[[list[Order]], None], settings: Mapping[str, Any]
) -> dict[str, Tuned]:
    """For each arm a grid of rates around its own, then some more where the best is: arm -> what was found."""
    rates = {arm.name: grid(_own(arm), plan.study.tune_points) for arm in plan.arms}
    for extra in range(plan.study.tune_extra + 1):
        carry_out([point for arm in plan.arms for point in _points(plan, directory, arm, rates[arm.name], settings)])
        tried = losses(plan, directory, rates)
        if extra < plan.study.tune_extra:
            rates = {name: [*known, following(tried[name])] for name, known in rates.items()}
    return {arm.name: _judged(plan, arm, tried[arm.name]) for arm in plan.arms}


def grid(rate: float, n: int) -> list[float]:
    """n rates around one, factors of 2 apart."""
    return [_short(rate * STEP ** (i - (n - 1) // 2)) for i in range(n)]


def following(tried: Losses) -> float:
    """The next rate to try: beyond the best at an edge, else between the best and the better of its neighbours."""
    known = sorted(tried)
    best = min(known, key=lambda rate: (tried[rate], rate))  # of rates that all diverge, the lowest
    place = known.index(best)
    if place in (0, len(known) - 1):
        return _short(best / STEP if place == 0 else best * STEP)
    neighbour = min(known[place - 1], known[place + 1], key=lambda rate: tried[rate])
    return _short(math.sqrt(best * neighbour))


def sensitivity(tried: Losses, declared: Sequence[float], worst: float) -> float | None:
    """Mean of loss(rate) - least loss over the declared rates, what diverged counting as `worst`. None if all did."""
    finite = [loss for loss in tried.values() if math.isfinite(loss)]
    if not finite:
        return None
    return statistics.fmean(min(tried.get(rate, worst), max(worst, min(finite))) - min(finite) for rate in declared)


def describe(tuned: Mapping[str, Tuned]) -> Iterator[str]:
    """A line for each arm."""
    for name, found in tuned.items():
        spread = "" if found.sensitivity is None else f", sensitivity {found.sensitivity:.3g}"
        edge = ", the best at the edge of what was tried" if found.at_edge else ""
        nothing = "" if any(map(math.isfinite, found.tried.values())) else ", since no run ended with a number"
        yield f"{name}: learning rate {found.rate:g} of {len(found.tried)} tried{spread}{edge}{nothing}"


def losses(plan: Plan, directory: Path, rates: Mapping[str, Sequence[float]]) -> dict[str, Losses]:
    """The mean of each rate over the tuning seeds, from the files; a rate of which a run has no number is infinite."""
    comparison = read_study(directory)
    sign = -1.0 if plan.study.better == "higher" else 1.0
    found = {}
    for name, known in rates.items():
        records = comparison.others.get(PHASE, {}).get(name, [])
        found[name] = {rate: _mean(records, rate, comparison.metric, sign) for rate in known}
    return found


def _mean(records: Sequence[RunRecord], rate: float, metric: str, sign: float) -> float:
    values = [one.value(metric) for one in records if one.config["optimizer"]["lr"] == rate and one.status == "done"]
    known = [sign * value for value in values if value is not None and math.isfinite(value)]
    failed = any(one.status != "done" for one in records if one.config["optimizer"]["lr"] == rate)
    return statistics.fmean(known) if known and len(known) == len(values) and not failed else math.inf


def _judged(plan: Plan, arm: Arm, tried: Losses) -> Tuned:
    declared = grid(_own(arm), plan.study.tune_points)
    best = min(sorted(tried), key=lambda rate: tried[rate])
    if not math.isfinite(tried[best]):  # nothing was learned
        best = _own(arm)
    uniform = math.log(arm.config["model"]["vocab_size"]) if plan.study.metric == "val/loss" else -math.inf
    worst = max([uniform, *(loss for loss in tried.values() if math.isfinite(loss))])
    at_edge = best in (min(tried), max(tried))
    return Tuned(best, tried, sensitivity(tried, declared, worst), at_edge)


def _points(plan: Plan, directory: Path, arm: Arm, rates: Sequence[float], settings: Mapping[str, Any]) -> list[Order]:
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + plan.study.tune_seeds)
    return [
        order(plan, directory, PHASE, arm, seed, {**settings, RATE: rate}, lr=rate) for seed in seeds for rate in rates
    ]


def _own(arm: Arm) -> float:
    return float(arm.config["optimizer"]["lr"])


def _short(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")
