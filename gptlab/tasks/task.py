"""What a task is: questions of a size, made from numbers that are drawn, with the places that are asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from gptlab.errors import ConfigError, DataError
from gptlab.tasks.draws import Array, Draws

ATTEMPTS = 16  # draws of questions after which what has not been found is taken not to be there


class Questions(NamedTuple):
    """Whole sequences (n, tokens) of ids, and which of their places are answers (n, tokens)."""

    tokens: Array
    asked: Array

    def pairs(self, width: int) -> tuple[Array, Array]:
        """Inputs and targets (n, width): the token after each, -100 where it is not asked for; filled up with 0."""
        room = ((0, 0), (0, width + 1 - self.tokens.shape[1]))
        tokens, asked = np.pad(self.tokens, room), np.pad(self.asked, room)
        return tokens[:, :-1], np.where(asked[:, 1:], tokens[:, 1:], -100)


class Task:
    """Questions without end, each with one right answer. A subclass gives `questions`, and its symbols to `__init__`.

    A hash of the question says whether it is for training or for validation, so that none is ever both.
    """

    name: str
    n_answer: int  # different answers to one place, for the level of chance

    def __init__(
        self,
        symbols: Sequence[str],
        n_answer: int,
        length: int,
        *,
        shortest: Annotated[int | None, "least size trained on, all up to the whole being as likely; null: it"] = None,
        lengths: Annotated[list[int] | None, "sizes judged besides, seen in training or not"] = None,
        n_val: Annotated[int, "validation questions at most, of each size"] = 512,
        val_fraction: Annotated[float, "share of all questions that is kept for validation"] = 0.1,
    ) -> None:
        self.symbols, self.n_answer = list(symbols), n_answer
        self.length, self.shortest = length, length if shortest is None else shortest
        self.lengths = sorted({*(lengths or ())} - {length})
        self.n_val, self.val_fraction = n_val, val_fraction
        if min(self.sizes) < 1 or n_val < 1 or n_answer < 2:
            raise ConfigError(
                f"data={self.name} needs sizes and data.n_val of at least 1 and 2 answers to choose from, "
                f"but has {self.sizes}, {n_val} and {n_answer}: raise what is too low."
            )
        if not 1 <= self.shortest <= length:
            raise ConfigError(f"data.shortest must be from 1 to the size trained on, {length}, but is {shortest}.")
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction must be above 0 and below 1, but is {val_fraction}.")

    def questions(self, draws: Draws, length: int) -> Questions:
        """`draws.n` questions of one size."""
        raise NotImplementedError

    def answered(self, told: Array, answer: Array) -> Questions:
        """Questions that end in `=` and are answered after it: all of the answer is asked for."""
        ends = np.full((len(told), 1), self.symbols.index("="))
        asked = np.zeros((len(told), told.shape[1] + 1 + answer.shape[1]), dtype=bool)
        asked[:, told.shape[1] + 1 :] = True
        return Questions(np.concatenate([told, ends, answer], axis=1), asked)

    @property
    def sizes(self) -> list[int]:
        """Every size that is judged: first the one trained on."""
        return [self.length, *self.lengths]

    def n_tokens(self, length: int) -> int:
        """Tokens fed for one question of a size."""
        return self.questions(Draws(1), length).tokens.shape[1] - 1

    def batch(self, seed: int, step: int, n: int) -> tuple[Array, Array]:
        """Inputs and targets of training, each (n, n_tokens) and a function of (seed, step, n) alone."""
        sizes = self.shortest + Draws(n, seed, step, "size").below(self.length - self.shortest + 1, 1)[:, 0]
        width = self.n_tokens(self.length)
        inputs, targets = np.zeros((n, width), dtype=np.int64), np.full((n, width), -100)
        for size in np.unique(sizes):
            rows = sizes == size
            found = self._found(int(size), rows.sum(), "train", seed, step)
            inputs[rows], targets[rows] = found.pairs(width)
        return inputs, targets

    def validation(self, length: int) -> tuple[Array, Array]:
        """Inputs and targets of the validation questions of a size: always the same, none twice."""
        return self._found(length, self.n_val, "val").pairs(self.n_tokens(length))

    def fingerprint(self) -> str:
        """sha256 over questions of both kinds: equal for two runs exactly when they see the same."""
        digest = hashlib.sha256(repr((self.symbols, self.shortest, self.length, self.val_fraction)).encode())
        for array in (*self.batch(0, 0, 64), *self.validation(self.length)):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _found(self, length: int, n: int, split: str, *key: object) -> Questions:
        """Questions of one split: `n` for training; for validation as many different ones as there are, at most n."""
        parts: list[Questions] = []
        for made in self._drawn(length, n, split, *key):
            merged = Questions(*map(np.concatenate, zip(*parts, made, strict=True)))
            if split == "val":
                first = np.sort(np.unique(_hash(merged.tokens), return_index=True)[1])
                merged = Questions(merged.tokens[first], merged.asked[first])
            parts = [merged]
            if len(merged.tokens) >= n:
                break
        if not len(merged.tokens) or (len(merged.tokens) < n and split == "train"):
            raise DataError(
                f"data={self.name} has too few questions of size {length} to keep some for {split}: "
                "raise its size, give it more symbols, or change data.val_fraction."
            )
        return Questions(merged.tokens[:n], merged.asked[:n])

    def _drawn(self, length: int, n: int, split: str, *key: object) -> Iterator[Questions]:
        share = self.val_fraction if split == "val" else 1 - self.val_fraction
        for attempt in range(ATTEMPTS):
            made = self.questions(Draws(math.ceil(n / share), split, length, *key, attempt), length)
            fits = (_hash(made.tokens) < np.uint64(int(self.val_fraction * 2**64))) == (split == "val")
            yield Questions(made.tokens[fits], made.asked[fits])


def _hash(tokens: Array) -> Array:
    """64 bits for each row of ids (n, tokens): a random combination of them, mixed. SplitMix64, Steele et al. 2014."""
    odd = np.random.Philox(key=0).random_raw(tokens.shape[1]) | np.uint64(1)
    mixed = (tokens.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
