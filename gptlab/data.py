"""Text -> token files -> batches: prepared once, memory-mapped, and drawn by (seed, step) alone.

Counter-based random numbers: Philox, Salmon et al. 2011 (SC11, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.errors import ConfigError, DataError
from gptlab.files import WAY_OUT, sync, write_atomically
from gptlab.files import cache_dir as usual_cache_dir
from gptlab.text import TextSource
from gptlab.tokenizer import Tokenizer, load

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of the files; another number makes all data be prepared again
SPLITS = ("train", "val")
STALE = 86_400  # seconds after which a half-made folder of an unknown machine is abandoned
PROGRESS = 1 << 30  # bytes of text between two lines of progress
IGNORE = -100  # a target that does not count: PyTorch's ignore_index

Tokens = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Dataset:
    """Prepared text: two token arrays on disk, (tokens,) uint16 or uint32, and the tokenizer they were made with."""

    directory: Path
    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    meta: dict[str, Any]  # meta.json: what was counted while the files were written

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""
        return self.tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """sha256 over the tokens of both splits: equal for two runs exactly when they saw the same data."""
        return str(self.meta["fingerprint"])

    def split(self, name: str) -> Tokens:
        """The tokens of 'train' or 'val'."""
        return {"train": self.train, "val": self.val}[_known(name)]

    def bytes_per_token(self, name: str) -> float:
        """UTF-8 bytes of text per token, a border between documents counting as one byte."""
        counted = self.meta["splits"][_known(name)]
        return float(counted["bytes"] / counted["tokens"])

    def require(self, block_size: int) -> None:
        """DataError unless each split holds one block and the token after it."""
        for name in SPLITS:
            size = len(self.split(name))
            if size < block_size + 1:
                raise DataError(
                    f"The {name} split needs model.block_size + 1 = {block_size + 1} tokens, but it has {size}: "
                    "lower model.block_size, change data.val_fraction, or give more text."
                )


def _known(name: str) -> str:
    if name not in SPLITS:
        raise ConfigError(f"A split is train or val, but {name!r} is neither.")
    return name


def open_dataset(directory: Path) -> Dataset:
    """The data set in a folder that `prepare` made. DataError when a file of it is missing or has the wrong size."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.memmap(directory / f"{name}.bin", dtype=meta["dtype"], mode="r") for name in SPLITS}
        whole = all(len(arrays[name]) == meta["splits"][name]["tokens"] for name in SPLITS)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{directory} is not a whole prepared data set: remove it and it will be made again.")
    return Dataset(directory, load(directory / "tokenizer.json"), arrays["train"], arrays["val"], meta)


def prepare(
    source: TextSource,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Tokenize a text once; the same text, split and tokenizer find it again, whatever their paths.

    A tokenizer that has not learned yet is fitted (bpe on the training split, char on all text) unless the data is
    found; the data set's own is the one to use. The first 1 - val_fraction of the UTF-8 bytes trains; validation begins
    with the next document, or within the last document at the next character.
    """
    key = _key(source, tokenizer)
    home = (cache_dir or usual_cache_dir()) / "tokens"
    directory = home / key
    if directory.exists():
        try:
            return open_dataset(directory)
        except DataError as error:
            report(f"{error} Making it again.")
            _remove(directory)
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        made = _workspace(home, key)
        try:
            _make(made, source, tokenizer, report)
            _publish(made, directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{home} cannot be written ({error.strerror or error}): {WAY_OUT}") from None
    return open_dataset(directory)


def _key(source: TextSource, tokenizer: Tokenizer) -> str:
    """What the token files depend on, as the name of their folder."""
    learned = tokenizer.learned if tokenizer.learns_from != "nothing" else None
    parts = [FORMAT, source.fingerprint(), source.val_fraction, tokenizer.name, tokenizer.options, learned]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _workspace(home: Path, key: str) -> Path:
    """A new folder whose name says which process of which machine works in it, for `_sweep`."""
    made = Path(tempfile.mkdtemp(prefix=f"{key}.{platform.node()}.{os.getpid()}.", suffix=".tmp", dir=home))
    made.chmod(0o755)  # mkdtemp makes it private, but a cache may be shared
    return made


def _remove(directory: Path) -> None:
    """Out of the way in one step, then gone: another process never meets half of it."""
    aside = _workspace(directory.parent, directory.name)
    os.rename(directory, aside / "data")
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Remove what processes that are gone have left half made."""
    for folder in home.glob("*.*.*.*.tmp"):
        _, *host, pid, _, _ = folder.name.split(".")  # a host's name may have dots
        try:
            old = time.time() - folder.stat().st_mtime > STALE
        except FileNotFoundError:
            continue  # its maker was faster
        if old or (".".join(host) == platform.node() and not _alive(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _publish(made: Path, directory: Path) -> None:
    """Give a finished folder its name, unless another process was first: then its twin is as good."""
    sync(made)
    try:
        os.rename(made, directory)
    except OSError:
        if not directory.exists():
            raise
    sync(directory.parent)


@dataclass(frozen=True)
class _Survey:
    """What has to be known of a text before it can be cut: sizes in UTF-8 bytes."""

    total: int
    documents: int
    target: int  # validation begins at the next place that is allowed


def _survey(source: TextSource) -> _Survey:
    total = documents = 0
    for begins, text in source.documents():
        documents += begins
        total += _size(text)
    return _Survey(total, documents, int((1 - source.val_fraction) * total))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _stream(source: TextSource, survey: _Survey) -> Iterator[tuple[str, int, str]]:
    """(split, number of the document, text); the document that is cut has the same number on both sides."""
    split, number, offset = "train", 0, 0
    for begins, text in source.documents():
        number += begins
        if split == "train" and begins and offset >= survey.target:
            split = "val"
        size = _size(text)
        if split == "train" and number == survey.documents and offset + size > survey.target:
            head, text = _cut(text, survey.target - offset)
            if head:
                yield "train", number, head
            split = "val"
        offset += size
        if text:
            yield split, number, text
    if offset != survey.total:
        raise DataError("The text changed while it was being prepared: start again when it is complete.")


def _cut(text: str, size: int) -> tuple[str, str]:
    """The text before and from the first character that begins at or after byte `size`."""
    raw = text.encode()
    while size < len(raw) and raw[size] & 0b1100_0000 == 0b1000_0000:  # inside a character
        size += 1
    return raw[:size].decode(), raw[size:].decode()


def _texts(source: TextSource, survey: _Survey, wanted: str) -> Iterator[str]:
    """What a tokenizer learns from: all text or the training split, a line break between documents."""
    last = 1
    for split, number, text in _stream(source, survey):
        if wanted == "train" and split == "val":
            return
        if number != last:
            yield "\n"
        last = number
        yield text


class _SplitFile:
    """One split on its way to disk, counted and hashed as it goes."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.file, self.dtype = path.open("wb"), dtype
        self.hash = hashlib.sha256()
        self.tokens = self.bytes = self.documents = 0

    def write(self, document: Iterator[str], tokenizer: Tokenizer) -> None:
        """Append a document, after a separator unless it is the first."""
        if self.documents:
            self._append(tokenizer.separator_ids())
            self.bytes += 1
        self.documents += 1
        for ids in tokenizer.encode_pieces(map(self._count, document)):
            self._append(ids)

    def _count(self, text: str) -> str:
        self.bytes += _size(text)
        return text

    def _append(self, ids: Tokens | list[int]) -> None:
        content = np.asarray(ids).astype(self.dtype).tobytes()
        self.file.write(content)
        self.hash.update(content)
        self.tokens += len(ids)

    def close(self) -> dict[str, Any]:
        """Make it safe on disk; what was counted."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        counts = {"tokens": self.tokens, "bytes": self.bytes, "documents": self.documents}
        return {**counts, "sha256": self.hash.hexdigest()}


def _make(folder: Path, source: TextSource, tokenizer: Tokenizer, report: Callable[[str], None]) -> None:
    """Fill an empty folder: tokenizer.json, train.bin, val.bin, and meta.json last."""
    survey = _survey(source)
    report(f"{source.name}: {survey.total:,} bytes of text in {survey.documents:,} documents")
    if not tokenizer.fitted:
        tokenizer.fit(lambda: _texts(source, survey, tokenizer.learns_from))
        report(f"{tokenizer.name}: learned {tokenizer.vocab_size:,} entries")
    tokenizer.save(folder / "tokenizer.json")
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    files = {name: _SplitFile(folder / f"{name}.bin", dtype) for name in SPLITS}
    stream = _told(_stream(source, survey), survey, report)
    for (split, _), document in groupby(stream, key=lambda item: item[:2]):
        files[split].write((text for _, _, text in document), tokenizer)
    splits = {name: file.close() for name, file in files.items()}
    for name in SPLITS:
        if not splits[name]["tokens"]:
            raise DataError(f"Both splits need text, but {name} gets none of {survey.total} bytes: give more text.")
        report(f"{name}: {splits[name]['tokens']:,} tokens")
    fingerprint = hashlib.sha256("".join(splits[name]["sha256"] for name in SPLITS).encode()).hexdigest()
    meta = {"format": FORMAT, "source": source.name, "dtype": dtype, "splits": splits, "fingerprint": fingerprint}
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1).encode())


def _told(
    stream: Iterator[tuple[str, int, str]], survey: _Survey, report: Callable[[str], None]
) -> Iterator[tuple[str, int, str]]:
    """The same stream, with a line of progress every PROGRESS bytes."""
    done = told = 0
    for item in stream:
        yield item
        done += len(item[2])  # characters stand in for bytes: this is for a person
        if done - told >= PROGRESS:
            told = done
            report(f"{done / survey.total:.0%} of {survey.total:,} bytes tokenized")


def sample_batch(
    tokens: Tokens, *, seed: int, step: int, n: int, block_size: int, rows: slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, each (n, block_size) int64, at random places; what row i is depends on (seed, step, i) only.

    `rows` reads a slice of the n rows: what one rank or one micro-batch takes.
    """
    import torch

    key = hashlib.sha256(f"{seed} batch {step}".encode()).digest()
    # Raw words and a remainder, since numpy may change how it draws integers; the bias is below 1e-9 for 10 GB.
    words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(n)
    starts = (words % np.uint64(len(tokens) - block_size)).astype(np.int64)[rows]
    both = torch.from_numpy(tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def windows(tokens: Tokens, *, block_size: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One pass over a split, (batch_size, block_size) int64 each: every token but the first is a target exactly once.

    Windows do not overlap. The end is filled up to a whole batch with id 0 and targets -100, so that every batch has
    the same shape.
    """
    import torch

    size = block_size * batch_size
    for start in range(0, len(tokens) - 1, size):
        part = tokens[start : start + size + 1].astype(np.int64)
        x, y = np.zeros(size, dtype=np.int64), np.full(size, IGNORE, dtype=np.int64)
        x[: len(part) - 1], y[: len(part) - 1] = part[:-1], part[1:]
        yield torch.from_numpy(x.reshape(batch_size, block_size)), torch.from_numpy(y.reshape(batch_size, block_size))
