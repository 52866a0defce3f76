"""Text -> token files -> batches: prepared once, memory-mapped, and drawn by (seed, step) alone.

Counter-based random numbers: Philox, Salmon et al. 2011 (SC11, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.encoding import Item, Key, SplitFile, encoded, n_bytes
from gptlab.errors import ConfigError, DataError
from gptlab.files import WAY_OUT, write_atomically
from gptlab.files import cache_dir as usual_cache_dir
from gptlab.text import Scattered, TextSource
from gptlab.tokenizer import Tokenizer, load
from gptlab.workspace import PROGRESS_FILE, close_workspace, open_workspace, publish, remove, sweep

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of the files; another number makes all data be prepared again
SPLITS = ("train", "val")
PROGRESS = 10  # seconds between two lines of progress
SAVE = 1 << 28  # bytes of text after which what has been written is made safe, to go on from after a kill
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
    with the next document, or within the last document at the next character. (A `Scattered` text has it everywhere.)
    What was killed is gone on with, and the files do not depend on it, nor on the number of cores.
    """
    if not isinstance(source, TextSource):
        raise ConfigError(
            f"data={getattr(source, 'name', source)} is a task, not a text to be scored: how it was answered is in the "
            "run's summary.json, and `gptlab sample RUN --prompt` asks more."
        )
    key = _key(source, tokenizer)
    home = (cache_dir or usual_cache_dir()) / "tokens"
    directory = home / key
    if directory.exists():
        try:
            return open_dataset(directory)
        except DataError as error:
            report(f"{error} Making it again.")
            remove(directory)
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
        made = open_workspace(home, key)
        try:
            _make(made, source, tokenizer, report)
            publish(made, directory)
        finally:
            close_workspace(made)
    except OSError as error:
        raise DataError(f"{home} cannot be written ({error.strerror or error}): {WAY_OUT}") from None
    return open_dataset(directory)


def _key(source: TextSource, tokenizer: Tokenizer) -> str:
    """What the token files depend on, as the name of their folder."""
    learned = tokenizer.learned if tokenizer.learns_from != "nothing" else None
    parts = [FORMAT, source.fingerprint(), source.val_fraction, tokenizer.name, tokenizer.options, learned]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Survey:
    """What has to be known of a text before it can be cut: sizes in UTF-8 bytes."""

    total: int
    documents: int
    target: int  # validation begins at the next place that is allowed


def _survey(source: TextSource) -> _Survey | None:
    """One pass over the text, unless it is not to be read twice."""
    if isinstance(source, Scattered):
        return None
    total = documents = 0
    for begins, text in source.documents():
        documents += begins
        total += n_bytes(text)
    return _Survey(total, documents, int((1 - source.val_fraction) * total))


def _stream(source: TextSource, survey: _Survey | None, mark: Any = None) -> Iterator[Item]:
    """All text with its keys; of a scattered source that after `mark`."""
    if isinstance(source, Scattered):
        return _scattered(source, mark)
    assert survey is not None
    return _in_place(source, survey)


def _scattered(source: Scattered, mark: Any) -> Iterator[Item]:
    """Each document goes where its number sends it."""
    number = mark[0] if mark else 0
    for begins, text in source.documents(mark):
        number += begins
        yield (number, "val" if source.validates(number) else "train"), text


def _in_place(source: TextSource, survey: _Survey) -> Iterator[Item]:
    """Training first, then validation; the document that is cut has the same number on both sides."""
    split, number, offset = "train", 0, 0
    for begins, text in source.documents():
        number += begins
        if split == "train" and begins and offset >= survey.target:
            split = "val"
        size = n_bytes(text)
        if split == "train" and number == survey.documents and offset + size > survey.target:
            head, text = _cut(text, survey.target - offset)
            if head:
                yield (number, "train"), head
            split = "val"
        offset += size
        if text:
            yield (number, split), text
    if offset != survey.total:
        raise DataError("The text changed while it was being prepared: start again when it is complete.")


def _cut(text: str, size: int) -> tuple[str, str]:
    """The text before and from the first character that begins at or after byte `size`."""
    raw = text.encode()
    while size < len(raw) and raw[size] & 0b1100_0000 == 0b1000_0000:  # inside a character
        size += 1
    return raw[:size].decode(), raw[size:].decode()


def _texts(source: TextSource, survey: _Survey | None, wanted: str) -> Iterator[str]:
    """What a tokenizer learns from: all text or the training split, a line break between documents."""
    last = None
    for (number, split), text in _stream(source, survey):
        if wanted in ("all", split):
            if last not in (None, number):
                yield "\n"
            last = number
            yield text


@dataclass
class _Begun:
    """How far the files of a folder have come: what progress.json holds."""

    survey: _Survey | None
    done: Key = (0, "")  # the last document that is in them
    mark: Any = None  # a place of the source to go on from
    saved: int = 0  # bytes of text in them when it was written
    splits: dict[str, dict[str, int]] = field(
        default_factory=lambda: {name: {"tokens": 0, "bytes": 0, "documents": 0} for name in SPLITS}
    )

    @property
    def bytes(self) -> int:
        """Of text that is in the files."""
        return sum(counts["bytes"] for counts in self.splits.values())

    def save_sometimes(self, folder: Path, files: dict[str, SplitFile], mark: Any) -> None:
        """Every SAVE bytes make the files safe, and then write down how far they have come."""
        if self.bytes - self.saved >= SAVE:
            self.saved, self.mark = self.bytes, mark
            for file in files.values():
                file.sync()
            write_atomically(folder / PROGRESS_FILE, json.dumps(asdict(self)).encode())


def _begin(
    folder: Path, source: TextSource, tokenizer: Tokenizer, report: Callable[[str], None]
) -> tuple[_Begun, Tokenizer]:
    """What a folder holds of its data set, and the tokenizer; in an empty one that has to be fitted first."""
    if (folder / PROGRESS_FILE).is_file():
        held = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        survey = held.pop("survey")
        begun = _Begun(survey and _Survey(**survey), tuple(held.pop("done")), **held)
        report(f"{source.name}: going on after {begun.bytes:,} bytes of text")
        return begun, load(folder / "tokenizer.json")
    survey = _survey(source)
    if survey:
        report(f"{source.name}: {survey.total:,} bytes of text in {survey.documents:,} documents")
    if not tokenizer.fitted:
        tokenizer.fit(lambda: _texts(source, survey, tokenizer.learns_from))
        report(f"{tokenizer.name}: learned {tokenizer.vocab_size:,} entries")
    tokenizer.save(folder / "tokenizer.json")
    return _Begun(survey), tokenizer


def _make(folder: Path, source: TextSource, tokenizer: Tokenizer, report: Callable[[str], None]) -> None:
    """Fill a folder, empty or begun: tokenizer.json, train.bin, val.bin, and meta.json last."""
    begun, tokenizer = _begin(folder, source, tokenizer, report)
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    files = {name: SplitFile(folder / f"{name}.bin", dtype, begun.splits[name]) for name in SPLITS}
    with contextlib.ExitStack() as stack:
        for file in files.values():
            stack.enter_context(file.file)
        stream = _told(_rest(source, begun), begun, report)
        for batch, ids in encoded(stream, tokenizer, dtype, lambda: source.mark):
            begun.save_sometimes(folder, files, batch.mark)
            files[batch.key[1]].write(batch, ids, tokenizer)
            begun.done = batch.key
        for file in files.values():
            file.sync()
    for name, counts in begun.splits.items():
        if not counts["tokens"]:
            raise DataError(f"Both splits need text, but {name} gets none of {begun.bytes} bytes: give more text.")
        report(f"{name}: {counts['tokens']:,} tokens")
    hashes = {name: files[name].hash.hexdigest() for name in SPLITS}
    splits = {name: {**begun.splits[name], "sha256": hashes[name]} for name in SPLITS}
    fingerprint = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
    meta = {"format": FORMAT, "source": source.name, "dtype": dtype, "splits": splits, "fingerprint": fingerprint}
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1).encode())


def _rest(source: TextSource, begun: _Begun) -> Iterator[Item]:
    """What is not in the files yet."""
    return (item for item in _stream(source, begun.survey, begun.mark) if item[0] > begun.done)


def _told(stream: Iterator[Item], begun: _Begun, report: Callable[[str], None]) -> Iterator[Item]:
    """The same stream, with a line of progress every PROGRESS seconds."""
    done, told = begun.bytes, time.monotonic()
    for item in stream:
        yield item
        done += len(item[1])  # characters stand in for bytes: this is for a person
        if time.monotonic() - told >= PROGRESS:
            told = time.monotonic()
            share = f"{done / begun.survey.total:.0%} of {begun.survey.total:,}" if begun.survey else f"{done:,}"
            report(f"{share} bytes tokenized")


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


def part_of(tokens: Tokens, part: str) -> Tokens:
    """All of a split, or its first or second half; between them the halves have every target of the whole once."""
    middle = (len(tokens) + 1) // 2
    return {"all": tokens, "first": tokens[:middle], "second": tokens[middle - 1 :]}[part]


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
