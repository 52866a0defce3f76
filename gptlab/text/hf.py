"""Rows of a Hugging Face data set, streamed from the Hub, or of the user's own .parquet and .jsonl files.

Lhoest et al. 2021, arXiv:2109.02846 (the datasets library).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

from gptlab.errors import ConfigError, DataError
from gptlab.registry import register
from gptlab.text.reading import Piece
from gptlab.text.source import Scattered

GROUP = 1000  # lines of .jsonl that are read at a time


@register("data", "hf")
class HubSource(Scattered):
    """A Hugging Face data set, or .parquet or .jsonl files of yours: a row is a document, read once, never whole.

    Rows without text are passed over. Needs `pip install 'gptlab[hf]'`.
    """

    name = "hf"
    kinds: ClassVar[dict[str, str]] = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json"}

    def __init__(
        self,
        *,
        dataset: Annotated[str | None, "a data set of the Hub, like HuggingFaceFW/fineweb-edu"] = None,
        config: Annotated[str | None, "its configuration; null: the only one"] = None,
        revision: Annotated[str | None, "its commit or tag; null: the newest when it is prepared"] = None,
        split: Annotated[str, "its split; both of ours are made from it"] = "train",
        path: Annotated[str | None, "a .parquet or .jsonl file, or a folder of them, instead"] = None,
        column: Annotated[str, "where a row has its text"] = "text",
        val_fraction: Annotated[float, "share of the documents, from all over, that is kept for validation"] = 0.01,
    ) -> None:
        super().__init__(val_fraction)
        if (dataset is None) == (path is None):
            raise ConfigError("data=hf reads data.dataset=NAME from the Hub or data.path=FILE_OR_FOLDER: give one.")
        if path is not None and (config, revision, split) != (None, None, "train"):
            raise ConfigError(
                "data.config, data.revision and data.split are of the Hub: leave them out with data.path."
            )
        self.dataset, self.config, self.revision, self.split = dataset, config, revision, split
        self.path, self.column = path, column

    @cached_property
    def files(self) -> list[Path]:
        if self.path is None:
            return []
        path = Path(self.path).expanduser()
        found = sorted(path.rglob("*"), key=lambda file: file.relative_to(path).parts) if path.is_dir() else [path]
        found = [file for file in found if file.is_file() and _kind(file)]
        if not found:
            raise DataError(f"data.path must be .parquet files or .jsonl files, but {path} is not: mend the path.")
        if len(set(map(_kind, found))) > 1:
            raise DataError(
                f"data.path must be .parquet files or .jsonl files, but {path} holds both: name a folder each."
            )
        return found

    def reading(self) -> list[object]:
        return [self.name, self.dataset, self.config, self.revision, self.split, self.column]

    def documents(self, mark: Any = None) -> Iterator[Piece]:
        try:
            yield from self._documents(mark)
        except ImportError:
            raise ConfigError("data=hf reads with datasets and pyarrow: pip install 'gptlab[hf]'.") from None
        except DataError:
            raise
        except Exception as error:  # of datasets, pyarrow, the Hub or the network, each with classes of its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise DataError(
                f"{self.dataset or self.path} cannot be read ({reason}): mend that and start again: it goes on there."
            ) from None

    def _documents(self, mark: Any) -> Iterator[Piece]:
        found, (begin, skip, commit) = mark or (0, (0, 0, self.revision))
        for number, file in enumerate(self._hub_files(commit) if self.dataset else map(str, self.files)):
            if number < begin:
                continue
            if at := re.search(r"@([0-9a-f]{40})/", file):
                commit = at[1]  # what is gone on with is of one commit, though a newer one may have come
            done = skip if number == begin else 0  # groups of rows
            for rows in self._groups(file, done):
                self.mark = (found, (number, done, commit))
                texts = [text for text in rows if text]
                yield from ((True, text) for text in texts)
                found, done = found + len(texts), done + 1

    def _hub_files(self, revision: str | None) -> list[str]:
        """Where the files of the split are, each by its commit."""
        import datasets

        found = datasets.load_dataset_builder(self.dataset, self.config, revision=revision).config.data_files
        if self.split not in found:
            raise DataError(f"data.split must be one of {', '.join(map(str, found))}, but is {self.split!r}.")
        files = [str(file) for file in found[self.split]]
        odd = next((file for file in files if not _kind(file)), None)
        if odd:
            raise DataError(f"data=hf reads .parquet and .jsonl, but {odd} is neither: try another data.revision.")
        return files

    def _groups(self, file: str, skip: int) -> Iterator[list[str | None]]:
        """The texts of a file on this machine or on the Hub, group after group, without the first `skip` groups."""
        import fsspec

        with fsspec.open(file, "rb", compression="infer") as opened:
            groups = _parquet_groups if _kind(file) == "parquet" else _json_groups
            yield from groups(opened, file, self.column, skip)


def _parquet_groups(file: IO[bytes], name: str, column: str, skip: int) -> Iterator[list[str | None]]:
    """A group is what the file calls a row group; only it is in memory, since nothing is read ahead."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file, pre_buffer=False) as table:
        if column not in table.schema_arrow.names:
            raise DataError(_no_column(name, table.schema_arrow.names, column))
        for group in range(skip, table.num_row_groups):
            rows = table.read_row_group(group, [column]).column(0).to_pylist()
            yield [_text(row, column, name) for row in rows]


def _json_groups(file: IO[bytes], name: str, column: str, skip: int) -> Iterator[list[str | None]]:
    """A group is GROUP lines."""
    for number in itertools.count():
        lines = list(itertools.islice(file, GROUP))
        if not lines:
            return
        if number >= skip:
            numbered = enumerate(lines, start=number * GROUP + 1)
            yield [_row(line, column, f"line {at} of {name}") for at, line in numbered if line.strip()]


def _row(line: bytes, column: str, where: str) -> str | None:
    """The text of a line of JSON. DataError saying `where` there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Each line must be a JSON object, but {where} is not ({error}): mend it.") from None
    if not isinstance(row, dict):
        raise DataError(f"Each line must be a JSON object, but {where} is {type(row).__name__}: mend it.")
    if column not in row:
        raise DataError(_no_column(where, row, column))
    return _text(row[column], column, where)


def _text(value: Any, column: str, where: str) -> str | None:
    """What a row has in its column: text, or nothing. DataError for what is something else."""
    if not value:
        return None
    if not isinstance(value, str):
        raise DataError(f"data.column must hold text, but {column!r} is {type(value).__name__} in {where}.")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell it
        raise DataError(f"{where} has half a surrogate pair in {column!r}, which is no text: mend it.") from None
    return value


def _no_column(where: str, columns: Iterable[str], column: str) -> str:
    return f"data.column must be one of {', '.join(columns)}, but is {column!r}, in {where}."


def _kind(file: Path | str) -> str | None:
    """The format of a file that is read here."""
    return next((kind for ending, kind in HubSource.kinds.items() if str(file).lower().endswith(ending)), None)
