"""Arms that build on one another: what each adds to the one before, what that brought, and what it leaves behind."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptlab.comparison.figures import levels
from gptlab.comparison.records import Comparison, differences
from gptlab.comparison.table import Row, rows, seconds_of
from gptlab.comparison.verdict import Effect, Verdict, judge
from gptlab.comparison.words import NONE, count, duration, effect_of, score, setting

COLUMNS: dict[str, Callable[[Row], str]] = {  # column -> how a step is written there
    "adds to the one before": lambda step: ", ".join(step["adds"]) or NONE,
    "result": lambda step: score(step["mean"]),
    "change [95%]": lambda step: effect_of(step["low"], step["effect"], step["high"]),
    "past the": lambda step: step["past"] or NONE,
    "published": lambda step: step["published"] or NONE,
    "parameters": lambda step: count(step["parameters"]),
    "training": lambda step: duration(step["seconds"]),
}


def of(comparison: Comparison, verdict: Verdict) -> list[Row]:
    """Each arm's row of the table in the order of the plan, its effect being that on the arm before it.

    Empty where the plan does not say that its arms are steps.
    """
    if not (comparison.plan or {}).get("stepwise"):
        return []
    found = rows(comparison, verdict)
    arms: list[str] = [row["arm"] for row in found]
    return [row | _step(comparison, before, row) for before, row in zip([None, *arms], found, strict=False)]


def lines(comparison: Comparison, verdict: Verdict) -> Iterator[str]:
    """The steps for a terminal, below what takes no model."""
    steps = of(comparison, verdict)
    if steps and (known := without_a_model(comparison)):
        yield f"without a model: {known}"
    for step in steps:
        result, change, past, published = (write(step) for write in list(COLUMNS.values())[1:5])
        yield f"{step['arm']}: {result}, change {change}, past the {past}, published {published}"


def without_a_model(comparison: Comparison) -> str:
    """What counting comes to on the same split: the bigram, then smoothed n-grams."""
    done = (record.summary for record in comparison.records() if record.status == "done")
    counted = next((summary["counted_bigram"]["val"] for summary in done if summary.get("counted_bigram")), None)
    exact = {"counted bigram": counted} if counted is not None and comparison.metric == "val/loss" else {}
    return ", ".join(f"{name} {score(level)}" for name, level in {**exact, **levels(comparison)}.items())


def added(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In what a model's config is another than that before it: sizes, parts, and options of the parts that stay."""
    found = differences([before, after])
    replaced = [key.removesuffix("name") for key in found if key.endswith(".name")]
    return [
        f"{key.removesuffix('.name')} {setting(old)} → {setting(new)}"
        for key, (old, new) in found.items()
        if not any(key.startswith(part) and key != f"{part}name" for part in replaced)
    ]


def _step(comparison: Comparison, before: str | None, row: Row) -> Row:
    """What the table does not say of an arm."""
    effect = _effect(comparison, before, row["arm"]) if before else None
    models = [
        first.config.get("model") or {} for arm in (before, row["arm"]) if arm and (first := comparison.first(arm))
    ]
    return {
        "adds": added(*models) if len(models) == 2 else [],
        "effect": getattr(effect, "mean", None),
        "low": getattr(effect, "low", None),
        "high": getattr(effect, "high", None),
        "past": _past(comparison, row["mean"]),
        "published": str(((comparison.plan or {}).get("published") or {}).get(row["arm"], "")),
        "seconds": _seconds(comparison, row["arm"]),
    }


def _effect(comparison: Comparison, before: str, arm: str) -> Effect | None:
    """The arm against the one before it, the error pooled as in the verdict; None where there are too few seeds."""
    found = judge(comparison.values(), before, margin=comparison.margin, better=comparison.better)
    return next((effect for effect in found.effects if effect.arm == arm and effect.verdict != "none"), None)


def _past(comparison: Comparison, mean: float | None) -> str:
    """The hardest of what takes no model that a result is better than."""
    sign = 1 if comparison.better == "lower" else -1
    beaten = {
        name: level for name, level in levels(comparison).items() if mean is not None and sign * (level - mean) > 0
    }
    return min(beaten, key=lambda name: sign * beaten[name], default="")


def _seconds(comparison: Comparison, arm: str) -> float | None:
    """The median of what the training of a run took."""
    spent = [seconds_of(record) for record in comparison.arms[arm] if record.status == "done"]
    known = [each for each in spent if each is not None]
    return statistics.median(known) if known else None
