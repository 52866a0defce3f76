"""The verdict on each variant: a contrast with the baseline in randomised blocks, Holm 1979, two one-sided tests
(Schuirmann 1987), sign flips (Fisher 1935), and the seeds that would settle what is open. docs/method.md says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special

from gptlab.comparison.blocks import Array, Contrasts, contrasts
from gptlab.comparison.power import MOST, least_detectable, seeds_needed
from gptlab.errors import ConfigError, did_you_mean

PILOT = 5  # seeds, below which a study is a pilot
FLIPS = 6  # seeds, below which no sign flip can reach p < 0.05
EXACT = 16  # seeds, up to which all sign flips are counted
DRAWN = 20_000  # and beyond which this many are drawn
NONE = math.nan


@dataclass(frozen=True)
class Effect:
    """A variant minus the baseline, in the metric's unit. Numbers are NaN where the verdict is "none"."""

    arm: str
    n: int  # seeds that it has in common with the baseline
    mean: float
    low: float  # the interval is not corrected for the number of variants
    high: float
    p: float
    p_holm: float
    equivalence_p: float  # that it is outside the margin, after Holm
    sign_flip_p: float | None  # from 6 seeds, not corrected
    verdict: str  # better, worse, equivalent, inconclusive; none with fewer than 2 paired seeds
    seeds_needed: int | None  # of an inconclusive one
    unstable: int  # runs that diverged
    n_runs: int


@dataclass(frozen=True)
class Verdict:
    """All variants of a study."""

    baseline: str
    effects: tuple[Effect, ...]
    pooled_sd: float  # of one run's error; that of a paired difference is sqrt(2) times it
    df: int  # of the pooled error
    seed_correlation: float  # mean correlation of two arms over seeds; NaN below 3 seeds
    pooled: bool  # False: each variant by its own paired t
    detectable: float  # least effect that is better or worse with a chance of 80%, at Holm's strictest step
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Arm:
    """The runs of an arm, NaN where one diverged and where there is none."""

    name: str
    values: Float[Array, " S"]
    unstable: int
    n_runs: int

    @property
    def instability(self) -> float:
        return self.unstable / max(self.n_runs, 1)


def judge(
    values: Mapping[str, Mapping[int, float | None]],
    baseline: str,
    *,
    margin: float = 0.005,
    better: str = "lower",
    level: float = 0.95,
) -> Verdict:
    """The verdict on `values[arm][seed]`; None, NaN and inf are runs that diverged, a missing seed is no run."""
    _refuse(values, baseline, margin, better, level)
    seeds = sorted({seed for runs in values.values() for seed in runs})
    base, *variants = (_arm(name, values[name], seeds) for name in sorted(values, key=lambda name: name != baseline))
    judged = [arm for arm in variants if np.isfinite(arm.values - base.values).sum() >= 2]
    others = [_unjudged(arm, base) for arm in variants if arm not in judged]
    if not judged:
        return Verdict(baseline, tuple(others), NONE, 0, NONE, True, NONE, _common_notes(base, variants, seeds))
    table = np.stack([arm.values for arm in (base, *judged)])
    found, alpha = contrasts(table), 1 - level
    effects = {effect.arm: effect for effect in (*_effects(found, base, judged, margin, better, alpha), *others)}
    steps = [least_detectable(df, alpha / len(judged)) for df in found.df]
    ordered = tuple(effects[arm.name] for arm in variants)
    return Verdict(
        baseline,
        ordered,
        found.pooled.error,
        int(found.pooled.df),
        _seed_correlation(table),
        not found.own,
        float(np.median(steps * found.se)),
        (*_common_notes(base, variants, seeds), *_notes(found, [base, *judged], ordered, alpha)),
    )


def holm(p: Float[Array, " V"]) -> Float[Array, " V"]:
    """p-values such that rejecting those below alpha keeps the chance of any false rejection below it."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)]


def sign_flip(differences: Float[Array, " N"]) -> float:
    """The share of sign flips of paired differences whose mean is as far from 0: exact to 16 seeds, then drawn."""
    n = len(differences)
    sums = np.abs(_signs(n) @ differences)
    as_far = sums >= abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    return float(as_far.mean() if n <= EXACT else (1 + as_far.sum()) / (1 + DRAWN))


@functools.cache
def _signs(n: int) -> Float[Array, "F N"]:
    """All flips, but for that of all signs; above 16 seeds random ones, always the same."""
    if n > EXACT:
        return np.random.default_rng(0).choice((-1.0, 1.0), (DRAWN, n))
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
    return 1 - 2 * (bits & 1).astype(float)


def _refuse(values: Mapping[str, object], baseline: str, margin: float, better: str, level: float) -> None:
    if baseline not in values:
        raise ConfigError(f"The baseline must be an arm, but {baseline!r} is none. {did_you_mean(baseline, values)}")
    if not 0 <= margin < math.inf:
        raise ConfigError(
            f"margin must be a number of 0 or more, but is {margin}: give the largest difference that does not matter."
        )
    if better not in ("lower", "higher"):
        raise ConfigError(f"better must be lower or higher, but is {better!r}.")
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, but is {level}. The usual one is 0.95.")


def _arm(name: str, runs: Mapping[int, float | None], seeds: Sequence[int]) -> _Arm:
    found = {seed: NONE if value is None or not math.isfinite(value) else float(value) for seed, value in runs.items()}
    unstable = sum(map(math.isnan, found.values()))
    return _Arm(name, np.array([found.get(seed, NONE) for seed in seeds]), unstable, len(found))


def _unjudged(arm: _Arm, base: _Arm) -> Effect:
    n = int(np.isfinite(arm.values - base.values).sum())
    return Effect(arm.name, n, NONE, NONE, NONE, NONE, NONE, NONE, None, "none", None, arm.unstable, arm.n_runs)


def _effects(
    found: Contrasts, base: _Arm, arms: Sequence[_Arm], margin: float, better: str, alpha: float
) -> list[Effect]:
    """The tests of all variants, corrected together, and what they say of each."""
    p = 2 * special.stdtr(found.df, -np.abs(_t(found.mean, found.se)))
    inside = special.stdtr(found.df, -_t(margin - np.abs(found.mean), found.se))  # the farther of both margins decides
    half = special.stdtrit(found.df, 1 - alpha / 2) * found.se
    columns = (found.mean, found.mean - half, found.mean + half, p, holm(p), holm(inside))
    effects = []
    for row, arm in enumerate(arms):
        mean, low, high, raw, p_holm, p_outside = (float(column[row]) for column in columns)
        differences = (arm.values - base.values)[np.isfinite(arm.values - base.values)]
        n = len(differences)
        verdict = _verdict(mean, p_holm, p_outside, better, alpha, arm.instability - base.instability)
        needed = None
        if min(p_holm, p_outside) >= alpha:
            sd, counted = float(found.se[row]) * n**0.5, 2 if found.own else len(arms) + 1
            needed = seeds_needed(mean, sd, margin, arms=counted, alpha=alpha / len(arms), now=n)
        flipped = sign_flip(differences) if n >= FLIPS else None
        numbers = (n, mean, low, high, raw, p_holm, p_outside, flipped)
        effects.append(Effect(arm.name, *numbers, verdict, needed, arm.unstable, arm.n_runs))
    return effects


def _t(mean: Float[Array, " V"], se: Float[Array, " V"]) -> Float[Array, " V"]:
    """mean / se: infinite where there is a difference and no error, 0 where there is neither."""
    certain = np.copysign(np.where(mean == 0, 0, np.inf), mean)
    return np.divide(mean, se, out=certain, where=se > 0)


def _verdict(mean: float, p_holm: float, p_outside: float, better: str, alpha: float, less_stable: float) -> str:
    """A difference that is shown to be inside the margin is equivalent, even where it is shown not to be 0.

    Runs that diverged have no number: what the others show cannot favour an arm of which more runs diverged.
    """
    if p_outside < alpha:
        return "inconclusive" if less_stable else "equivalent"
    if p_holm >= alpha:
        return "inconclusive"
    good = (mean < 0) == (better == "lower")
    if good:
        return "inconclusive" if less_stable > 0 else "better"
    return "inconclusive" if less_stable < 0 else "worse"


def _seed_correlation(table: Float[Array, "A S"]) -> float:
    """How far a seed that is good for one arm is good for another: what blocks take out of the error."""
    there = np.isfinite(table)
    n = there.astype(float) @ there.T  # from here on [i, j] is of arm i over the seeds that arm j has too
    y = np.where(there, table - np.nanmean(table, 1, keepdims=True), 0)
    sums, some = y @ there.T, np.maximum(n, 1)
    products, squares = y @ y.T - sums * sums.T / some, (y * y) @ there.T - sums**2 / some
    varies = squares > (1e-12 * np.nanmax(np.abs(table))) ** 2  # by more than rounding
    pairs = (n >= 3) & varies & varies.T & np.tri(len(table), k=-1, dtype=bool)
    return float(np.mean(products[pairs] / np.sqrt((squares * squares.T)[pairs]))) if pairs.any() else NONE


def _common_notes(base: _Arm, variants: Sequence[_Arm], seeds: Sequence[int]) -> tuple[str, ...]:
    notes = [f"{len(seeds)} seed{'s' * (len(seeds) != 1)}: a pilot"] if len(seeds) < PILOT else []
    notes += [f"{arm.name}: unstable {arm.unstable}/{arm.n_runs}" for arm in (base, *variants) if arm.unstable]
    return tuple(notes)


def _notes(found: Contrasts, arms: Sequence[_Arm], effects: Sequence[Effect], alpha: float) -> list[str]:
    """What was done otherwise than in the plainest study, and why."""
    notes = [
        f"the errors of {arms[row].name} have {ratio:.3g} times the variance of the others': per-arm paired t"
        for row, ratio in found.own.items()
    ]
    if not found.own and any(np.isnan(arm.values).any() for arm in arms):
        notes.append("not every arm has every seed: effects by least squares")
    if any(effect.n > EXACT for effect in effects):
        notes.append(f"above {EXACT} seeds sign flips are drawn: {DRAWN:,} of them")
    for effect in (effect for effect in effects if effect.verdict == "inconclusive" and effect.seeds_needed is None):
        if min(effect.p_holm, effect.equivalence_p) < alpha:
            base, arm = (f"{one.unstable}/{one.n_runs}" for one in (arms[0], effect))
            notes.append(
                f"{effect.arm}: {arm} runs diverged, {base} of the baseline: what the others show settles nothing"
            )
        else:
            notes.append(f"{effect.arm}: more than {MOST} seeds would settle it")
    return notes
