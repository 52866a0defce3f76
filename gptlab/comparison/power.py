"""How many seeds see how small an effect: noncentral t. Johnson & Welch 1940; for equivalence, Schuirmann 1987."""

from __future__ import annotations

import bisect

from scipy import special

POWER = 0.8
MOST = 1000  # seeds; beyond it nobody would run them, and the formula would only look exact


def power(effect: float, df: float, alpha: float) -> float:
    """The chance that a two-sided t test sees an effect, given in its standard errors, on the side where it is."""
    return 1 - float(special.nctdtr(df, abs(effect), special.stdtrit(df, 1 - alpha / 2)))


def equivalence_power(effect: float, margin: float, df: float, alpha: float) -> float:
    """The least chance that two one-sided tests find an effect inside the margin; both in standard errors."""
    t = special.stdtrit(df, 1 - alpha)
    misses = sum(special.nctdtr(df, away, t) for away in (margin - effect, margin + effect) if away > 0)
    return max(0.0, 1 - float(misses)) if abs(effect) < margin else 0.0


def least_detectable(df: float, alpha: float) -> float:
    """The effect, in standard errors, that a two-sided t test sees with a chance of 80%."""
    return float(special.nctdtrinc(df, 1 - POWER, special.stdtrit(df, 1 - alpha / 2)))


def seeds_needed(effect: float, sd: float, margin: float, *, arms: int, alpha: float, now: int) -> int | None:
    """The seeds that would settle it with a chance of 80%, one way or the other; None above 1000.

    `sd` is that of a paired difference, with (seeds - 1) * (arms - 1) degrees of freedom.
    """

    def settled(seeds: int) -> bool:
        df, se = (seeds - 1) * (arms - 1), sd / seeds**0.5
        chances = power(effect / se, df, alpha), equivalence_power(effect / se, margin / se, df, alpha)
        return max(chances) >= POWER

    if not sd:
        return None
    candidates = range(now + 1, MOST + 1)
    found = bisect.bisect_left(candidates, True, key=settled)
    return candidates[found] if found < len(candidates) else None
