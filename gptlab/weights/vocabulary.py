"""The tokenizer that lies beside weights, as one of gptlab's, where its ids are those that one of them gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gptlab.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from gptlab.weights.tokenizers import WRITTEN, fast

FAST, SLOW = "tokenizer.json", "vocab.json"
FILES = (FAST, SLOW, "tokenizer.model")  # one of which a tokenizer leaves beside weights
BYTES = {written: chr(byte) for byte, written in WRITTEN.items()}  # GPT-2's character of a byte -> Latin-1's
GPT2 = "17acb4c5fec3d9985fcfd5304a801856bca70260c9b8a98596d79704d2a4158f"  # the digest of its tokens


def read(folder: Path) -> Tokenizer | None:
    """The tokenizer of `folder`, in its fast or its slow form. None when it has none, or none of gptlab's."""
    try:
        if not (folder / FAST).exists():
            return _gpt2(_in_order(json.loads((folder / SLOW).read_text(encoding="utf-8"))))
        told = json.loads((folder / FAST).read_text(encoding="utf-8"))
        written = _in_order(told["model"]["vocab"])
        return _merging(told, written) if told["model"].get("merges") else _simple(told, written)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def digest(learned: list[str]) -> str:
    """sha256 of tokens in Latin-1, each with a zero after it."""
    return hashlib.sha256("\0".join([*learned, ""]).encode("latin-1")).hexdigest()


def _in_order(vocabulary: dict[str, int]) -> list[str]:
    """The tokens by their ids. ValueError where ids are left out, or are of two tokens."""
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError("the ids are not 0, 1, 2, ...")
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _gpt2(written: list[str]) -> Tokenizer | None:
    """GPT-2's, known by its tokens: in the slow form the order of merges, which is theirs, is in a file of its own."""
    found = GPT2Tokenizer()
    found.learned = ["".join(BYTES[character] for character in token) for token in written[:-1]]
    return found if written[-1] == END_OF_TEXT and digest(found.learned) == GPT2 else None


def _simple(told: dict[str, Any], written: list[str]) -> Tokenizer | None:
    """Bytes or characters, written as `fast` writes them."""
    characters = CharTokenizer()
    characters.learned = "".join(written)
    parts = ("model", "normalizer", "pre_tokenizer")
    for tokenizer in (ByteTokenizer(), characters):
        form = json.loads(fast(tokenizer).to_str())
        if tokenizer.vocab_size == len(written) and all(form[part] == told[part] for part in parts):
            return tokenizer
    return None


def _merging(told: dict[str, Any], written: list[str]) -> Tokenizer | None:
    """Byte pairs within GPT-2's words, an id for each byte, then one for each merge in its order, then the end."""
    if written[-1] == END_OF_TEXT:
        written = written[:-1]
    elif END_OF_TEXT not in [token["content"] for token in told["added_tokens"] if token["id"] == len(written)]:
        return None
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in told["model"]["merges"]]
    words = told["pre_tokenizer"]
    plain = words["type"] == "ByteLevel" and not words["add_prefix_space"] and words.get("use_regex", True)
    ordered = set(written[:256]) == set(BYTES) and written[256:] == ["".join(pair) for pair in pairs]
    if not (plain and ordered) or told["normalizer"] or len(told["added_tokens"]) > 1:
        return None
    learned = ["".join(BYTES[character] for character in token) for token in written]
    tokenizer = GPT2Tokenizer() if digest(learned) == GPT2 else BPETokenizer(vocab_size=len(learned) + 1)
    tokenizer.learned = learned
    return tokenizer
