"""What steering does to how likely held-out texts are, exactly, with nothing sampled; and what its controls do.

The share of pairs that move the wrong way: after Tan et al. 2024, arXiv:2407.12404.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gptlab import activations
from gptlab.data import IGNORE
from gptlab.model import GPT
from gptlab.steering.direction import (
    Direction,
    Edits,
    Vectors,
    added,
    combine,
    projected_out,
    random_like,
)
from gptlab.steering.finding import Rule, Stream, shuffled_like
from gptlab.steering.passages import Passages, batches

N_DOSES = 5  # of each sign, each twice the one before
N_CONTROLS = 20  # random vectors, and shuffles of the labels
N_PASSES = 1 + (2 * N_DOSES + 1) + 1 + 2 * N_CONTROLS  # unsteered, by dose, projected out, the two controls
AFFORDABLE = 0.10  # nats per token that steering may cost
QUANTILE = 97.5  # percentile of the controls that an effect must be above


@dataclass(frozen=True)
class Outcome:
    """What steering changes on held-out texts, in nats per token; a text counts as one, whatever its length."""

    dose: float
    positive: float  # mean change of the log-likelihood of the positive texts
    negative: float  # and of the negative ones
    error: float  # standard error of the effect
    wrong: float  # share of the pairs, first with first and so on, whose difference moved the wrong way

    @property
    def effect(self) -> float:
        """How much likelier the positive texts became, compared with the negative ones."""
        return self.positive - self.negative

    @property
    def interval(self) -> float:
        """Half of the 95% interval of the effect."""
        return 1.96 * self.error

    @property
    def cost(self) -> float:
        """How much the loss rose on both sorts of texts together."""
        return 0.0 - (self.positive + self.negative) / 2  # no -0.0

    def numbers(self) -> dict[str, float]:
        """All of them by name."""
        return {**dataclasses.asdict(self), "effect": self.effect, "cost": self.cost}


@torch.no_grad()
def log_likelihoods(model: GPT, passages: Sequence[Tensor], batch: int, edits: Edits) -> Float[Tensor, " N"]:
    """Of each passage, the mean over its tokens but the first, in nats, with the edits in place."""
    device, found = next(model.parameters()).device, []
    with activations.edit(model, edits):
        for tokens, targets in batches(passages, batch):
            hidden, _ = model.hidden(tokens.to(device))
            for row, asked in zip(hidden, targets, strict=True):  # logits of one passage at a time
                known = asked != IGNORE
                logits = model.logits(row[known.to(device)]).float()
                nats = F.cross_entropy(logits, asked[known].to(device), reduction="none")
                found.append(-nats.double().mean())
    return torch.stack(found).cpu()


class Held:
    """Held-out texts of both sorts, and how likely they are to a model that is not steered."""

    def __init__(self, model: GPT, texts: Passages, batch: int, tick: Callable[[], None] = lambda: None) -> None:
        self.model, self.texts, self.batch, self.tick = model, texts, batch, tick
        self.plain = self._score({})

    def under(self, edits: Edits, dose: float) -> Outcome:
        """What the edits change; the sign of `dose` says which way is right, and 0 that none is."""
        ours, theirs = (after - before for after, before in zip(self._score(edits), self.plain, strict=True))
        error = math.sqrt((ours.var() / len(ours) + theirs.var() / len(theirs)).item())
        return Outcome(
            dose, ours.mean().item(), theirs.mean().item(), error, (dose * (ours - theirs) < 0).double().mean().item()
        )

    @torch.no_grad()
    def untouched(self, vectors: Vectors) -> bool:
        """Whether a model steered by dose 0 gives the same bits as without a hook."""
        tokens, _ = next(batches(self.texts.positive, self.batch))
        tokens = tokens.to(next(self.model.parameters()).device)
        plain = self.model(tokens)
        with activations.edit(self.model, added(vectors, 0.0)):
            steered = self.model(tokens)
        return torch.equal(_bits(plain), _bits(steered))

    def _score(self, edits: Edits) -> tuple[Tensor, Tensor]:
        """The log-likelihoods of the positive and of the negative texts."""
        texts = (self.texts.positive, self.texts.negative)
        ours, theirs = (log_likelihoods(self.model, passages, self.batch, edits) for passages in texts)
        self.tick()
        return ours, theirs


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def doses(largest: float) -> list[float]:
    """From the opposite of the largest to itself, through 0: each half of the next one outwards."""
    rising = [abs(largest) / 2**halved for halved in reversed(range(N_DOSES))]
    return [*(-dose for dose in reversed(rising)), 0.0, *rising]


@dataclass(frozen=True)
class Criterion:
    """Something that must hold for it to be called steering."""

    name: str
    met: bool
    sentence: str


@dataclass(frozen=True)
class Measured:
    """The outcomes at each dose, lowest first, of projecting out, and of the controls at the largest dose."""

    curve: Sequence[Outcome]
    out: Outcome
    random: Sequence[Outcome]
    shuffled: Sequence[Outcome]
    untouched: bool  # whether dose 0 changed no bit

    def criteria(self) -> list[Criterion]:
        """What is asked of steering: no trace at dose 0, rising, more than chance does, reversible, affordable."""
        full, opposite = self.curve[-1], self.curve[0]
        effects = [one.effect for one in self.curve if one.dose >= 0]
        rising = all(low < high for low, high in itertools.pairwise(effects))
        listed = ", ".join(f"{effect:+.4f}" for effect in effects[1:])
        return [
            Criterion("untouched", self.untouched, "At dose 0 the logits have the bits that they have without a hook."),
            Criterion("rises", rising, f"The effect rises over all {N_DOSES} doses: {listed} nats per token."),
            self._above("random", self.random, "random vectors"),
            self._above("shuffled", self.shuffled, "directions found from shuffled labels"),
            Criterion(
                "reverses",
                opposite.effect < -opposite.interval,
                f"At dose {opposite.dose:g} the effect has the other sign, and 0 is not in its 95% interval: "
                f"{opposite.effect:+.4f} ± {opposite.interval:.4f}.",
            ),
            Criterion(
                "affordable",
                full.cost <= AFFORDABLE,
                f"At dose {full.dose:g} the loss on both texts together rises by at most {AFFORDABLE:.2f} nats per "
                f"token: {full.cost:+.4f}.{self._cheaper()}",
            ),
        ]

    def remark(self) -> str:
        """Where an effect comes only from what it takes away from the negative texts; else empty."""
        full = self.curve[-1]
        if full.effect <= 0 or full.positive > 0:
            return ""
        return (
            f"At dose {full.dose:g} the positive texts became less likely too ({full.positive:+.4f}): the effect is "
            f"that the negative ones lost more ({full.negative:+.4f})."
        )

    def _above(self, name: str, controls: Sequence[Outcome], what: str) -> Criterion:
        """Whether the effect is above what controls of equal norm do by chance."""
        full, bound = self.curve[-1], float(np.percentile([one.effect for one in controls], QUANTILE))
        return Criterion(
            name,
            full.effect > bound,
            f"At dose {full.dose:g} the effect, {full.effect:+.4f}, is above the {QUANTILE}th percentile of "
            f"{len(controls)} {what} of equal norm, {bound:+.4f}.",
        )

    def _cheaper(self) -> str:
        """The largest dose that costs little enough, where the full one does not."""
        within = [one for one in self.curve if one.dose > 0 and one.cost <= AFFORDABLE]
        if self.curve[-1].cost <= AFFORDABLE or not within:
            return ""
        return f" Dose {within[-1].dose:g} costs {within[-1].cost:+.4f}, for an effect of {within[-1].effect:+.4f}."


def measure(
    model: GPT,
    held_out: Passages,
    directions: Sequence[tuple[Direction, float]],
    streams: Mapping[int, Stream],
    rule: Rule,
    *,
    dose: float,
    batch: int,
    tick: Callable[[], None] = lambda: None,
) -> Measured:
    """Directions, each with its weight, measured on held-out texts; `streams` is where shuffled ones are found.

    `tick` is called after each of N_PASSES over these texts.
    """
    vectors, size, held = combine(directions), abs(dose), Held(model, held_out, batch, tick)

    def control(vectors: Vectors) -> Outcome:
        return held.under(added(vectors, size), size)

    return Measured(
        curve=[held.under(added(vectors, at), at) for at in doses(dose)],
        out=held.under(projected_out([direction for direction, _ in directions]), 0.0),
        random=[control(random_like(vectors, seed)) for seed in range(N_CONTROLS)],
        shuffled=[control(shuffled_like(vectors, streams, rule, seed)) for seed in range(N_CONTROLS)],
        untouched=held.untouched(vectors),
    )
