"""What a law is: a sentence that a variant must make true, run on a case; and the tolerances that laws share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gptlab.conformance.cases import Case

EXACT = 1e-9  # of logits of size ~1 in float64, where only the order of sums may differ
TURNED = 1e-4  # where positions differ: angles are float32
SEEN = 1e-7  # what an effect must at least be

Measure = Callable[[Case], str]


@dataclass(frozen=True)
class Law:
    """A sentence that a variant must make true."""

    name: str
    run: Measure
    applies: Callable[[Case], bool]

    @property
    def meaning(self) -> str:
        """The law as a sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]


LAWS: dict[str, Law] = {}


def law(applies: Callable[[Case], bool] = lambda case: True) -> Callable[[Measure], Measure]:
    """Decorator: add a function to LAWS, for the cases that it applies to."""

    def add(run: Measure) -> Measure:
        LAWS[run.__name__] = Law(run.__name__, run, applies)
        return run

    return add


def first(case: Case) -> bool:
    """Whether this is the variant's own first case, for laws that one case can judge."""
    return case.first
