"""Verdicts against tests worked by hand, scipy's and naive ones, and against studies whose truth is known."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gptlab.comparison.blocks import contrasts, fit, unequal
from gptlab.comparison.power import equivalence_power, least_detectable, power, seeds_needed
from gptlab.comparison.verdict import Verdict, holm, judge, sign_flip
from gptlab.errors import ConfigError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "simulate_verdicts.py"
HAND = [  # block means 10, 20, 30; arms 0, -3, +3; errors whose rows and columns sum to 0, with squares that sum to 6
    [10 + 0 + 1, 20 + 0 - 1, 30 + 0 + 0],
    [10 - 3 - 1, 20 - 3 + 0, 30 - 3 + 1],
    [10 + 3 + 0, 20 + 3 + 1, 30 + 3 - 1],
]


def table(arms: int, seeds: int, draw: int = 0, *, missing: int = 0) -> np.ndarray:
    rng = np.random.default_rng(draw)
    y = 2 + rng.normal(size=(arms, seeds)) + 3 * rng.normal(size=seeds)
    y.flat[rng.choice(np.arange(y.size), missing, replace=False)] = np.nan
    return y


def values(y: Any, *, drop: bool = True) -> dict[str, dict[int, float]]:
    """As `judge` takes it; with `drop`, a NaN is no run."""
    rows = [dict(enumerate(map(float, row))) for row in y]
    kept = [{seed: value for seed, value in row.items() if not (drop and math.isnan(value))} for row in rows]
    return {"base": kept[0]} | {f"arm{row}": runs for row, runs in enumerate(kept[1:], 1)}


def verdict_of(y: Any, **options: Any) -> Verdict:
    return judge(values(y), "base", **options)


def regression(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Contrasts with row 0, their standard errors, the error and its df, by a design matrix of dummies."""
    cells = np.argwhere(np.isfinite(y))
    x = np.zeros((len(cells), sum(y.shape)))
    for number, (arm, seed) in enumerate(cells):
        x[number, arm] = x[number, len(y) + seed] = 1
    beta = np.linalg.pinv(x) @ y[tuple(cells.T)]
    df = len(cells) - np.linalg.matrix_rank(x)
    error = math.sqrt(float(((y[tuple(cells.T)] - x @ beta) ** 2).sum()) / df)
    c = np.zeros((len(y) - 1, x.shape[1]))
    c[:, 0], c[range(len(y) - 1), range(1, len(y))] = -1, 1
    return c @ beta, error * np.sqrt(np.diag(c @ np.linalg.pinv(x.T @ x) @ c.T)), error, int(df)


# The test


def test_an_analysis_of_variance_worked_by_hand() -> None:
    """Error 6 / 4 = 1.5; standard error of a contrast sqrt(2 * 1.5 / 3) = 1; t(4) = 2.776 and P(|t| > 3) = 0.0399."""
    found = verdict_of(HAND)
    below, above = found.effects
    assert (found.pooled_sd**2, found.df, found.pooled) == (pytest.approx(1.5), 4, True)
    assert (below.mean, below.low, below.high) == pytest.approx((-3, -3 - 2.776, -3 + 2.776), abs=1e-3)
    assert (below.p, above.p) == pytest.approx((0.0399, 0.0399), abs=5e-5)
    assert below.p_holm == above.p_holm == pytest.approx(2 * 0.0399, abs=1e-4)


def test_two_arms_are_a_paired_t_test() -> None:
    y = table(2, 7)
    (effect,) = verdict_of(y).effects
    theirs = stats.ttest_rel(y[1], y[0])
    interval = theirs.confidence_interval(0.95)
    assert (effect.p, effect.p_holm) == pytest.approx((theirs.pvalue, theirs.pvalue))
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.mean == pytest.approx((y[1] - y[0]).mean())


@pytest.mark.parametrize("draw", range(12))
@pytest.mark.parametrize("missing", [0, 1, 4])
def test_blocks_are_least_squares_whatever_is_missing(draw: int, missing: int) -> None:
    y = table(4, 6, draw, missing=missing)
    mean, se, error, df = regression(y)
    mine = fit(y)
    assert (mine.error, mine.df) == (pytest.approx(error), df)
    found = contrasts(y)
    if not found.own:
        assert found.mean == pytest.approx(mean)
        assert found.se == pytest.approx(se)
    if not missing:
        assert mine.df == (6 - 1) * (4 - 1)
        assert mean == pytest.approx((y[1:] - y[0]).mean(1))
        assert se == pytest.approx(np.full(3, error * math.sqrt(2 / 6)))


def test_what_a_seed_does_to_all_arms_changes_nothing() -> None:
    y = table(4, 5)
    shifted = y + 100 * np.arange(5)
    for one, other in zip(verdict_of(y).effects, verdict_of(shifted).effects, strict=True):
        assert (one.mean, one.p, one.low) == pytest.approx((other.mean, other.p, other.low), rel=1e-9)


def test_units_scale_and_names_and_order_do_not_matter() -> None:
    runs = values(table(4, 5))
    plain, scaled = judge(runs, "base", margin=0.1), judge(values(1000 * table(4, 5)), "base", margin=100)
    turned = judge(dict(reversed(runs.items())), "base", margin=0.1)
    for one, other in zip(plain.effects, scaled.effects, strict=True):
        assert (1000 * one.mean, one.p_holm, one.verdict) == (
            pytest.approx(other.mean),
            pytest.approx(other.p_holm),
            other.verdict,
        )
        assert next(effect.p for effect in turned.effects if effect.arm == one.arm) == pytest.approx(one.p)
    assert [effect.arm for effect in turned.effects] == ["arm3", "arm2", "arm1"]


def test_holm_is_the_naive_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(size=5) ** 2
        corrected = dict.fromkeys(range(5), 0.0)
        for step, which in enumerate(sorted(range(5), key=p.__getitem__)):
            before = [corrected[other] for other in range(5) if p[other] < p[which]]
            corrected[which] = min(1, max([p[which] * (5 - step), *before]))
        assert holm(p) == pytest.approx(list(corrected.values()))


def test_equivalence_is_two_one_sided_tests() -> None:
    y = table(2, 8)
    d = y[1] - y[0]
    for margin in (0.1, 1.0, 3.0):
        (effect,) = verdict_of(y, margin=margin).effects
        above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(d, margin, alternative="less").pvalue
        assert effect.equivalence_p == pytest.approx(max(above, below))


@pytest.mark.parametrize("seeds", [6, 9])
def test_sign_flips_are_all_counted(seeds: int) -> None:
    d = np.random.default_rng(seeds).normal(0.8, 1, seeds)
    flips = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((-1, 1), repeat=seeds)
    ]
    naive = sum(flip >= abs(d.sum()) - 1e-9 for flip in flips) / 2**seeds
    assert sign_flip(d) == pytest.approx(naive)
    (effect,) = verdict_of([np.zeros(seeds), d]).effects
    assert effect.sign_flip_p == pytest.approx(naive)


def test_no_sign_flip_below_6_seeds_where_none_could_reject() -> None:
    five, six = (verdict_of([np.zeros(n), np.linspace(1, 2, n)]).effects[0].sign_flip_p for n in (5, 6))
    assert (five, six) == (None, 2 / 2**6)


def test_beyond_16_seeds_flips_are_drawn_and_it_is_said() -> None:
    d = np.random.default_rng(3).normal(0.4, 1, 18)
    signs = 1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)
    exact = float((np.abs(signs @ d) >= abs(d.sum()) - 1e-9).mean())
    found = verdict_of([np.zeros(18), d])
    drawn = found.effects[0].sign_flip_p
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))  # 4 sd of 20,000 draws
    assert drawn == sign_flip(d)
    assert sign_flip(np.ones(20)) == 1 / 20_001  # none as far was drawn: the observed one is
    assert any("20,000" in note for note in found.notes)


# The words


def test_one_arm_under_two_names_differs_by_exactly_0() -> None:
    y = table(4, 5, missing=0)
    y[1] = y[0]
    for rows in ([0, 1], [0, 1, 2, 3]):
        effect = verdict_of(y[rows], margin=10).effects[0]
        assert (effect.mean, effect.verdict) == (0.0, "equivalent")
    (alone,) = verdict_of(y[:2]).effects
    assert (alone.low, alone.high, alone.p, alone.verdict) == (0, 0, 1, "equivalent")
    assert {effect.mean for effect in verdict_of(np.tile(y[0], (3, 1))).effects} == {0.0}
    y[2, 4] = np.nan  # a hole elsewhere
    assert verdict_of(y).effects[0].mean == 0.0


@pytest.mark.parametrize(("better", "words"), [("lower", ("better", "worse")), ("higher", ("worse", "better"))])
def test_better_is_lower_or_higher_as_declared(better: str, words: tuple[str, str]) -> None:
    y = table(3, 5) + np.array([[0], [-20], [20]])
    found = verdict_of(y, better=better)
    assert tuple(effect.verdict for effect in found.effects) == words
    assert found.effects[0].mean < 0  # arm minus baseline, in the metric's unit, whatever is better


def test_a_difference_shown_to_be_inside_the_margin_is_equivalent_even_if_it_is_not_0() -> None:
    y = np.array([[0.0, 0.1, -0.1, 0.0], [1.0, 1.0, 1.1, 0.9]])
    within, beyond = (verdict_of(y, margin=margin).effects[0] for margin in (5.0, 0.5))
    assert (within.verdict, beyond.verdict) == ("equivalent", "worse")
    assert within.p_holm == beyond.p_holm < 0.05


def test_what_is_neither_is_inconclusive_with_the_seeds_that_would_settle_it() -> None:
    y = table(3, 4) + np.array([[0], [-1], [0.3]])
    found = verdict_of(y, margin=0.01)
    for effect in found.effects:
        assert effect.verdict == "inconclusive"
        assert effect.seeds_needed is not None
        assert effect.seeds_needed > 4
        sd = found.pooled_sd * math.sqrt(2)
        assert effect.seeds_needed == seeds_needed(effect.mean, sd, 0.01, arms=3, alpha=0.05 / 2, now=4)


def test_without_pooling_the_seeds_needed_are_those_of_a_paired_t() -> None:
    y = table(4, 8)
    y[2] += 30 * np.random.default_rng(5).normal(size=8)
    effect = verdict_of(y, margin=0.01).effects[1]
    assert effect.seeds_needed == seeds_needed(
        effect.mean, (y[2] - y[0]).std(ddof=1), 0.01, arms=2, alpha=0.05 / 3, now=8
    )


def test_more_seeds_than_anybody_runs_are_not_named_but_said() -> None:
    y = np.array([[0.0, 1, 0, 1, 0], [1, 0, 1, 0, 0.01]])
    found = verdict_of(y, margin=0)
    assert (found.effects[0].verdict, found.effects[0].seeds_needed) == ("inconclusive", None)
    assert "arm1: more than 1000 seeds would settle it" in found.notes


def test_no_difference_without_error_and_without_margin_is_inconclusive() -> None:
    (effect,) = verdict_of([[1.0, 2.0], [1.0, 2.0]], margin=0).effects
    assert (effect.verdict, effect.mean, effect.seeds_needed) == ("inconclusive", 0, None)


@pytest.mark.parametrize("gone", [None, math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_is_counted_and_gets_its_arm_no_favour(gone: float | None) -> None:
    runs: dict[str, dict[int, float | None]] = dict(values(table(3, 5) + np.array([[0], [-20], [20]])))
    runs["arm1"][4] = runs["arm2"][4] = gone
    favoured, other = (found := judge(runs, "base")).effects
    assert (favoured.n, favoured.unstable, favoured.n_runs) == (4, 1, 5)
    assert (favoured.verdict, other.verdict) == ("inconclusive", "worse")
    assert favoured.p_holm < 0.05
    assert "arm1: unstable 1/5" in found.notes
    assert any("settles nothing" in note for note in found.notes)
    runs["base"][0] = gone  # the baseline too
    assert judge(runs, "base").effects[0].verdict == "better"
    runs["base"][1] = gone  # it more often
    assert [effect.verdict for effect in judge(runs, "base").effects] == ["better", "inconclusive"]


def test_diverged_runs_are_no_equivalence() -> None:
    runs: dict[str, dict[int, float | None]] = {
        "base": dict.fromkeys(range(6), 1.0),
        "arm": dict.fromkeys(range(6), 1.0),
    }
    assert judge(runs, "base").effects[0].verdict == "equivalent"
    runs["arm"][5] = None
    effect = judge(runs, "base").effects[0]
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", None)


def test_a_seed_without_a_run_is_no_divergence() -> None:
    runs = values(table(3, 5))
    del runs["arm2"][3]
    found = judge(runs, "base")
    assert [(effect.n, effect.unstable, effect.n_runs) for effect in found.effects] == [(5, 0, 5), (4, 0, 4)]
    assert found.df == (5 - 1) * (3 - 1) - 1
    assert "not every arm has every seed: effects by least squares" in found.notes


def test_fewer_than_2_paired_seeds_are_no_verdict() -> None:
    runs: dict[str, dict[int, float | None]] = {
        "base": {0: 1.0, 1: 2.0, 2: 3.0},
        "one": {0: 1.0, 7: 2.0},
        "none": {0: None, 1: None, 2: None},
        "fine": {0: 1.0, 1: 2.5, 2: 2.0},
    }
    found = judge(runs, "base")
    seen = [(effect.verdict, effect.n, effect.unstable) for effect in found.effects]
    assert seen == [("none", 1, 0), ("none", 0, 3), ("inconclusive", 3, 0)]
    assert math.isnan(found.effects[0].mean)
    assert found.effects[2].p_holm == found.effects[2].p  # Holm counts the tests that were made
    nothing = judge({"base": {0: 1.0}, "one": {0: 1.0}}, "base")
    assert [effect.verdict for effect in nothing.effects] == ["none"]
    assert judge({"base": {0: 1.0}}, "base").effects == ()


def test_fewer_than_5_seeds_are_a_pilot() -> None:
    assert "3 seeds: a pilot" in verdict_of(table(3, 3)).notes
    assert not any("pilot" in note for note in verdict_of(table(3, 5)).notes)


def test_the_seed_correlation_is_the_mean_of_all_pairs() -> None:
    for missing in (0, 3):
        y, pairs = table(4, 6, missing=missing), []
        for i, j in itertools.combinations(range(4), 2):
            both = np.isfinite(y[i] + y[j])
            pairs.append(np.corrcoef(y[i, both], y[j, both])[0, 1])
        assert verdict_of(y).seed_correlation == pytest.approx(np.mean(pairs))
    assert math.isnan(verdict_of(table(3, 2)).seed_correlation)  # of two points it is 1 or -1, whatever they are


def test_a_verdict_is_plain_data() -> None:
    json.dumps(asdict(verdict_of(table(4, 6, missing=2))), allow_nan=False)


@pytest.mark.parametrize(
    ("baseline", "options", "said"),
    [
        ("bse", {}, "Did you mean .base"),
        ("base", {"margin": -1}, "margin"),
        ("base", {"better": "up"}, "lower or higher"),
        ("base", {"level": 95}, "0.95"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(baseline: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        judge(values(table(2, 3)), baseline, **options)


# Unequal variances


def test_an_arm_that_varies_unlike_the_others_ends_the_pooling() -> None:
    y = table(4, 8)
    y[2] += 30 * np.random.default_rng(5).normal(size=8)
    found = verdict_of(y)
    assert not found.pooled
    assert any(note.startswith("the errors of arm2 have") and note.endswith("per-arm paired t") for note in found.notes)
    for effect, row in zip(found.effects, y[1:], strict=True):
        interval = stats.ttest_rel(row, y[0]).confidence_interval()
        assert (effect.p, effect.low) == pytest.approx((stats.ttest_rel(row, y[0]).pvalue, interval.low))


def test_so_does_a_baseline_that_does() -> None:
    y = table(5, 8)
    y[0] += 10 * np.random.default_rng(5).normal(size=8)
    assert list(unequal(y, fit(y))) == [0]


def test_the_check_of_variances_is_an_f_test_of_what_an_arm_adds() -> None:
    """By hand: the arm's deviations from the mean of the others, whose variance is that of both."""
    y = table(4, 6, 3)
    apart = y[1] - np.delete(y, 1, 0).mean(0)
    own = ((apart - apart.mean()) ** 2).sum() / (1 + 1 / 3) / 5
    assert (fit(y).rest - fit(np.delete(y, 1, 0)).rest) / 5 == pytest.approx(own)


def test_equal_variances_are_found_unequal_in_2_studies_of_100() -> None:
    found = sum(bool(unequal(y, fit(y))) for y in (table(5, 4, draw) for draw in range(1000)))
    assert found <= stats.binom.isf(1e-4, 1000, 0.02)  # 1% for the baseline, 1% for all variants


# Seeds


def test_what_is_detectable_has_a_power_of_80_percent_by_scipys_noncentral_t() -> None:
    for df, alpha in ((2, 0.05), (10, 0.05), (10, 0.01), (40, 0.05)):
        effect, t = least_detectable(df, alpha), stats.t.isf(alpha / 2, df)
        assert stats.nct.sf(t, df, effect) == pytest.approx(0.8, abs=1e-6)
        assert power(effect, df, alpha) == pytest.approx(0.8, abs=1e-6)


def test_the_detectable_effect_of_a_study_is_at_holms_strictest_step() -> None:
    found = verdict_of(table(4, 5))
    se = found.pooled_sd * math.sqrt(2 / 5)
    assert found.detectable == pytest.approx(least_detectable(12, 0.05 / 3) * se)


@pytest.mark.parametrize("arms", [2, 3, 6])
@pytest.mark.parametrize("effect", [0.3, 1.0, 2.0, 3.0])
def test_the_seeds_needed_are_the_first_that_have_the_power_by_scipys_noncentral_t(arms: int, effect: float) -> None:
    for n in range(3, 1000):
        df = (n - 1) * (arms - 1)
        if stats.nct.sf(stats.t.isf(0.025, df), df, effect / 1.2 * math.sqrt(n)) >= 0.8:
            break
    assert seeds_needed(-effect, 1.2, 0.0, arms=arms, alpha=0.05, now=2) == n


def test_equivalence_settles_it_where_the_effect_is_small() -> None:
    apart = seeds_needed(0.1, 1.0, 0.0, arms=2, alpha=0.05, now=3)
    inside = seeds_needed(0.1, 1.0, 1.0, arms=2, alpha=0.05, now=3)
    assert (apart, inside) == (787, 11)  # (1.96 + 0.84)^2 / 0.1^2 = 785; (1.65 + 0.84)^2 / 0.9^2 = 7.6, and t is wider
    assert equivalence_power(1.0, 1.0, 10, 0.05) == equivalence_power(-2.0, 1.0, 10, 0.05) == 0


# Studies whose truth is known. scripts/simulate_verdicts.py asks the same of 2,000 of each.


@pytest.fixture(scope="module")
def simulation() -> Any:
    """The script, as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import simulate_verdicts
    finally:
        sys.path.pop(0)
    return simulate_verdicts


PARTS = "power_at_detectable false_findings power_with_holm false_equivalence any_wrong_verdict seeds_settle coverage"


@pytest.mark.parametrize("part", PARTS.split())
def test_what_the_method_claims_is_found_in_400_studies(simulation: Any, part: str) -> None:
    """A share may miss its claim by what 400 draws do once in 1,000: `Share.holds` is that binomial test."""
    sim = simulation.Simulation(400, np.random.default_rng(0))
    claims = list(getattr(simulation, part)(sim))
    assert len(claims) >= 2
    assert not [claim.row() for claim in claims if not claim.holds]


def test_the_methods_numbers_of_detectable_effects_are_found(simulation: Any) -> None:
    assert all(claim.holds for claim in simulation.detectable_effects())


def test_a_share_is_missed_when_it_is_beyond_chance(simulation: Any) -> None:
    hits = {hits: simulation.Share("", 0, 0.05, hits, 300).holds for hits in (0, 15, 25, 30)}
    assert hits == {0: True, 15: True, 25: True, 30: False}
    assert not simulation.Share("", 0.3, 0.75, 60, 300).holds
    assert not simulation.Number("", 1.79, 1.80).holds


def test_the_script_exits_1_when_a_claim_is_missed(simulation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate_verdicts.py", "--studies", "2"])
    for claimed, code in ((1.0, 0), (2.0, 1)):
        monkeypatch.setattr(
            simulation, "claims", lambda sim, claimed=claimed: iter([simulation.Number("", claimed, 1.0)])
        )
        assert simulation.main() == code
