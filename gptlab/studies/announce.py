"""What a study says before it begins: arms, costs, points, and about how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab.comparison.words import MATCHED, NONE
from gptlab.display import duration
from gptlab.studies.plan import Arm, Plan

Done = Callable[[str, str], int]  # phase, arm -> how many of its points need not be run again


def announce(console: Console, plan: Plan, jobs: int, done: Done) -> None:
    """Print the plan: the question, the arms with their costs, the points that are left and the time that they take."""
    study = plan.study
    console.print(f"[bold]{escape(study.question or 'A study of ' + ', '.join(study.arms))}[/]")
    costs = MATCHED.get(study.match, "costs as they come")
    recipe = "learning rate tuned per arm" if study.tune == "lr" else "fixed recipe"
    seeds = f"{len(plan.seeds)} seeds" if len(plan.seeds) >= 5 else f"{len(plan.seeds)} seeds: a pilot"
    console.print(f"{study.metric}, {study.better} is better, margin {study.margin:g}; {costs}; {recipe}; {seeds}")
    console.print(_table(plan, plan.arms))
    for phase, arms in plan.sizes.items():
        console.print(f"at {phase} of the width")
        console.print(_table(plan, arms))
    total = 0.0
    for phase, left, points, seconds in phases(plan, done):
        of = "" if left == points else f" of {points}"
        console.print(f"{phase:>8}  {left}{of} points, {duration(seconds)} one after the other")
        total += seconds
    console.print(f"about {duration(total / jobs)} with {jobs} at a time, each on {_count(plan.threads, 'thread')}")


def phases(plan: Plan, done: Done) -> Iterator[tuple[str, int, int, float]]:
    """For each phase: how many points are left, and there are, at most; the seconds that those take one by one."""
    study, n = plan.study, len(plan.seeds)
    asked: dict[str, tuple[Sequence[Arm], int, float]] = {}  # phase -> its arms, points of each, share of the steps
    if study.tune == "lr":
        asked["tune"] = plan.arms, (study.tune_points + study.tune_extra) * study.tune_seeds, 1.0
    for number, share in enumerate(study.screen or (), start=1):
        asked[f"screen{number}"] = plan.arms, n, share
    for phase, same in {"test": plan.arms, **plan.sizes}.items():
        asked[phase] = same, n, 1.0
    for phase, (arms, each, share) in asked.items():
        left = [max(0, each - done(phase, arm.name)) for arm in arms]
        seconds = share * sum(some * arm.costs["seconds"] for some, arm in zip(left, arms, strict=True))
        yield phase, sum(left), each * len(arms), seconds


def _table(plan: Plan, arms: Sequence[Arm]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("arm", "overrides", "matched"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "FLOPs/token", "tokens", "s/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms:
        costs, flops = arm.costs, arm.costs.get("flops_per_token")
        table.add_row(
            escape(arm.name),
            escape(" ".join(arm.overrides)),
            "baseline" if arm.name == plan.baseline else escape(_match(arm)),
            f"{costs['parameters']:,.0f}",
            NONE if flops is None else f"{flops:.4g}",
            f"{costs['tokens']:.4g}",
            f"{costs['seconds_per_step']:.3g}",
        )
    return table


def _match(arm: Arm) -> str:
    """expand 2.667 → 2.688, +0.4%: what was set, and how near the baseline's cost that is."""
    if arm.match is None:
        return ""
    found = arm.match
    before, after = f"{found['before']:.4g}", f"{found['after']:.4g}"
    change = after if before == after else f"{before} → {after}"
    return f"{found['width'].rpartition('.')[2]} {change}, {found['reached'] / found['target'] - 1:+.1%}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
