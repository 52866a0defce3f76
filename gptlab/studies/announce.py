"""What a study says before it begins: arms, costs, points, and about how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab.display import duration
from gptlab.studies.plan import Arm, Plan

MATCHED = {
    "none": "costs as they come",
    "params": "equal parameters",
    "flops": "equal FLOPs",
    "time": "equal time",
}


def announce(console: Console, plan: Plan, jobs: int) -> None:
    """Print the plan: the question, the arms with their costs, the points and the time that they take."""
    study = plan.study
    console.print(f"[bold]{escape(study.question or 'A study of ' + ', '.join(study.arms))}[/]")
    recipe = "learning rate tuned per arm" if study.tune == "lr" else "fixed recipe"
    seeds = f"{len(plan.seeds)} seeds" if len(plan.seeds) >= 5 else f"{len(plan.seeds)} seeds: a pilot"
    console.print(
        f"{study.metric}, {study.better} is better, margin {study.margin:g}; {MATCHED[study.match]}; {recipe}; {seeds}"
    )
    console.print(_table(plan, plan.arms))
    for phase, arms in plan.sizes.items():
        console.print(f"at {phase} of the width")
        console.print(_table(plan, arms))
    total = 0.0
    for phase, points, seconds in phases(plan):
        console.print(f"{phase:>8}  {points} points, {duration(seconds)} one after the other")
        total += seconds
    console.print(f"about {duration(total / jobs)} with {jobs} at a time, each on {_count(plan.threads, 'thread')}")


def phases(plan: Plan) -> list[tuple[str, int, float]]:
    """For each phase the points that it has at most, and the seconds that they take one after the other."""
    study, n = plan.study, len(plan.seeds)
    once = sum(arm.costs["seconds"] for arm in plan.arms)
    found = []
    if study.tune == "lr":
        tries = (study.tune_points + study.tune_extra) * study.tune_seeds
        found.append(("tune", tries * len(plan.arms), tries * once))
    for number, share in enumerate(study.screen or (), start=1):
        found.append((f"screen{number}", n * len(plan.arms), n * share * once))
    for phase, arms in {"test": plan.arms, **plan.sizes}.items():
        found.append((phase, n * len(arms), n * sum(arm.costs["seconds"] for arm in arms)))
    return found


def _table(plan: Plan, arms: Sequence[Arm]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("arm", "overrides", "matched"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "FLOPs/token", "tokens", "s/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms:
        costs = arm.costs
        table.add_row(
            escape(arm.name),
            escape(" ".join(arm.overrides)),
            "baseline" if arm.name == plan.baseline else escape(_match(arm)),
            f"{costs['parameters']:,.0f}",
            f"{costs['flops_per_token']:.4g}",
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
