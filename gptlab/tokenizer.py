"""Text to ids and back: bytes, characters, byte pairs learned from the text, and GPT-2's (Radford et al. 2019)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gptlab.bpe import WORDS, count_words, safe_pieces, train_bpe
from gptlab.errors import ConfigError, DataError
from gptlab.files import write_atomically
from gptlab.registry import build, register

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

Pieces = Callable[[], Iterator[str]]  # starts a pass over a text that may not fit into memory
Ids = np.ndarray[Any, np.dtype[Any]]


class Tokenizer:
    """Ids 0..vocab_size-1 for any text. A subclass gives `vocab_size`, `encode_array` and `_decode`."""

    name: ClassVar[str]
    learns_from: ClassVar[Literal["nothing", "train", "all"]] = "nothing"  # the text that `fit` is to be given

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}  # what it was built with, beside its name
        self.learned: Any = None  # what `fit` found out, as JSON can hold it

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""
        raise NotImplementedError

    @property
    def end_of_text(self) -> int | None:
        """The id between documents that no text encodes to, or None."""
        return None

    @property
    def fitted(self) -> bool:
        """Whether it can encode."""
        return self.learns_from == "nothing" or self.learned is not None

    def fit(self, pieces: Pieces) -> None:
        """Learn the vocabulary from text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text. DataError for a character the vocabulary does not have."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> Ids:
        """Ids of a text, integers of shape (tokens,)."""
        raise NotImplementedError

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """Ids of one text that comes in pieces: the same as those of the whole."""
        return map(self.encode_array, pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. DataError for an id outside the vocabulary."""
        plain = [int(i) for i in ids]
        wrong = next((i for i in plain if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise DataError(f"An id is 0 to {self.vocab_size - 1}, but {wrong} is not: use the run's own tokenizer.")
        return self._decode(plain)

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def separator_ids(self) -> list[int]:
        """What stands between two documents: the end-of-text id, or a line break."""
        return self.encode("\n") if self.end_of_text is None else [self.end_of_text]

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to build it again, as JSON can hold it."""
        self._require_fit()
        return {"name": self.name, "options": self.options, "learned": self.learned}

    def save(self, path: Path) -> None:
        """Write the state with a checksum, atomically."""
        state = self.state()
        write_atomically(path, json.dumps({**state, "sha256": _checksum(state)}).encode())

    def _require_fit(self) -> None:
        if not self.fitted:
            raise DataError(f"The {self.name} tokenizer learns its vocabulary from text: call fit or load one first.")


def restore(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `state()` this is. DataError when it is none."""
    try:
        tokenizer: Tokenizer = build("tokenizer", {"name": state["name"], **state["options"]})
        tokenizer.learned = state["learned"]
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"A tokenizer's state is its name, options and what it learned, not this: {error}") from None
    return tokenizer


def load(path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote. DataError when the file is missing or not what was written."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        checksum = state.pop("sha256")
    except OSError as error:
        raise DataError(f"The tokenizer in {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DataError(f"{path} is not a whole tokenizer file: restore it from a copy.") from None
    if checksum != _checksum(state):
        raise DataError(f"{path} is not what was written (its checksum differs): restore it from a copy.")
    return restore(state)


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise DataError(f"Character {bad!r} at position {error.start} is half a surrogate: remove it.") from None


@register("tokenizer", "byte")
class ByteTokenizer(Tokenizer):
    """The 256 byte values of UTF-8: nothing to learn, nothing it cannot encode."""

    name = "byte"

    @property
    def vocab_size(self) -> int:
        return 256

    def encode_array(self, text: str) -> Ids:
        return np.frombuffer(_utf8(text), dtype=np.uint8)

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@register("tokenizer", "char")
class CharTokenizer(Tokenizer):
    """The characters that occur in the text, in the order of their code points.

    They are taken from all of the text, validation included: a set of symbols carries no statistics, and a character
    that occurs in validation only would otherwise have no id.
    """

    name = "char"
    learns_from = "all"

    @property
    def vocab_size(self) -> int:
        self._require_fit()
        return len(self.learned)

    def fit(self, pieces: Pieces) -> None:
        symbols: set[str] = set()
        for piece in pieces():
            symbols.update(piece)
        self.learned = "".join(sorted(symbols))

    def encode_array(self, text: str) -> Ids:
        self._require_fit()
        symbols, codes = _code_points(self.learned), _code_points(text)
        ids = np.minimum(np.searchsorted(symbols, codes), len(symbols) - 1)
        unknown = symbols[ids] != codes
        if unknown.any():
            at = int(unknown.argmax())
            raise DataError(
                f"Character {text[at]!r} at position {at} is not among the {len(symbols)} of the vocabulary: "
                "leave it out, or train with tokenizer=byte."
            )
        return ids

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.learned[i] for i in ids)


def _code_points(text: str) -> Ids:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


class RankedTokenizer(Tokenizer):
    """Byte-pair encoding by a list of tokens in the order they were merged; the last id is the end of text.

    `learned` is that list, each token's bytes written as Latin-1; a token's id is its place.
    """

    _built: tiktoken.Encoding | None = None

    @property
    def encoding(self) -> tiktoken.Encoding:
        """The same vocabulary as a `tiktoken.Encoding`."""
        if self._built is None:
            import tiktoken

            self._require_fit()
            ranks = {token.encode("latin-1"): rank for rank, token in enumerate(self.learned)}
            self._built = tiktoken.Encoding(
                f"gptlab_{self.name}",
                pat_str=WORDS,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: len(self.learned)},
            )
        return self._built

    @property
    def vocab_size(self) -> int:
        self._require_fit()
        return len(self.learned) + 1

    @property
    def end_of_text(self) -> int | None:
        return self.vocab_size - 1

    def encode_array(self, text: str) -> Ids:
        _utf8(text)
        ids: Ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        return ids

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Ids]:
        return map(self.encode_array, safe_pieces(pieces))

    def _decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids, errors="replace")


@register("tokenizer", "bpe")
class BPETokenizer(RankedTokenizer):
    """Byte-pair encoding trained on the training split: the pair of tokens seen most often becomes a token.

    Learns from at most the first 64 million characters. A text in which no pair is left that occurs twice gives fewer
    entries than asked for.
    """

    name = "bpe"
    learns_from = "train"

    def __init__(
        self,
        *,
        vocab_size: Annotated[int, "entries, the 256 bytes and the end of text included"] = 1024,
    ) -> None:
        super().__init__()
        if vocab_size < 257:
            raise ConfigError(f"vocab_size counts 256 bytes and the end of text, but {vocab_size} is below 257.")
        self.options = {"vocab_size": vocab_size}

    def fit(self, pieces: Pieces) -> None:
        tokens = train_bpe(count_words(pieces()), self.options["vocab_size"] - 1)
        self.learned = [token.decode("latin-1") for token in tokens]
        self._built = None


@register("tokenizer", "gpt2")
class GPT2Tokenizer(RankedTokenizer):
    """GPT-2's 50,257 tokens, read by tiktoken: downloaded once, then from its cache."""

    name = "gpt2"

    @property
    def vocab_size(self) -> int:
        return 50257

    @property
    def encoding(self) -> tiktoken.Encoding:
        if self.learned is None:
            self.learned = _read_gpt2()
        return super().encoding

    def state(self) -> dict[str, Any]:
        _ = self.encoding  # a run carries the tokens themselves, so it can be sampled where there is no cache
        return super().state()


GPT2_FILES = {  # tiktoken's name in its cache -> (the file's own name, sha256)
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": (
        "vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": (
        "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
}


def _read_gpt2() -> list[str]:
    """GPT-2's tokens in order, through tiktoken. DataError when they are neither cached nor to be downloaded."""
    import tiktoken

    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(cache or Path(tempfile.gettempdir()) / "data-gym-cache")
    for cached, (name, sha256) in GPT2_FILES.items():
        path = folder / cached
        # tiktoken would delete such a file and download it again
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise DataError(f"{path} should be GPT-2's {name}, but its checksum differs: put the right file there.")
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:
        wanted = " and ".join(f"{name} as {cached}" for cached, (name, _) in GPT2_FILES.items())
        raise DataError(
            f"GPT-2's tokens could not be downloaded ({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a folder "
            f"with {wanted}, or choose tokenizer=bpe."
        ) from None
    return [gpt2.decode_single_token_bytes(i).decode("latin-1") for i in range(gpt2.eot_token)]
