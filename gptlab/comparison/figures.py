"""The figures of a comparison: effects with intervals, learning curves with the n-gram ruler, loss against cost, the
ladder of sizes and the sensitivity to the learning rate. Each as SVG and PNG, and as a part of the page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.comparison.drawing import BAND, FAINT, INK, MUTED, PAPER, Look, beside, canvas, looks, save, short
from gptlab.comparison.records import Comparison, RunRecord
from gptlab.comparison.table import flops_of, seconds_of
from gptlab.comparison.words import score, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gptlab.comparison.verdict import Effect, Verdict

AXES = {"steps": "steps", "tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds"}
SETTLED = 0.3  # share of a curve that may lie above the picture: its first drop would press the rest flat
Point = tuple[float, float, float]  # x, mean, half of the band
Series = list[Point]


def draw(comparison: Comparison, verdict: Verdict, ladder: Mapping[str, Verdict], folder: Path) -> dict[str, str]:
    """Draw all figures that there is something for; name -> SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    style = looks([*comparison.arms, *comparison.others.get("tune", {})], comparison.baseline)
    drawn = {}
    if any(effect.verdict != "none" for effect in verdict.effects):
        drawn["forest"] = forest(comparison, verdict, style, folder)
    for over in AXES:
        series = {arm: curve(records, comparison.metric, over) for arm, records in comparison.arms.items()}
        if any(len(points) > 1 for points in series.values()):
            drawn[f"curves_{over}"] = curves(comparison, over, series, style, folder)
    if costs := _costs(comparison):
        drawn["pareto"] = pareto(comparison, verdict, costs, style, folder)
    if len(ladder) > 1:
        drawn["ladder"] = climb(comparison, ladder, style, folder)
    if tried := rates(comparison):
        drawn["rates"] = sensitivity(comparison, tried, style, folder)
    return drawn


def forest(comparison: Comparison, verdict: Verdict, style: Mapping[str, Look], folder: Path) -> str:
    """Effects with their intervals, the difference in each seed behind them, and the margin as a band."""
    values = comparison.values()
    base = values.get(comparison.baseline, {})
    effects = list(reversed(verdict.effects))
    with canvas("forest", height=1.25 + 0.45 * len(effects)) as figure:
        axes = figure.add_subplot()
        axes.axvspan(-comparison.margin, comparison.margin, color=BAND, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        for height, effect in enumerate(effects):
            pairs = [(value, base.get(seed)) for seed, value in values.get(effect.arm, {}).items()]
            apart = [value - other for value, other in pairs if value is not None and other is not None]
            axes.plot(apart, [height - 0.24] * len(apart), "|", color=MUTED, markersize=6, markeredgewidth=1)
            _draw_effect(axes, height, effect, style[effect.arm])
        axes.set_yticks(range(len(effects)), [short(effect.arm) for effect in effects])
        axes.set_ylim(-0.6, len(effects) - 0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=7)
        side = "left" if comparison.better == "lower" else "right"
        axes.set_xlabel(f"difference from {short(comparison.baseline)}, {unit(comparison.metric)} ({side} is better)")
        labels = [(float(height), effect.verdict, INK, False) for height, effect in enumerate(effects)]
        beside(axes, labels)
        return save(figure, "forest", folder)


def curve(records: Sequence[RunRecord], metric: str, over: str) -> Series:
    """The mean of the finished runs of an arm at each step that all evaluated, with their standard deviation."""
    runs = [record for record in records if record.status == "done"]
    found = [(run, {row["step"]: row for row in run.rows() if row.get(metric) is not None}) for run in runs]
    found = [(run, rows) for run, rows in found if rows]
    points: Series = []
    for step in sorted(set.intersection(*(set(rows) for _, rows in found))) if found else []:
        met = [(run, rows[step]) for run, rows in found]
        places = [_place(row, run, over) for run, row in met]
        known = [place for place in places if place is not None]
        if len(known) == len(met):
            heights = [row[metric] for _, row in met]
            spread = statistics.stdev(heights) if len(heights) > 1 else 0.0
            points.append((statistics.fmean(known), statistics.fmean(heights), spread))
    return points


def curves(
    comparison: Comparison, over: str, series: Mapping[str, Series], style: Mapping[str, Look], folder: Path
) -> str:
    """Learning curves: the mean of each arm, one standard deviation around it, and what n-grams score."""
    name = f"curves_{over}"
    with canvas(name) as figure:
        axes = figure.add_subplot()
        labels = []
        for arm, points in series.items():
            if points:
                xs, means, bands = (list(column) for column in zip(*points, strict=True))
                _draw_band(axes, xs, means, bands, style[arm])
                labels.append((means[-1], f"{short(arm)} {score(means[-1])}", style[arm].color, True))
        axes.set_xlabel(AXES[over])
        axes.set_ylabel(comparison.metric)
        axes.set_xlim(left=0)
        axes.grid(axis="y")
        _count_along(axes)
        _look_past_the_drop(axes, list(series.values()), comparison)
        beside(axes, [*labels, *_draw_levels(axes, comparison)])
        return save(figure, name, folder)


def levels(comparison: Comparison) -> dict[str, float]:
    """What needs no model to reach: of a loss n-grams on the same split, of a task chance."""
    summaries = [record.summary for record in comparison.records() if record.status == "done"]
    name = comparison.metric.rpartition("/")[2].partition("@")[0]
    chances: dict[str, float] = next((summary["chance"] for summary in summaries if summary.get("chance")), {})
    ruler: dict[str, float] = next((summary["ruler"] for summary in summaries if summary.get("ruler")), {})
    found = {f"{order}-gram": float(level) for order, level in ruler.items() if comparison.metric == "val/loss"}
    return {**found, **({"chance": float(chances[name])} if name in chances else {})}


def pareto(
    comparison: Comparison,
    verdict: Verdict,
    costs: Mapping[str, Mapping[str, float]],
    style: Mapping[str, Look],
    folder: Path,
) -> str:
    """The metric against what the training cost; a line joins the arms that no other beats in both."""
    ends = _ends(comparison, verdict)
    with canvas("pareto", height=3.6) as figure:
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (label, cost) in zip(panels, costs.items(), strict=True):
            front = efficient({arm: (cost[arm], ends[arm][0]) for arm in cost}, comparison.better)
            corners = [(cost[arm], ends[arm][0]) for arm in front]
            axes.plot(*zip(*corners, strict=True), color=FAINT, linewidth=5, solid_capstyle="round", zorder=1)
            for arm, x in cost.items():
                look, (mean, half) = style[arm], ends[arm]
                fill = look.color if arm in front else PAPER
                shape = {"marker": look.marker, "markerfacecolor": fill, "markersize": 7}
                axes.errorbar(x, mean, yerr=half, color=look.color, linewidth=1.2, **shape)
            axes.set_xlabel(label)
            axes.grid(axis="y")
            _no_false_spread(axes, list(cost.values()))
        panels[0].set_ylabel(comparison.metric)
        beside(panels[-1], [(mean, short(arm), style[arm].color, True) for arm, (mean, _) in ends.items()])
        return save(figure, "pareto", folder)


def efficient(points: Mapping[str, tuple[float, float]], better: str = "lower") -> list[str]:
    """The Pareto front of (cost, metric) by name, the cheapest first: none costs less and is as good."""
    sign = 1 if better == "lower" else -1
    front: list[str] = []
    best = math.inf
    for name in sorted(points, key=lambda name: (points[name][0], sign * points[name][1])):
        if sign * points[name][1] < best:
            best = sign * points[name][1]
            front.append(name)
    return front


def climb(comparison: Comparison, ladder: Mapping[str, Verdict], style: Mapping[str, Look], folder: Path) -> str:
    """The effect of each arm at every size, with its interval."""
    with canvas("ladder") as figure:
        axes = figure.add_subplot()
        axes.axhspan(-comparison.margin, comparison.margin, color=BAND, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=1)
        arms = [arm for arm in comparison.arms if arm != comparison.baseline]
        labels = []
        for number, arm in enumerate(arms):
            aside = 0.08 * (number - (len(arms) - 1) / 2)
            found = [(place, _effect(verdict, arm)) for place, verdict in enumerate(ladder.values())]
            judged = [(place + aside, effect) for place, effect in found if effect and effect.verdict != "none"]
            if judged:
                look, means = style[arm], [effect.mean for _, effect in judged]
                bars = [
                    [effect.mean - effect.low for _, effect in judged],
                    [effect.high - effect.mean for _, effect in judged],
                ]
                axes.errorbar(
                    [x for x, _ in judged], means, yerr=bars, color=look.color, marker=look.marker, linestyle=look.dash,
                    markersize=6, capsize=3,
                )  # fmt: skip
                labels.append((means[-1], short(arm), look.color, True))
        axes.set_xticks(range(len(ladder)), list(ladder))
        axes.set_xlabel("size, as a factor of the width")
        axes.set_ylabel(f"difference from {short(comparison.baseline)}, {unit(comparison.metric)}")
        axes.grid(axis="y")
        beside(axes, labels)
        return save(figure, "ladder", folder)


def rates(comparison: Comparison) -> dict[str, Series]:
    """What each learning rate came to in tuning: arm -> (rate, mean, spread over its seeds)."""
    tried: dict[str, Series] = {}
    for arm, records in comparison.others.get("tune", {}).items():
        found: dict[float, list[float]] = {}
        for record in records:
            value = record.value(comparison.metric) if record.status == "done" else None
            if value is not None and math.isfinite(value):
                found.setdefault(float(record.config["optimizer"]["lr"]), []).append(value)
        if found:
            tried[arm] = [
                (lr, statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else 0.0)
                for lr, each in sorted(found.items())
            ]
    return tried


def sensitivity(comparison: Comparison, tried: Mapping[str, Series], style: Mapping[str, Look], folder: Path) -> str:
    """The metric over the learning rates that were tried; the best of each arm is filled."""
    pick: Callable[..., Point] = min if comparison.better == "lower" else max
    with canvas("rates") as figure:
        axes = figure.add_subplot()
        labels = []
        for arm, points in tried.items():
            look = style[arm]
            xs, means, bands = (list(column) for column in zip(*points, strict=True))
            _draw_band(axes, xs, means, bands, look)
            axes.plot(xs, means, look.marker, color=look.color, markerfacecolor=PAPER, markersize=6)
            best = pick(points, key=lambda point: point[1])
            axes.plot(best[0], best[1], look.marker, color=look.color, markersize=8)
            labels.append((means[-1], short(arm), look.color, True))
        _rates_along(axes, sorted({rate for points in tried.values() for rate, _, _ in points}))
        axes.set_ylabel(comparison.metric)
        axes.grid(axis="y")
        beside(axes, labels)
        return save(figure, "rates", folder)


def _draw_effect(axes: Axes, height: float, effect: Effect, look: Look) -> None:
    """One row of the forest; an effect that is not settled is hollow."""
    if effect.verdict == "none":
        return
    settled = effect.verdict != "inconclusive"
    axes.plot([effect.low, effect.high], [height, height], color=look.color, linewidth=2.2, solid_capstyle="butt")
    fill = look.color if settled else PAPER
    axes.plot(
        effect.mean, height, look.marker, color=look.color, markerfacecolor=fill, markersize=7, markeredgewidth=1.6
    )


def _draw_band(axes: Axes, xs: Sequence[float], means: Sequence[float], bands: Sequence[float], look: Look) -> None:
    low, high = ([mean + sign * band for mean, band in zip(means, bands, strict=True)] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=look.color, alpha=0.12, linewidth=0)
    marks: dict[str, Any] = {"marker": look.marker, "markersize": 4, "markevery": max(1, len(xs) // 8)}
    axes.plot(xs, means, color=look.color, linestyle=look.dash, linewidth=1.6, **marks)


def _draw_levels(axes: Axes, comparison: Comparison) -> list[tuple[float, str, str, bool]]:
    """The ruler where it lies in the picture, as dotted lines; their labels."""
    bottom, top = axes.get_ylim()
    shown = {name: level for name, level in levels(comparison).items() if bottom <= level <= top}
    for level in shown.values():
        axes.axhline(level, color=MUTED, linewidth=0.7, linestyle=(0, (1, 3)), zorder=1)
    return [(level, f"{name} {level:.2f}", MUTED, False) for name, level in shown.items()]


def _look_past_the_drop(axes: Axes, series: Sequence[Series], comparison: Comparison) -> None:
    """Leave the first drop of the losses (the first rise of an accuracy stays) above the picture.

    The nearest levels below and above are in it, unless they would press the curves into less than half of it.
    """
    if comparison.better == "higher":
        return
    far = max((points[-1][0] for points in series if points), default=0)
    shown = [
        mean + side * band for points in series for x, mean, band in points if x >= SETTLED * far for side in (-1, 1)
    ]
    if shown:
        low, high = min(shown), max(shown)
        near = [level for level in levels(comparison).values() if max(low - level, level - high) < (high - low) / 2]
        low = max((level for level in near if level < low), default=low)
        high = min((level for level in near if level > high), default=high)
        room = 0.06 * ((high - low) or 0.1)
        axes.set_ylim(low - room, high + room)


def _place(row: Mapping[str, Any], run: RunRecord, over: str) -> float | None:
    """Where a row is on an axis."""
    if over == "flops" and row.get("flops") is None:
        each, tokens = run.summary.get("flops_per_token"), row.get("tokens")
        return None if each is None or tokens is None else each * tokens
    place = row.get("step" if over == "steps" else over)
    return None if place is None else float(place)


def _ends(comparison: Comparison, verdict: Verdict) -> dict[str, tuple[float, float]]:
    """Where each arm ended, and half of the interval of its difference: the baseline's mean and the effects on it."""
    means = {arm: statistics.fmean(values) for arm, values in _finite(comparison).items() if values}
    base = means.get(comparison.baseline, 0.0)
    judged = {effect.arm: effect for effect in verdict.effects if effect.verdict != "none"}
    found = {arm: (base + effect.mean, (effect.high - effect.low) / 2) for arm, effect in judged.items()}
    return {arm: found.get(arm, (mean, 0.0)) for arm, mean in means.items()}


def _costs(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Label of an axis -> arm -> what its training cost, where that is known of every arm that has values."""
    arms = [arm for arm, values in _finite(comparison).items() if values]
    found = {}
    for label, cost_of in (("training FLOPs", flops_of), ("training seconds", seconds_of)):
        spent = {arm: [cost_of(one) for one in comparison.arms[arm] if one.status == "done"] for arm in arms}
        known = {arm: [cost for cost in costs if cost is not None] for arm, costs in spent.items()}
        if known and all(known.values()):
            found[label] = {arm: statistics.fmean(costs) for arm, costs in known.items()}
    return found


def _finite(comparison: Comparison) -> dict[str, list[float]]:
    values = comparison.values()
    return {arm: [value for value in found.values() if value is not None] for arm, found in values.items()}


def _effect(verdict: Verdict, arm: str) -> Effect | None:
    return next((effect for effect in verdict.effects if effect.arm == arm), None)


def _count_along(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _rates_along(axes: Axes, found: Sequence[float]) -> None:
    """Learning rates on a logarithmic axis, written where they were tried."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.xaxis.set_major_locator(FixedLocator(found[:: math.ceil(len(found) / 8)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))


def _no_false_spread(axes: Axes, costs: Sequence[float]) -> None:
    """Costs that are equal look equal: the axis spans a fifth of them or more."""
    low, high = min(costs), max(costs)
    room = max(0.1 * (low + high) / 2, 0.15 * (high - low)) or 1.0
    axes.set_xlim(max(0.0, low - room), high + room)
    _count_along(axes)
