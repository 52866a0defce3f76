"""What docs/method.md claims of verdicts, by simulation: `python scripts/simulate_verdicts.py [--studies 2000]`.

Made-up studies go through `judge` as real ones do. Prints what is claimed and what is found; exit code 1 when a claim
is missed by more than the chance of a finite number of studies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from gptlab.comparison.power import least_detectable, seeds_needed
from gptlab.comparison.verdict import Effect, Verdict, holm, judge

MARGIN = 1e-9  # a margin that nothing is inside of, where equivalence is not the question
CHANCE = 1e-3  # that a true claim is called missed, for each claim
PAIRED = 2**0.5  # the standard deviation of a paired difference, where that of a run is 1
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A claim about the share of studies (or verdicts) of which something is true."""

    what: str
    low: float
    high: float
    hits: int
    of: int

    @property
    def found(self) -> float:
        return self.hits / self.of

    @property
    def holds(self) -> bool:
        """Whether a share in the claimed range would come out so with a chance of at least CHANCE."""
        too_many = stats.binom.sf(self.hits - 1, self.of, self.high)
        too_few = stats.binom.cdf(self.hits, self.of, self.low)
        return bool(min(too_many, too_few) >= CHANCE)

    def row(self) -> tuple[str, str, str]:
        """As the table shows it."""
        least, most = f"{100 * self.low:.0f}", f"{100 * self.high:.0f}%"
        return self.what, f"{least}-{most}" if self.low else f"at most {most}", f"{100 * self.found:.1f}%"


@dataclass(frozen=True)
class Number:
    """A claim about a number that is computed, not drawn."""

    what: str
    claimed: float
    found: float

    @property
    def holds(self) -> bool:
        """Whether it is the number to the digits it is claimed in."""
        return abs(self.claimed - self.found) <= 0.005

    def row(self) -> tuple[str, str, str]:
        """As the table shows it."""
        return self.what, f"{self.claimed:.2f}", f"{self.found:.2f}"


@dataclass
class Simulation:
    """Studies whose truth is known; errors of a run have standard deviation 1, those of a seed 2."""

    studies: int
    draw: np.random.Generator

    def tables(self, effects: Sequence[float], seeds: int, sd: Sequence[float] | None = None) -> Iterator[Array]:
        """Runs by arm and seed: the baseline, then an arm for each effect."""
        mean = np.array([0.0, *effects])[:, None]
        scale = np.ones_like(mean) if sd is None else np.array(sd)[:, None]
        for _ in range(self.studies):
            blocks = 2 * self.draw.standard_normal(seeds)
            yield 3 + mean + blocks + scale * self.draw.standard_normal((len(mean), seeds))

    def count(self, what: Callable[[Verdict], int], tables: Iterator[Array], margin: float = MARGIN) -> int:
        """How often something is true of the verdicts."""
        return sum(what(verdict_of(table, margin)) for table in tables)


def verdict_of(table: Array, margin: float) -> Verdict:
    """The verdict on a table whose first row is the baseline."""
    values = {f"arm{row}": dict(enumerate(map(float, runs))) for row, runs in enumerate(table)}
    return judge(values, "arm0", margin=margin)


def told_apart(verdict: Verdict) -> bool:
    """Whether any arm is called better or worse."""
    return any(effect.verdict in ("better", "worse") for effect in verdict.effects)


def _first_is_worse(verdict: Verdict) -> bool:
    return verdict.effects[0].verdict == "worse"


def detectable_effects() -> Iterator[Number]:
    """METHOD's rule of thumb (central t), and what noncentral t makes of it."""
    designs = (("3 seeds, one variant", 3, 1), ("3 seeds, five variants", 3, 5), ("5 seeds, five variants", 5, 5))
    for (name, seeds, variants), thumb, exact in zip(designs, (3.10, 1.79, 1.32), (3.26, 1.80, 1.32), strict=True):
        df = (seeds - 1) * variants
        central = (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) / seeds**0.5
        yield Number(f"detectable, in sd of a difference: {name}, t + t", thumb, central)
        yield Number(
            f"detectable, in sd of a difference: {name}, exact", exact, least_detectable(df, 0.05) / seeds**0.5
        )


def power_at_detectable(sim: Simulation) -> Iterator[Share]:
    """The effect said to be detectable is detected 4 times of 5, by the test it is said of: one comparison."""
    for seeds, variants in ((3, 1), (3, 5), (5, 5)):
        effect = least_detectable((seeds - 1) * variants, 0.05) * (2 / seeds) ** 0.5
        tables = sim.tables([effect] + [0] * (variants - 1), seeds)
        hits = sim.count(lambda verdict: verdict.effects[0].p < 0.05, tables)
        # Pooling is given up in 2% of studies; 1% of the power goes with it.
        yield Share(
            f"power at the detectable effect: {seeds} seeds, {variants} variants", 0.78, 0.80, hits, sim.studies
        )


def false_findings(sim: Simulation) -> Iterator[Share]:
    """A/A: every arm is the baseline under another name."""
    for seeds, variants in ((3, 1), (5, 1), (3, 2), (5, 2), (3, 5), (5, 5), (8, 5)):
        hits = sim.count(told_apart, sim.tables([0] * variants, seeds))
        yield Share(f"A/A, any better or worse: {seeds} seeds, {variants} variants", 0, 0.05, hits, sim.studies)


def power_with_holm(sim: Simulation) -> Iterator[Share]:
    """An effect of 2, five variants, 3 seeds: by pooled error, and by the usual paired t."""
    for unit, size in (("of a run", 2.0), ("of a difference", 2 * PAIRED)):
        for who, effects in (("one", [size, 0, 0, 0, 0]), ("all", [size] * 5)):
            what = f"2 sd {unit}, {who} of five, 3 seeds"
            tables = list(sim.tables(effects, 3))
            pooled = sim.count(_first_is_worse, iter(tables))
            differences = np.array([table[1:] - table[0] for table in tables])
            p = stats.ttest_1samp(differences, 0, axis=-1).pvalue
            paired = sum(holm(each)[0] < 0.05 for each in p)
            yield Share(f"power, pooled: {what}", 0.30, 0.75, pooled, sim.studies)
            yield Share(f"power, paired t: {what}", 0.07, 0.16, paired, sim.studies)


def false_equivalence(sim: Simulation) -> Iterator[Share]:
    """Variants that differ by exactly the margin are called equivalent, and one that differs by half of it is."""

    def equivalent(verdict: Verdict) -> bool:
        return any(effect.verdict == "equivalent" for effect in verdict.effects)

    def uncorrected(verdict: Verdict) -> bool:
        return any(_one_alone(effect, verdict, 4) < 0.05 for effect in verdict.effects)

    tables = list(sim.tables([4, -4, 4, -4, 4], 5))
    hits = sim.count(equivalent, iter(tables), 4)
    yield Share("equivalent at |effect| = margin: 5 seeds, 5 variants", 0, 0.05, hits, sim.studies)
    hits = sim.count(uncorrected, iter(tables), 4)
    yield Share("the same without Holm: why it is corrected", 0.08, 0.25, hits, sim.studies)
    hits = sim.count(equivalent, sim.tables([4], 5), 4)
    yield Share("equivalent at |effect| = margin: 5 seeds, 1 variant", 0, 0.05, hits, sim.studies)


def _one_alone(effect: Effect, verdict: Verdict, margin: float) -> float:
    """The p-value of two one-sided tests of one variant, not corrected."""
    se = (effect.high - effect.mean) / stats.t.ppf(0.975, verdict.df)
    return float(stats.t.sf((margin - abs(effect.mean)) / se, verdict.df))


def any_wrong_verdict(sim: Simulation) -> Iterator[Share]:
    """Some variants are the baseline, others differ by the margin: either kind of wrong verdict."""

    def wrong(verdict: Verdict) -> bool:
        nulls, others = verdict.effects[:3], verdict.effects[3:]
        return any(effect.verdict in ("better", "worse") for effect in nulls) or any(
            effect.verdict in ("equivalent", "better") for effect in others
        )

    for margin in (1.0, 4.0):
        hits = sim.count(wrong, sim.tables([0, 0, 0, margin, margin], 5), margin)
        yield Share(f"any wrong verdict, 3 A/A and 2 at a margin of {margin:g} sd", 0, 0.05, hits, sim.studies)


def seeds_settle(sim: Simulation) -> Iterator[Share]:
    """With the seeds that were said to be needed, a verdict comes out 4 times of 5."""
    for effect, margin in ((1.5, MARGIN), (0.1, 1.0)):
        seeds = seeds_needed(effect, PAIRED, margin, arms=4, alpha=0.05 / 3, now=2)
        assert seeds is not None

        def settled(verdict: Verdict) -> bool:
            return verdict.effects[0].verdict != "inconclusive"

        hits = sim.count(settled, sim.tables([effect, 0, 0], seeds), margin)
        # The formula takes Holm's strictest step; where all settle, the later steps are laxer.
        yield Share(
            f"settled with the {seeds} seeds needed for {effect:g}, margin {margin:g}", 0.77, 0.95, hits, sim.studies
        )


def unequal_variances(sim: Simulation) -> Iterator[Share]:
    """A/A where one arm's errors vary more: what the 1% check lets through, and that nothing is lost without cause."""
    most = {  # seeds, whose, by what factor: as docs/method.md has it
        (3, "variant", 3): 0.05, (3, "variant", 10): 0.10, (3, "variant", 100): 0.12,
        (3, "baseline", 3): 0.09, (3, "baseline", 10): 0.13, (3, "baseline", 100): 0.07,
        (5, "variant", 3): 0.06, (5, "variant", 10): 0.10, (5, "variant", 100): 0.06,
        (5, "baseline", 3): 0.09, (5, "baseline", 10): 0.09, (5, "baseline", 100): 0.03,
    }  # fmt: skip
    for (seeds, who, ratio), share in most.items():
        sd = np.ones(6)
        sd[0 if who == "baseline" else 1] = ratio**0.5
        hits = sim.count(told_apart, sim.tables([0] * 5, seeds, list(sd)))
        yield Share(f"A/A, variance of a {who} {ratio}-fold: {seeds} seeds, 5 variants", 0, share, hits, sim.studies)
    hits = sim.count(lambda verdict: not verdict.pooled, sim.tables([0] * 5, 5))
    yield Share("pooling given up where variances are equal: 5 seeds, 5 variants", 0, 0.02, hits, sim.studies)


def coverage(sim: Simulation) -> Iterator[Share]:
    """Intervals hold the truth."""

    def holding(verdict: Verdict) -> int:
        return sum(effect.low <= true <= effect.high for effect, true in zip(verdict.effects, (1, -1, 0), strict=True))

    for seeds in (3, 5):
        tables = sim.tables([1, -1, 0], seeds)
        first = sum(holding(verdict_of(table, MARGIN)) == 3 for table in tables)
        # All three at once: between three independent ones (0.857) and one (0.95).
        yield Share(f"all of 3 intervals hold the truth, {seeds} seeds", 0.86, 0.95, first, sim.studies)


PARTS: tuple[Callable[[Simulation], Iterator[Share]], ...] = (
    power_at_detectable, false_findings, power_with_holm, false_equivalence, any_wrong_verdict, seeds_settle,
    unequal_variances, coverage,
)  # fmt: skip


def claims(sim: Simulation) -> Iterator[Share | Number]:
    """All that is claimed, beside what is found."""
    yield from detectable_effects()
    for part in PARTS:
        yield from part(sim)


def main() -> int:
    """Simulate everything and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies for each claim")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    console = Console()
    sim = Simulation(wanted.studies, np.random.default_rng(wanted.seed))
    table = Table("", "claimed", "found", "", title=f"{wanted.studies} studies each", box=None)
    with console.status("simulating"):
        found = list(claims(sim))
    for claim in found:
        table.add_row(*claim.row(), "holds" if claim.holds else "[red]MISSED[/]")
    console.print(table)
    return 0 if all(claim.holds for claim in found) else 1


if __name__ == "__main__":
    sys.exit(main())
