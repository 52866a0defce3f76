"""Pairs of a source and its target as rows of tokens: source, separator, target, end. The target alone is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.errors import ConfigError, DataError
from gptlab.tasks import Draws, Questions
from gptlab.tasks.draws import Array
from gptlab.text import Pair, PairSource
from gptlab.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rows:
    """Pairs of one split, one after another, (tokens,) ids: where each begins (rows + 1,), and its target (rows,)."""

    tokens: Array
    begins: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, which: Array, width: int) -> tuple[Array, Array]:
        """Inputs and targets of some rows, (n, width): the token after each, -100 but in the target and its end."""
        at = self.begins[which, None] + np.arange(width + 1)
        inside = at < self.begins[which + 1, None]
        tokens = np.where(inside, self.tokens.take(at, mode="clip"), 0).astype(np.int64)
        return Questions(tokens, inside & (at >= self.targets[which, None])).pairs(width)


class Pairs:
    """The pairs of a file as tokens; a tokenizer that has learned nothing yet is fitted to them."""

    def __init__(self, source: PairSource, tokenizer: Tokenizer) -> None:
        self.source, self.tokenizer = source, tokenizer
        self.train, self.val = source.split()
        if not tokenizer.fitted:
            tokenizer.fit(self._texts)
        self.separator = self._one(tokenizer.encode(source.separator), f"data.separator={source.separator!r}")
        self.end = self._one(tokenizer.separator_ids(), "the end of a target")
        self.rows = {"train": self._encoded(self.train), "val": self._encoded(self.val)}
        lengths = [np.diff(rows.begins) for rows in self.rows.values()]
        self.width = int(max(each.max() for each in lengths)) - 1  # the last token is said, not fed
        self.longest = [*self.train, *self.val][int(np.concatenate(lengths).argmax())]

    def batch(self, seed: int, step: int, n: int, rows: slice = slice(None)) -> tuple[Array, Array]:
        """Inputs and targets of training, each (n, width); what row i is depends on (seed, step, i) only."""
        drawn = Draws(n, seed, step, "pairs").below(len(self.train), 1)[:, 0]
        return self.rows["train"].read(drawn[rows], self.width)

    def validation(self) -> tuple[Array, Array]:
        """Inputs and targets of the pairs that are judged: always the same."""
        return self.rows["val"].read(np.arange(min(len(self.val), self.source.n_val)), self.width)

    def prompt(self, source: str) -> list[int]:
        """What a model is fed to say the target of a source."""
        return [*self.tokenizer.encode(source), self.separator]

    def fingerprint(self) -> str:
        """sha256 over the rows of both splits: equal for two runs exactly when they saw the same data."""
        digest = hashlib.sha256()
        for rows in self.rows.values():
            for array in (rows.tokens, rows.begins, rows.targets):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def _texts(self) -> Iterator[str]:
        """What a tokenizer learns from; a line break ends a target where the vocabulary has no end of its own."""
        pairs = self.train + self.val if self.tokenizer.learns_from == "all" else self.train
        return (f"{pair.source}{self.source.separator}{pair.target}\n" for pair in pairs)

    def _one(self, ids: list[int], what: str) -> int:
        if len(ids) != 1:
            raise ConfigError(
                f"{what} must be one token, but tokenizer {self.tokenizer.name!r} makes {len(ids)} of it: choose "
                "another data.separator or tokenizer."
            )
        return ids[0]

    def _encoded(self, pairs: Sequence[Pair]) -> Rows:
        kind = np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32
        ids = [self._ids(pair) for pair in pairs]
        begins = np.cumsum([0, *(len(source) + len(target) for source, target in ids)])
        targets = begins[:-1] + np.array([len(source) for source, _ in ids])
        one_by_one = (i for pair in ids for part in pair for i in part)
        return Rows(np.fromiter(one_by_one, dtype=kind, count=begins[-1]), begins, targets)

    def _ids(self, pair: Pair) -> tuple[list[int], list[int]]:
        """Source and separator, target and end. DataError where one of the two ids is in the text itself."""
        where = f"line {pair.line} of {self.source.path}"
        try:
            source, target = (self.tokenizer.encode(text) for text in pair[:2])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if self.separator in source:
            raise DataError(f"No source may hold the separator, but that of {where} does: give another data.separator.")
        if self.end in target:
            raise DataError(
                f"No target may hold what ends it, but that of {where} has a line break: take it out, or choose "
                "tokenizer=bpe or gpt2, which have an end of text."
            )
        return [*source, self.separator], [*target, self.end]
