"""Sources with their targets from a file of yours, a pair a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from gptlab.errors import ConfigError, DataError
from gptlab.registry import register
from gptlab.text.reading import readable
from gptlab.text.source import by_hash


class Pair(NamedTuple):
    """A source, what is to be said of it, and the line of the file that it is from."""

    source: str
    target: str
    line: int


@register("data", "pairs")
class PairSource:
    """Sources and their targets from a .jsonl or .tsv file of yours (or .gz of one): the target alone is learnt.

    A line of .tsv is a source, a tab and a target. A hash of the source says whether a pair is for training or for
    validation, so that no source is in both.
    """

    name = "pairs"

    def __init__(
        self,
        *,
        path: Annotated[str, "a .jsonl or .tsv file of pairs"],
        source_key: Annotated[str, "where a line of .jsonl has its source"] = "source",
        target_key: Annotated[str, "where a line of .jsonl has its target"] = "target",
        separator: Annotated[str, "what the model reads between the two: one token, which no source has"] = "\t",
        n_val: Annotated[int, "validation pairs judged at most"] = 512,
        val_fraction: Annotated[float, "share of the sources that is kept for validation"] = 0.1,
    ) -> None:
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction must be above 0 and below 1, but is {val_fraction}.")
        if n_val < 1:
            raise ConfigError(f"data.n_val must be at least 1, but is {n_val}.")
        self.path, self.keys, self.separator = Path(path).expanduser(), (source_key, target_key), separator
        self.n_val, self.val_fraction = n_val, val_fraction
        kind = Path(self.path.name.removesuffix(".gz")).suffix
        if kind not in (".jsonl", ".tsv"):
            raise ConfigError(f"data.path must be a .jsonl or .tsv file (or .gz of one), but is {path}: convert it.")
        self.is_jsonl = kind == ".jsonl"
        if not self.is_jsonl and self.keys != ("source", "target"):
            raise ConfigError(f"data.source_key and target_key are about .jsonl, but {path} is none: leave them out.")

    def pairs(self) -> Iterator[Pair]:
        """Every pair, in the order of the file. DataError naming the first line that is none."""
        by_key = f"a JSON object with text under {' and '.join(self.keys)}"
        form = by_key if self.is_jsonl else "a source, a tab and a target"
        with readable(self.path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield Pair(*self._read(line), number)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"Each line must be {form}, but line {number} of {self.path} is not ({type(error).__name__}: "
                        f"{error}): mend it."
                    ) from None

    def _read(self, line: bytes) -> tuple[str, str]:
        """The pair in a line. An error of Python's where there is none."""
        row = json.loads(line) if self.is_jsonl else {}
        texts = [row[key] for key in self.keys] if self.is_jsonl else line.decode().rstrip("\r\n").split("\t")
        if len(texts) != 2:
            raise ValueError(f"it has {len(texts)} columns")
        for text in texts:
            if not isinstance(text, str) or not text:
                raise ValueError(f"{text!r} is no text")
            text.encode()  # JSON can spell half a surrogate pair, which is none either
        return texts[0], texts[1]

    def split(self) -> tuple[list[Pair], list[Pair]]:
        """Pairs for training in their order, for validation in a random one. DataError where one of the two gets none.

        What is random is the hash of the source.
        """
        train, val = list[Pair](), list[tuple[bytes, Pair]]()
        for pair in self.pairs():
            drawn = by_hash(pair.source)
            if int.from_bytes(drawn[:8], "big") < self.val_fraction * 2**64:
                val.append((drawn, pair))
            else:
                train.append(pair)
        if not (train and val):
            raise DataError(
                f"Training and validation need pairs, but get {len(train)} and {len(val)} of those in {self.path}: "
                "give more, or change data.val_fraction."
            )
        return train, [pair for _, pair in sorted(val)]
