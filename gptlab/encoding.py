"""Documents -> ids -> the token file of a split: encoded on all cores, written in order, whatever their number."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

THREADS = os.cpu_count() or 1  # not processes: tiktoken, which is Rust, lets go of the interpreter's lock
BATCH = 1 << 20  # characters of documents that a thread encodes at a time

Key = tuple[int, str]  # the number of a document, and its split; "train" comes before "val", as in a cut document
Item = tuple[Key, str]  # and a piece of its text
Ids = np.ndarray[Any, np.dtype[Any]]


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """Ids of one text that comes in pieces."""

    def separator_ids(self) -> list[int]:
        """What stands between two documents."""


def n_bytes(text: str) -> int:
    """UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


@dataclass
class Batch:
    """Documents of one split that are encoded together."""

    key: Key  # of the last of them
    mark: Any  # a place of the source that is not behind the first of them
    long: bool  # one document, too long to be held: encoded as it is read
    documents: list[Iterable[str]] = field(default_factory=list)
    size: int = 0  # characters held
    bytes: int = 0  # of text, counted as it is encoded

    def encode(self, tokenizer: Encoder, dtype: str) -> Iterator[Ids]:
        """Ids, with a separator between two documents."""
        for number, document in enumerate(self.documents):
            if number:
                yield np.asarray(tokenizer.separator_ids(), dtype)
                self.bytes += 1
            for ids in tokenizer.encode_pieces(map(self._count, document)):
                yield ids.astype(dtype)

    def _count(self, text: str) -> str:
        self.bytes += n_bytes(text)
        return text


def batches(stream: Iterator[Item], mark: Callable[[], Any]) -> Iterator[Batch]:
    """The stream as work for one thread each: about BATCH characters of whole documents, or a longer document alone."""
    batch: Batch | None = None
    for key, items in groupby(stream, key=lambda item: item[0]):
        place = mark()  # now, since to see where this document ends the next one is read
        pieces = (text for _, text in items)
        held: list[str] = []
        size = 0
        while size <= BATCH and (text := next(pieces, None)) is not None:
            held.append(text)
            size += len(text)
        if batch and (batch.size + size > BATCH or batch.key[1] != key[1]):
            yield batch
            batch = None
        if size > BATCH:
            yield Batch(key, place, True, [chain(held, pieces)])
            continue
        batch = batch or Batch(key, place, False)
        batch.documents.append(held)
        batch.key, batch.size = key, batch.size + size
    if batch:
        yield batch


def encoded(
    stream: Iterator[Item], tokenizer: Encoder, dtype: str, mark: Callable[[], Any]
) -> Iterator[tuple[Batch, Iterable[Ids]]]:
    """Batches of the stream with their ids, in order; a few are under way at once, so that memory is flat.

    `mark` says where the source is. A long document is encoded while it is written, when all before it are.
    """
    under_way: deque[tuple[Batch, Future[list[Ids]]]] = deque()

    def done(room: int) -> Iterator[tuple[Batch, Iterable[Ids]]]:
        while len(under_way) > room:
            batch, future = under_way.popleft()
            yield batch, future.result()

    with ThreadPoolExecutor(THREADS) as pool:
        for batch in batches(stream, mark):
            if batch.long:
                yield from done(0)
                yield batch, batch.encode(tokenizer, dtype)
            else:
                under_way.append((batch, pool.submit(_joined, batch, tokenizer, dtype)))
                yield from done(2 * THREADS)
        yield from done(0)


def _joined(batch: Batch, tokenizer: Encoder, dtype: str) -> list[Ids]:
    return [np.concatenate(list(batch.encode(tokenizer, dtype)))]


class SplitFile:
    """One split on its way to disk, hashed and counted as it goes; what `counts` says is in it already stays."""

    def __init__(self, path: Path, dtype: str, counts: dict[str, int]) -> None:
        self.dtype, self.counts = dtype, counts
        self.file = path.open("a+b")
        self.file.truncate(counts["tokens"] * np.dtype(dtype).itemsize)  # more was written after the last save
        self.file.seek(0)
        self.hash = hashlib.file_digest(self.file, "sha256")

    def write(self, batch: Batch, ids: Iterable[Ids], tokenizer: Encoder) -> None:
        """Append documents, after a separator unless they are the first."""
        if self.counts["documents"]:
            self._append(np.asarray(tokenizer.separator_ids(), self.dtype))
            self.counts["bytes"] += 1
        for part in ids:
            self._append(part)
        self.counts["documents"] += len(batch.documents)
        self.counts["bytes"] += batch.bytes

    def _append(self, ids: Ids) -> None:
        content = ids.tobytes()
        self.file.write(content)
        self.hash.update(content)
        self.counts["tokens"] += len(ids)

    def sync(self) -> None:
        """Make it safe on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
