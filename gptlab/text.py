"""Where text comes from: Python's own library, two small classics, or files of the user's, streamed in pieces.

Sources: the standard library; Karpathy's char-rnn (tiny shakespeare) and makemore (names), downloaded on request.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, ClassVar, cast

from gptlab.errors import ConfigError, DataError
from gptlab.files import cache_dir, fetch, file_hash
from gptlab.registry import register

BLOCK = 1 << 20  # bytes read at a time: a piece of text is never longer

Piece = tuple[bool, str]  # whether a document begins here, and some text, never empty
ValFraction = Annotated[float, "share of the text, at its end, that is kept for validation"]


class TextSource:
    """Documents in a fixed order. A subclass gives `files`, and `read` where a file is not one document."""

    name: ClassVar[str]

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
            raise DataError(f"A text is needed to train on, but {self.files[0]} is empty: give another data.path=...")

    def fingerprint(self) -> str:
        """sha256 over how the files are read and what is in them; their names and places do not matter."""
        hashes = [file_hash(path) for path in self.files]
        return hashlib.sha256(json.dumps([self.reading(), hashes]).encode()).hexdigest()


@register("data", "python")
class PythonSource(TextSource):
    """The running Python's own standard library: real text that every machine already has.

    One document per module, without tests, tables and bundled programs; the order is that of the sha256 of their
    names, so that validation is not the end of the alphabet. Modules are taken while they fit into `max_bytes`.
    """

    name = "python"
    left_out: ClassVar[frozenset[str]] = frozenset(
        {"test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
        | {"site-packages", "dist-packages", "__pycache__"}
    )

    def __init__(
        self,
        *,
        max_bytes: Annotated[int, "bytes of modules taken at most"] = 5_000_000,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(val_fraction)
        if max_bytes < 1:
            raise ConfigError(f"data.max_bytes must be at least 1, but is {max_bytes}.")
        self.max_bytes = max_bytes

    @cached_property
    def files(self) -> list[Path]:
        library = Path(sysconfig.get_paths()["stdlib"])
        taken, room = [], self.max_bytes
        for name in sorted(self._modules(library), key=_by_hash):
            size = (library / name).stat().st_size
            if 0 < size <= room and _is_utf8(library / name):
                taken.append(library / name)
                room -= size
        if not taken:
            raise DataError(f"No module of {library} fits data.max_bytes={self.max_bytes}: raise it or use data=text.")
        return taken

    def _modules(self, library: Path) -> Iterator[str]:
        for folder, inside, names in os.walk(library):
            inside[:] = set(inside) - self.left_out  # os.walk goes on with what is left here
            place = Path(folder).relative_to(library)
            for name in names:
                # The build's own settings, _sysconfigdata..., are a table of this machine.
                if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                    yield (place / name).as_posix()


def _by_hash(text: str) -> bytes:
    """A sorting key that is as good as chance, and the same everywhere."""
    return hashlib.sha256(text.encode()).digest()


class Download(TextSource):
    """A published file, known by its sha256, downloaded once; or the user's own copy of it."""

    url: ClassVar[str]
    sha256: ClassVar[str]

    def __init__(self, path: str | None, val_fraction: float) -> None:
        super().__init__(val_fraction)
        self.path = path

    @cached_property
    def files(self) -> list[Path]:
        if self.path is None:
            kept = cache_dir() / "downloads" / f"{self.name}.txt"
            if not kept.is_file():
                fetch(self.url, self.sha256, kept)
        else:
            kept = Path(self.path).expanduser()
        if file_hash(kept) != self.sha256:
            raise DataError(
                f"data={self.name} is a published text, but {kept} is not that (its sha256 differs): "
                f"remove it to download it again, or read it with data=text data.path={kept}"
            )
        return [kept]


@register("data", "shakespeare")
class ShakespeareSource(Download):
    """Tiny shakespeare, 1.1 MB in one document: the text that nanoGPT's character models are measured on."""

    name = "shakespeare"
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def __init__(
        self,
        *,
        path: Annotated[str | None, "a copy of the file; null = download it once"] = None,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(path, val_fraction)


@register("data", "names")
class NamesSource(Download):
    """32,033 first names, a document each, in the order of their sha256: makemore's text."""

    name = "names"
    url = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
    sha256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"

    def __init__(
        self,
        *,
        path: Annotated[str | None, "a copy of the file; null = download it once"] = None,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(path, val_fraction)

    def read(self, path: Path) -> Iterator[Piece]:
        # The file is sorted by how frequent a name is, so its end would be no fair validation.
        names = path.read_text(encoding="utf-8").split()
        return ((True, name) for name in sorted(names, key=_by_hash))


@register("data", "text")
class FileSource(TextSource):
    """A text file of yours, or a folder of them: .txt .md .py .jsonl, each also as .gz.

    A folder is read in the order of its paths, hidden files and other kinds left out. A file is one document, a line of
    JSON is one, and with `lines` so is every line. Empty documents are passed over.
    """

    name = "text"
    kinds: ClassVar[frozenset[str]] = frozenset([".txt", ".md", ".py", ".jsonl", ""])  # "": name.gz

    def __init__(
        self,
        *,
        path: Annotated[str, "a text file or a folder of them"],
        lines: Annotated[bool, "every line is a document"] = False,
        text_key: Annotated[str, "where a line of .jsonl has its text"] = "text",
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(val_fraction)
        self.path, self.lines, self.text_key = Path(path).expanduser(), lines, text_key

    @cached_property
    def files(self) -> list[Path]:
        if not self.path.exists():
            raise DataError(f"data.path must be a text file or a folder, but {self.path} is not there: mend the path.")
        if not (self.path.is_file() or self.path.is_dir()):  # a pipe would keep us waiting
            raise DataError(
                f"data.path must be a text file or a folder, but {self.path} is neither: save it to a file."
            )
        found = self._inside(self.path) if self.path.is_dir() else [self.path]
        if not found:
            raise DataError(
                f"A folder of text has .txt, .md, .py or .jsonl files (or .gz of them), but {self.path} none."
            )
        if self.text_key != "text" and not any(map(_is_jsonl, found)):
            raise DataError(f"data.text_key={self.text_key} needs .jsonl, but {self.path} has none: leave it out.")
        return found

    def _inside(self, folder: Path) -> list[Path]:
        paths = sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts)
        return [path for path in paths if path.is_file() and self._is_text(path.relative_to(folder))]

    def _is_text(self, name: Path) -> bool:
        hidden = any(part.startswith(".") for part in name.parts)
        packed = name.suffix == ".gz"
        kind = Path(name.stem).suffix if packed else name.suffix
        return not hidden and kind in self.kinds and (packed or kind != "")

    def read(self, path: Path) -> Iterator[Piece]:
        if _is_jsonl(path):
            return json_lines(path, self.text_key)
        return split_lines(path) if self.lines else whole(path)

    def reading(self) -> list[object]:
        return [self.name, self.lines, [self.text_key if _is_jsonl(path) else None for path in self.files]]


def _is_jsonl(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True


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
