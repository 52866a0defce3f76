"""The ruler: what interpolated Kneser-Ney n-grams score on the split a model is judged on, in nats per token.

Kneser and Ney 1995 (ICASSP, "Improved backing-off for m-gram language modeling"); Chen and Goodman 1999, equation 4.25.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptlab.errors import DataError
from gptlab.files import write_atomically

DISCOUNT = 0.9  # taken off every count; close to what Chen and Goodman's estimate gives for characters
MAX_TRAIN = 20_000_000  # tokens counted at most: keeps the tables of a large text in about 2 GB
MAX_VAL = 5_000_000  # tokens scored at most
FILE = "ngram.json"
VERSION = 1  # of ngram.json

Array = np.ndarray[Any, np.dtype[Any]]


class Tokens(Protocol):
    """What the ruler needs of a prepared data set: two token arrays, a vocabulary size, a folder to remember in."""

    @property
    def directory(self) -> Path: ...
    @property
    def train(self) -> Array: ...
    @property
    def val(self) -> Array: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class Ruler:
    """Losses of the orders 1, 2, ... in nats per token, every token but a split's first being a target.

    The counted bigram stands apart, with one added to every count. Without that, on the text it was counted on, it is
    `least_bigram`: no model that sees one token can be below it there.
    """

    train: tuple[float, ...]  # Kneser-Ney on the text it was counted on
    val: tuple[float, ...]
    train_bigram: float
    val_bigram: float
    least_bigram: float
    train_tokens: int  # counted, at most MAX_TRAIN
    val_tokens: int  # scored, at most MAX_VAL

    @property
    def max_order(self) -> int:
        """The longest n-gram measured."""
        return len(self.val)


def ruler(dataset: Tokens, *, max_order: int = 7, report: Callable[[str], None] = lambda line: None) -> Ruler:
    """The ruler of a prepared data set, computed once and kept beside its tokens in ngram.json.

    The order is lowered where an n-gram of this vocabulary no longer fits into 64 bits (bytes: 7, 50,257 tokens: 4).
    """
    path, settings = dataset.directory / FILE, _settings(max_order)
    kept = _recall(path, settings)
    if kept is not None:
        return kept
    train, val = dataset.train[:MAX_TRAIN], dataset.val[:MAX_VAL]
    measured = measure(np.asarray(train), np.asarray(val), dataset.vocab_size, max_order=max_order, report=report)
    write_atomically(path, json.dumps({"settings": settings, **asdict(measured)}).encode())
    return measured


def is_kept(dataset: Tokens, *, max_order: int = 7) -> bool:
    """Whether `ruler` would find its numbers without counting."""
    return _recall(dataset.directory / FILE, _settings(max_order)) is not None


def _settings(max_order: int) -> list[float]:
    return [VERSION, max_order, DISCOUNT, MAX_TRAIN, MAX_VAL]


def _recall(path: Path, settings: list[float]) -> Ruler | None:
    """The kept ruler, or None where there is none, it is damaged, or it was measured by other rules."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("settings") != settings:
            return None
        return Ruler(**{**kept, "train": tuple(kept["train"]), "val": tuple(kept["val"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # it can be measured again, so a damaged file is no error


def measure(
    train: Array, val: Array, vocab_size: int, *, max_order: int = 7, report: Callable[[str], None] = lambda line: None
) -> Ruler:
    """Count on `train` (N,), score `val` (M,): ids below `vocab_size`. DataError unless there are two of each."""
    if min(len(train), len(val)) < 2:
        raise DataError(f"The ruler needs 2 tokens a split, but they have {len(train)} and {len(val)}: give more text.")
    losses = []
    for scores in kneser_ney(train, val, vocab_size, max_order=max_order):
        losses.append((scores.train_loss, float(-np.log(scores.val[1:]).mean())))
        report(f"ruler: {scores.order}-gram {losses[-1][1]:.4f} nats per token")
    train_bigram, val_bigram, least_bigram = counted_bigram(train, val, vocab_size)
    return Ruler(
        train=tuple(loss for loss, _ in losses),
        val=tuple(loss for _, loss in losses),
        train_bigram=train_bigram,
        val_bigram=val_bigram,
        least_bigram=least_bigram,
        train_tokens=len(train),
        val_tokens=len(val),
    )


def counted_bigram(train: Array, val: Array, vocab_size: int) -> tuple[float, float, float]:
    """The bigram counted on train, nats per token: (train, val) with one added to every count, and train unsmoothed."""
    base = np.uint64(vocab_size)
    keys, counts = np.unique(train[:-1].astype(np.uint64) * base + train[1:].astype(np.uint64), return_counts=True)
    context = np.bincount(train[:-1], minlength=vocab_size)
    seen = context[keys // base]
    train_add_one = -(counts * np.log((counts + 1) / (seen + vocab_size))).sum() / counts.sum()
    least = -(counts * np.log(counts / seen)).sum() / counts.sum()
    wanted = val[:-1].astype(np.uint64) * base + val[1:].astype(np.uint64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    count = np.where(keys[place] == wanted, counts[place], 0)
    val_add_one = -np.log((count + 1) / (context[val[:-1]] + vocab_size)).mean()
    return float(train_add_one), float(val_add_one), float(least)


@dataclass(frozen=True)
class Scores:
    """One order's result: its loss on its own training text, and the probability of each token of val, (M,)."""

    order: int
    train_loss: float
    val: Array


def kneser_ney(train: Array, val: Array, vocab_size: int, *, max_order: int) -> Iterator[Scores]:
    """Interpolated Kneser-Ney of the orders 1..max_order: raw counts at the top, continuation counts below.

    p(w | h) = max(c(hw) - d, 0) / c(h) + d types(h) / c(h) p(w | h without its oldest token), ending in 1 / vocab_size.
    A token with fewer than n - 1 tokens before it is scored on those it has.
    """
    train, val, base = _renumber(train, val, vocab_size)
    top = max(n for n in range(1, max_order + 1) if int(base) ** n <= 2**64)
    heads, repeats = _longest(train, base, top)
    table = _Table(heads, repeats, base, top - 1)
    suffix = np.zeros(len(table.keys), dtype=np.int64)  # where an n-gram without its oldest token is in the order below
    below = np.full(1, 1 / vocab_size)  # probability of every n-gram of the order below
    back = np.full(len(val), 1 / vocab_size)  # and of every token of val
    window = np.zeros(len(val), dtype=np.uint64)
    for order in range(1, top + 1):
        window[order - 1 :] += val[: len(val) - order + 1] * base ** np.uint64(order - 1)
        found = table.find(window)
        raw = table.discount(table.counts)
        train_loss = -(table.counts * np.log(raw.interpolate(below[suffix]))).sum() / table.counts.sum()
        yield Scores(order, float(train_loss), raw.score(found, back))
        if order == top:
            return
        longer = _Table(heads, repeats, base, top - order - 1)
        longer_suffix = np.searchsorted(table.keys, longer.keys % base ** np.uint64(order))
        # The continuation count of an n-gram: how many different tokens have come before it.
        continued = table.discount(np.bincount(longer_suffix, minlength=len(table.keys)))
        below, back = continued.interpolate(below[suffix]), continued.score(found, back)
        table, suffix = longer, longer_suffix


def _renumber(train: Array, val: Array, vocab_size: int) -> tuple[Array, Array, np.uint64]:
    """Ids 1, 2, ... for the tokens that occur, so that longer n-grams fit into 64 bits; 0 is past the end."""
    used = np.zeros(vocab_size, dtype=bool)
    used[train] = used[val] = True
    number = np.cumsum(used, dtype=np.uint64)
    return number[train], number[val], number[-1] + np.uint64(1)


def _longest(train: Array, base: np.uint64, order: int) -> tuple[Array, Array]:
    """The sorted different n-grams of the highest order, as numbers in `base`, and how often each occurs.

    Every shorter n-gram is the beginning of one of them, which is why one sort serves all orders.
    """
    keys = np.zeros(len(train), dtype=np.uint64)
    for shift in range(order):
        keys *= base
        keys[: len(train) - shift] += train[shift:]
    keys.sort()
    starts = _starts(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def _starts(ordered: Array) -> Array:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


@dataclass(frozen=True)
class _Found:
    """Where the n-gram that ends at each token of val is in a table: its row, its context's, and whether they exist."""

    row: Array
    seen: Array
    context: Array
    context_seen: Array


@dataclass(frozen=True)
class _Discounted:
    """The two terms of an interpolation: what a row's count gives it, and the weight of the order below."""

    direct: Array  # one per row
    weight: Array  # one per context
    context: Array  # row -> context

    def interpolate(self, lower: Array) -> Array:
        """The probability of every row of the table, from the probability of its suffix."""
        probability: Array = self.direct + self.weight[self.context] * lower
        return probability

    def score(self, found: _Found, back: Array) -> Array:
        """The probability of every token of val; an unseen context leaves everything to `back`."""
        weight = np.where(found.context_seen, self.weight[found.context], 1.0)
        probability: Array = np.where(found.seen, self.direct[found.row], 0.0) + weight * back
        return probability


class _Table:
    """The n-grams of one order: sorted keys, counts, and contexts (all tokens but the last)."""

    def __init__(self, heads: Array, repeats: Array, base: np.uint64, shorter: int) -> None:
        """Cut the longest n-grams to those `shorter` tokens shorter."""
        prefix = heads // base ** np.uint64(shorter)
        whole = prefix % base != 0  # the last few n-grams of the text run past its end
        prefix, repeats = prefix[whole], repeats[whole]
        starts = _starts(prefix)
        self.base, self.keys = base, prefix[starts]
        self.counts = np.add.reduceat(repeats, starts)
        begins = _starts(self.keys // base)
        self.context = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(self.keys)))

    def find(self, window: Array) -> _Found:
        """Look up keys (M,); a row of a seen context stands where the key is or would be, or just before."""
        at = np.searchsorted(self.keys, window)
        before, row = np.maximum(at - 1, 0), np.minimum(at, len(self.keys) - 1)
        wanted = window // self.base
        here = self.keys[row] // self.base == wanted
        near = np.where(here, row, before)
        there = self.keys[near] // self.base == wanted
        return _Found(row, self.keys[row] == window, self.context[near], there)

    def discount(self, counts: Array) -> _Discounted:
        """Absolute discounting of the counts of every row, within its context."""
        total = np.bincount(self.context, weights=counts)
        types = np.bincount(self.context, weights=counts > 0)
        safe = np.maximum(total, 1)  # a context at the very beginning of the text has no continuation counts
        weight = np.where(total > 0, DISCOUNT * types / safe, 1.0)
        return _Discounted(np.maximum(counts - DISCOUNT, 0) / safe[self.context], weight, self.context)
