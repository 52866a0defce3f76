"""The vocabulary of a task: a few symbols, written with a space between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptlab.errors import ConfigError, DataError
from gptlab.registry import register
from gptlab.tokenizer import Ids, Pieces, Tokenizer


@register("tokenizer", "symbols")
class SymbolTokenizer(Tokenizer):
    """The symbols of a task (data=copy and others), which brings it along: `3 1 4 = 3 1 4`. Not for text."""

    name = "symbols"
    learns_from = "all"

    @staticmethod
    def of(symbols: Sequence[str]) -> SymbolTokenizer:
        """The tokenizer of these symbols; the id of each is its place."""
        made = SymbolTokenizer()
        made.learned = list(symbols)
        return made

    @property
    def vocab_size(self) -> int:
        self._require_fit()
        return len(self.learned)

    def fit(self, pieces: Pieces) -> None:
        raise ConfigError("tokenizer=symbols is what a task (data=copy) brings: for text choose char, byte or bpe.")

    def encode_array(self, text: str) -> Ids:
        self._require_fit()
        number = {symbol: i for i, symbol in enumerate(self.learned)}
        odd = next((word for word in text.split() if word not in number), None)
        if odd is not None:
            some = " ".join(self.learned[:3] + self.learned[-3:])
            raise DataError(f"{odd!r} is none of the {len(number)} symbols of this task, which are like: {some}")
        return np.array([number[word] for word in text.split()], dtype=np.int64)

    def _decode(self, ids: list[int]) -> str:
        return "".join(f" {self.learned[i]}" for i in ids)  # so that it goes on from a prompt

    def separator_ids(self) -> list[int]:
        raise DataError("A task has no documents, so nothing ends one.")
