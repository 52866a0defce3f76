"""Successive halving with a conscience: after each short run an arm leaves only if it cannot be better.

Successive halving: Jamieson & Talwalkar 2016, arXiv:1502.07943.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.comparison.runs import read_study
from gptlab.comparison.verdict import Effect, judge
from gptlab.points import Order
from gptlab.studies.plan import Arm, Plan, order
from gptlab.studies.settings import SCREENING_SEEDS
from gptlab.studies.tuning import RATE

FIRST, SECOND = {"trainer.eval_part": "first"}, {"trainer.eval_part": "second"}  # choose on one, judge on the other


@dataclass(frozen=True)
class Rung:
    """What a rung said: the steps of its runs, and the interval of each arm that left, arm minus baseline."""

    phase: str
    steps: dict[str, int]
    left: dict[str, tuple[float, float]]
    kept: str | None = None  # the arm that stays although it looks worse, so that there is a verdict


def screen(
    plan: Plan, directory: Path, carry_out: Callable[[list[Order]], None], rates: Mapping[str, float]
) -> tuple[list[Arm], list[Rung]]:
    """Rung after rung, each of whole runs with a schedule of their own: the arms that stay, and what was said.

    All rungs use the same seeds, which no test uses, and the first half of the validation split.
    """
    arms, rungs = list(plan.arms), []
    for number, share in enumerate(plan.study.screen or (), start=1):
        phase = f"screen{number}"
        steps = {arm.name: max(1, round(share * arm.config["trainer"]["steps"])) for arm in arms}
        points = []
        for seed in range(SCREENING_SEEDS, SCREENING_SEEDS + len(plan.seeds)):
            for arm in arms:
                settings = {**FIRST, "trainer.steps": steps[arm.name], RATE: rates[arm.name]}
                points.append(order(plan, directory, phase, arm, seed, settings))
        carry_out(points)
        rung = _judged(plan, directory, phase, steps)
        arms = [arm for arm in arms if arm.name not in rung.left]
        rungs.append(rung)
    return arms, rungs


def _judged(plan: Plan, directory: Path, phase: str, steps: dict[str, int]) -> Rung:
    comparison = read_study(directory)
    found = {name: runs for name, runs in comparison.others.get(phase, {}).items() if name in steps}
    study = plan.study
    effects = judge(comparison.values(found), plan.baseline, margin=study.margin, better=study.better).effects
    sign = -1 if study.better == "higher" else 1
    hopeless = [effect for effect in effects if ruled_out(effect, sign)]
    kept = None
    if hopeless and len(hopeless) == len(steps) - 1:
        best = min(hopeless, key=lambda effect: sign * effect.mean)
        hopeless.remove(best)
        kept = best.arm
    return Rung(phase, steps, {effect.arm: (effect.low, effect.high) for effect in hopeless}, kept)


def describe(rungs: Sequence[Rung]) -> Iterator[str]:
    """A line for each arm that left, and one for a rung that none left."""
    for rung in rungs:
        for name, (low, high) in rung.left.items():
            yield f"{rung.phase}: {name} leaves, [{low:+.4f}, {high:+.4f}] rules out that it is better"
        if rung.kept:
            yield f"{rung.phase}: {rung.kept} stays as the last variant, though it looks worse"
        if not rung.left:
            yield f"{rung.phase}: all stay"


def ruled_out(effect: Effect, sign: int) -> bool:
    """Whether the whole interval is on the worse side. `sign` is 1 where lower is better, -1 where higher is."""
    return effect.n >= 2 and (effect.low > 0 if sign > 0 else effect.high < 0)
