"""What a source of text is: documents in a fixed order, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from gptlab.errors import ConfigError, DataError
from gptlab.files import file_hash
from gptlab.text.reading import Piece, whole

ValFraction = Annotated[float, "share of the text, at its end, that is kept for validation"]


class TextSource:
    """Documents in a fixed order. A subclass gives `files`, and `read` where a file is not one document."""

    name: ClassVar[str]
    by_line: bool = False  # whether no document has a line break in it
    mark: Any = None  # of a Scattered: a place to go on from, (documents before it, what its library calls it)

    def __init__(self, val_fraction: float) -> None:
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction must be above 0 and below 1, but is {val_fraction}.")
        self.val_fraction = val_fraction

    @property
    def files(self) -> list[Path]:
        """The files the text is in, in order. DataError when there are none."""
        raise NotImplementedError

    def read(self, path: Path) -> Iterator[Piece]:
        """The documents of one file."""
        return whole(path)

    def reading(self) -> list[object]:
        """What beside the bytes of the files decides about the text: the source's name and such options."""
        return [self.name]

    def documents(self) -> Iterator[Piece]:
        """All text, in pieces of at most about a MB. DataError for a file that cannot be read, or no text at all."""
        empty = True
        for path in self.files:
            for piece in self.read(path):
                empty = False
                yield piece
        if empty:
            raise DataError(f"A text must hold something, but {self.files[0]} is empty: give another.")

    def fingerprint(self) -> str:
        """sha256 over how the files are read and what is in them; their names and places do not matter."""
        hashes = [file_hash(path) for path in self.files]
        return hashlib.sha256(json.dumps([self.reading(), hashes]).encode()).hexdigest()


def by_hash(text: str) -> bytes:
    """A sorting key that is as good as chance, and the same everywhere."""
    return hashlib.sha256(text.encode()).digest()


class Scattered(TextSource):
    """Text too large to read twice: each document's number, not its place in the whole, says which split it is in."""

    def documents(self, mark: Any = None) -> Iterator[Piece]:
        """All text after a `mark`, or from the beginning; the source's own moves along, never ahead of the reader."""
        raise NotImplementedError

    def validates(self, number: int) -> bool:
        """Whether a document is kept for validation."""
        return int.from_bytes(by_hash(str(number))[:8], "big") < self.val_fraction * 2**64
