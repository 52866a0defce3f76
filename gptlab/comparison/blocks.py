"""Randomised blocks: y = mean + arm + block + error by least squares, the seed as block; missing cells may be.

Fisher 1935, "The Design of Experiments"; normal equations with the blocks eliminated, Yates 1940.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
UNEQUAL = 0.01  # the p-value below which the errors of arms are not pooled; docs/method.md has what it costs and saves


@dataclass(frozen=True)
class Fit:
    """Least squares of arms and blocks, for each table of a stack."""

    effects: Float[Array, "... A"]  # of the arms; only their differences mean anything
    spread: Float[Array, "... A A"]  # their covariance is error**2 * spread
    rest: Float[Array, " ..."]  # the sum of squares that is left over
    df: Int[NDArray[np.int64], " ..."]  # and its degrees of freedom

    @property
    def error(self) -> float:
        """The standard deviation of one run's error."""
        return float(np.sqrt(self.rest / self.df))


@dataclass(frozen=True)
class Contrasts:
    """Each variant minus the baseline: estimate, standard error and degrees of freedom."""

    mean: Float[Array, " V"]
    se: Float[Array, " V"]
    df: Float[Array, " V"]
    pooled: Fit
    own: dict[int, float]  # row -> how many times the others' its error variance is; not empty: nothing was pooled


def fit(y: Float[Array, "... A S"]) -> Fit:
    """Arms and blocks of tables of runs, NaN where there is none."""
    there = np.isfinite(y)
    n, held = there.sum(-1), there.sum(-2, keepdims=True)
    share = there / np.maximum(held, 1)
    seen = np.where(there, y, 0)
    seen = np.where(there, seen - (seen * share).sum(-2, keepdims=True), 0)  # about its block
    normal = n[..., None] * np.eye(y.shape[-2]) - share @ np.swapaxes(there.astype(float), -1, -2)
    values, vectors = np.linalg.eigh(normal)
    sure = values > 1e-9 * y.shape[-2]  # the others are sums over arms that share blocks, or have none: no differences
    spread = (vectors * np.where(sure, 1 / np.where(sure, values, 1), 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    effects = (spread @ seen.sum(-1)[..., None])[..., 0]
    of_arms = effects[..., None]
    left = np.where(there, seen - of_arms + (of_arms * share).sum(-2, keepdims=True), 0)
    df = n.sum(-1) - (held[..., 0, :] > 0).sum(-1) - sure.sum(-1)
    return Fit(effects, spread, (left**2).sum((-1, -2)), df)


def contrasts(y: Float[Array, "A S"]) -> Contrasts:
    """The rows of a table against its first, with pooled error; where arms vary unlike each other, each with its own.

    Each row has at least two blocks in common with the first.
    """
    whole = fit(y)
    differences = y[1:] - y[0]
    paired = np.isfinite(differences)
    n = paired.sum(1)
    own_mean = np.where(paired, differences, 0).sum(1) / n
    if own := unequal(y, whole):
        deviations = np.where(paired, differences - own_mean[:, None], 0)
        return Contrasts(own_mean, np.sqrt((deviations**2).sum(1) / (n - 1) / n), n - 1.0, whole, own)
    # Arms with the baseline's blocks have the mean paired difference, which is exactly 0 for equal runs.
    same = (np.isfinite(y[1:]) == np.isfinite(y[0])).all(1)
    spread = whole.spread
    variance = spread[0, 0] + np.diag(spread)[1:] - 2 * spread[0, 1:]
    mean = np.where(same, own_mean, whole.effects[1:] - whole.effects[0])
    return Contrasts(mean, whole.error * np.sqrt(variance), np.full(len(n), float(whole.df)), whole, {})


def unequal(y: Float[Array, "A S"], whole: Fit) -> dict[int, float]:
    """The rows whose error variance is above that of the others by more than chance: row -> ratio of the variances.

    What the sum of squares loses without an arm is its own, an F test against what is left. The baseline, which is in
    every contrast, is tested at 1%; the variants share another 1%.
    """
    others = fit(np.where(np.eye(len(y), dtype=bool)[..., None], np.nan, y))  # each without one row
    df, own = whole.df - others.df, whole.rest - others.rest
    can = (df > 0) & (others.df > 0) & (own > 0)
    mine, theirs = own / np.maximum(df, 1), (others.rest + 1e-30 * whole.rest) / np.maximum(others.df, 1)
    ratio = np.divide(mine, theirs, out=np.zeros(len(y)), where=can)
    p = special.fdtrc(np.maximum(df, 1), np.maximum(others.df, 1), ratio) * np.where(np.arange(len(y)), len(y) - 1, 1)
    return {int(row): float(ratio[row]) for row in np.flatnonzero(can & (p < UNEQUAL))}
