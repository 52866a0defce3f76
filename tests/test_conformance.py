"""Every law on every case of every registered variant, a plugin's included (`--plugin ./mixer.py`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from gptlab import registry
from gptlab.conformance import LAWS, SLOTS, Case, Law, cases_for, choose, judge
from gptlab.errors import ConfigError

COMPILED = "the_loss_compiles_whole_and_once"  # has a file of its own: it is slow


@functools.cache
def _cases() -> list[Case]:
    return [case for slot in SLOTS for name in registry.names(slot) for case in cases_for(slot, name)]


def _test_of(law: Law) -> Callable[[Case], None]:
    """The law as a test function over the cases that it applies to."""

    def test(case: Case) -> None:
        verdict = judge(case, law)
        assert verdict.holds, f"{verdict.case}: {verdict.note}"

    test.__doc__ = law.meaning
    cases = [pytest.param(case, id=case.id) for case in _cases() if law.applies(case)]
    return pytest.mark.parametrize("case", cases)(test)


globals().update({f"test_{name}": _test_of(law) for name, law in LAWS.items() if name != COMPILED})


@pytest.mark.parametrize("slot", SLOTS)
def test_every_registered_variant_has_cases(slot: str) -> None:
    covered: set[Any] = {case.name for case in _cases() if case.slot == slot}
    assert covered == set(registry.names(slot))


@pytest.mark.parametrize(
    "word, told",
    {
        "deepseek_moe": "'deepseek_moe' is a preset of mlp/moe: check mlp/moe.",
        "attention/mqa": "is a preset of attention/softmax",
        "muon": "Laws are about attention, position, norm, mlp, block, but 'muon' fills optimizer",
        "optimizer/muon_moonlight": "fills optimizer",
        "falsh": "There is no variant named 'falsh' to check. Did you mean 'flash'?",
        "xyzzy": "`gptlab list` shows them",
    }.items(),
)
def test_what_no_law_is_about_is_refused_by_what_it_is(word: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose([word])
    assert told in str(refused.value)


def test_every_law_is_a_sentence() -> None:
    assert all(law.meaning.endswith(".") and "_" in law.name for law in LAWS.values())
