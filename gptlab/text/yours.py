"""Text files of the user's, each alone or a folder of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from gptlab.errors import DataError
from gptlab.registry import register
from gptlab.text.reading import Piece, json_lines, split_lines, whole
from gptlab.text.source import TextSource, ValFraction


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
        self.by_line = lines

    @cached_property
    def files(self) -> list[Path]:
        if not self.path.exists():
            raise DataError(f"A text is a file or a folder, but {self.path} is not there: mend the path.")
        if not (self.path.is_file() or self.path.is_dir()):  # a pipe would keep us waiting
            raise DataError(f"A text is a file or a folder, but {self.path} is neither: save it to a file.")
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
