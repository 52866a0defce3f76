"""Numbers and verdicts in words: four digits of a loss, a cost with its unit, an effect as a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptlab.comparison.records import Comparison

if TYPE_CHECKING:
    from gptlab.comparison.verdict import Effect

NONE = "–"  # where there is no number
UNITS = {"loss": "nats per token", "bpb": "bits per byte"}
MATCHED = {"params": "equal parameters", "flops": "equal FLOPs", "time": "equal time"}


def unit(metric: str) -> str:
    """What a difference in a metric is counted in, as it follows a number."""
    return UNITS.get(metric.rpartition("/")[2].partition("@")[0], f"in {metric}")


def either(write: Callable[[float], str]) -> Callable[[Any], str]:
    """A way of writing numbers that writes a dash where there is none."""

    def written(number: Any) -> str:
        return NONE if number is None or not math.isfinite(number) else write(number)

    return written


@either
def score(number: float) -> str:
    """A loss or an accuracy."""
    return f"{number:.4f}"


@either
def count(number: float) -> str:
    """A count in three digits: 421, 12.3k, 0.42M, 124M, 4.10G."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            digits = 2 if number < 10 * size else 1 if number < 100 * size else 0
            return f"{number / size:.{digits}f}{letter}"
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number / 1e3:.1f}k" if number >= 1e4 else f"{number:.0f}"


@either
def duration(seconds: float) -> str:
    """Seconds with the unit that suits them."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return (
        f"{seconds:.3g} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


@either
def memory(size: float) -> str:
    """Bytes as MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@either
def probability(p: float) -> str:
    """A p-value in two digits."""
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def effect_of(low: float | None, mean: float | None, high: float | None, kind: str = "") -> str:
    """A difference with its interval, in as many digits as the interval gives it."""
    if low is None or mean is None or high is None or not math.isfinite(mean):
        return NONE
    digits = _digits(low, high)
    return f"{_signed(mean, digits)}{' ' * bool(kind)}{kind} [{_signed(low, digits)}, {_signed(high, digits)}]"


def sentence(effect: Effect, comparison: Comparison) -> str:
    """What was found of an arm, with its interval and the terms that it was found on."""
    base, kind = comparison.baseline, unit(comparison.metric)
    terms = _terms(effect, comparison)
    if effect.verdict == "none":
        pairs = f"{effect.n} paired seed{'s' * (effect.n != 1)}"
        return f"{effect.arm} is not judged against {base}: {pairs}{_unstable(effect)}."
    if effect.verdict in ("better", "worse"):
        ends = sorted((-effect.high, -effect.low) if effect.mean < 0 else (effect.low, effect.high))
        digits = _digits(*ends)
        by = f"by {abs(effect.mean):.{digits}f} {kind} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
        return f"{effect.arm} is {effect.verdict} than {base} {by}, {terms}."
    found = f"the difference is {effect_of(effect.low, effect.mean, effect.high, kind)}"
    if effect.verdict == "equivalent":
        return f"{effect.arm} is equivalent to {base} within {comparison.margin:g}: {found}, {terms}."
    settled = f" About {effect.seeds_needed} seeds would settle it." if effect.seeds_needed else ""
    return f"{effect.arm} against {base} is inconclusive: {found}, {terms}.{settled}"


def recipe(comparison: Comparison) -> str:
    """Whether every arm had a learning rate of its own."""
    tuned = (comparison.plan or {}).get("tune") not in (None, "none", False)
    return "tuned learning rates" if tuned else "fixed recipe"


def matched(comparison: Comparison) -> str:
    """What the arms have equal."""
    return MATCHED.get(str((comparison.plan or {}).get("match")), "costs not matched")


def setting(value: Any) -> str:
    """A value of a config, short."""
    if value is None:
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def _terms(effect: Effect, comparison: Comparison) -> str:
    return f"{effect.n} seeds{_unstable(effect)}, {matched(comparison)}, {recipe(comparison)}"


def _unstable(effect: Effect) -> str:
    return f", unstable {effect.unstable}/{effect.n_runs}" if effect.unstable else ""


def _digits(low: float, high: float) -> int:
    """Two digits of half the interval: from 3 to 6 decimals."""
    half = (high - low) / 2
    return min(6, max(3, 1 - math.floor(math.log10(half)))) if half > 0 and math.isfinite(half) else 4


def _signed(number: float, digits: int) -> str:
    """With its sign, unless it is 0 as it is written."""
    text = f"{number:+.{digits}f}"
    return text if float(text) else text[1:]
