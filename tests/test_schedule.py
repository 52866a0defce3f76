"""Learning-rate schedules at their start, when warm, and at their end; the cosine is nanoGPT's."""

from __future__ import annotations

import math

import pytest

from gptlab import registry, schedule
from gptlab.errors import ConfigError

STEPS, WARMUP = 100, 10


def build(name: str, steps: int = STEPS, **options: float) -> schedule.Schedule:
    return registry.build("schedule", {"name": name, "warmup": WARMUP, **options}, steps)


@pytest.mark.parametrize("name", registry.names("schedule"))
def test_every_schedule_rises_evenly_to_its_peak_and_never_beyond(name: str) -> None:
    factor = build(name)
    rise = [factor(step) for step in range(WARMUP)]
    assert rise == pytest.approx([(step + 1) / (WARMUP + 1) for step in range(WARMUP)])
    assert factor(WARMUP) == pytest.approx(1)
    rest = [factor(step) for step in range(WARMUP, STEPS)]
    assert rest == sorted(rest, reverse=True)
    assert all(0 < value <= 1 for value in [*rise, *rest])


@pytest.mark.parametrize("name", registry.names("schedule"))
def test_no_warmup_begins_at_the_peak(name: str) -> None:
    assert build(name, warmup=0)(0) == pytest.approx(1)


def test_cosine_is_nanogpts() -> None:
    peak, least, factor = 6e-4, 6e-5, build("cosine", final=0.1)

    def get_lr(it: int) -> float:  # nanoGPT, train.py, with lr_decay_iters = the number of steps
        if it < WARMUP:
            return peak * (it + 1) / (WARMUP + 1)
        decay_ratio = (it - WARMUP) / (STEPS - WARMUP)
        return least + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (peak - least)

    assert [peak * factor(step) for step in range(STEPS)] == pytest.approx([get_lr(step) for step in range(STEPS)])


def test_inverse_sqrt_is_vaswanis() -> None:
    factor, warmup_steps = build("inverse_sqrt"), WARMUP + 1  # the last of them is the peak
    noam = [min(step**-0.5, step * warmup_steps**-1.5) for step in range(1, STEPS + 1)]
    assert [factor(step) * warmup_steps**-0.5 for step in range(STEPS)] == pytest.approx(noam)


def test_a_constant_stays() -> None:
    assert {build("constant")(step) for step in range(WARMUP, STEPS)} == {1.0}


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.25])
def test_a_decay_ends_at_its_share_of_the_peak(name: str, final: float) -> None:
    factor = build(name, steps=10_000, final=final)
    assert factor(9_999) == pytest.approx(final, abs=1e-3)


def test_linear_is_a_line_and_wsd_one_at_the_end() -> None:
    linear, wsd = build("linear", final=0.0), build("wsd", decay=0.2, final=0.0)
    assert linear(55) == pytest.approx(0.5)
    assert [wsd(step) for step in (20, 81)] == [1.0, 1.0]
    assert wsd(91) == pytest.approx(0.5)


BAD = [
    ("cosine", {"warmup": 100}, "schedule.warmup must be from 0 to trainer.steps - 1 = 99, but is 100"),
    ("constant", {"warmup": -1}, "schedule.warmup"),
    ("linear", {"final": 1.5}, "schedule.final"),
    ("wsd", {"decay": 0.0}, "schedule.decay"),
]


@pytest.mark.parametrize("name, options, told", BAD)
def test_a_schedule_that_cannot_be_is_refused(name: str, options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(name, **options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
