"""The text in a file, plain or .gz, streamed in pieces: whole, by lines, or by lines of JSON."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from gptlab.errors import DataError

BLOCK = 1 << 20  # bytes read at a time: a piece of text is never longer

Piece = tuple[bool, str]  # whether a document begins here, and some text, never empty


def whole(path: Path) -> Iterator[Piece]:
    """A file as one document, in pieces."""
    first = True
    for text in pieces(path):
        yield first, text
        first = False


def split_lines(path: Path) -> Iterator[Piece]:
    """Every line that is not empty as a document; a line longer than a block comes in pieces."""
    first, held = True, ""
    for text in pieces(path):
        text = held + text
        held = "\r" if text.endswith("\r") else ""  # the other half of a line break may be in the next piece
        *ended, rest = text.removesuffix(held).split("\n")
        for line in ended:
            if line := line.removesuffix("\r"):
                yield first, line
            first = True
        if rest:
            yield first, rest
            first = False


def json_lines(path: Path, key: str) -> Iterator[Piece]:
    """The text under `key` of every line as a document. DataError names the line that has none."""
    with readable(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[key]
                text.encode()  # JSON can spell half a surrogate pair, which is no text
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"Every line of {path} must be a JSON object with text under {key!r}, but line {number} is not "
                    f"({type(error).__name__}): mend it, or give data.text_key=..."
                ) from None
            if text:
                yield True, text


def pieces(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file, plain or .gz, block by block. DataError with the offset of a byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with readable(path) as file:
        end = 0
        while True:
            block = file.read(BLOCK)
            begin = end - len(decoder.getstate()[0])  # a character may have begun in the block before
            end += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = begin + error.start
                raise DataError(f"{path} must be UTF-8, but byte {offset} is not: convert or mend the file.") from None
            if text:
                yield text
            if not block:
                return


@contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is .gz. DataError, here or while reading, when that fails."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole .gz file ({error}): make or copy it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
