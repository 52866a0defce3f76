"""The tokenizer that lies beside weights, as one of gptlab's, where its ids are those that one of them gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gptlab.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from gptlab.weights.tokenizers import WRITTEN, fast

BYTES = {written: chr(byte) for byte, written in WRITTEN.items()}  # GPT-2's character of a byte -> Latin-1's
# sha256 of GPT-2's tokens, each with a zero after it
GPT2 = "17acb4c5fec3d9985fcfd5304a801856bca70260c9b8a98596d79704d2a4158f"


def read(folder: Path) -> Tokenizer | None:
    """The tokenizer of `folder`/tokenizer.json. None when there is none, or when it is not one of gptlab's."""
    try:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model = told["model"]
        written = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if sorted(model["vocab"].values()) != list(range(len(written))):
            return None
        return _merging(told, written) if model.get("merges") else _simple(told, written)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


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
    digest = hashlib.sha256("\0".join([*learned, ""]).encode("latin-1")).hexdigest()
    tokenizer = GPT2Tokenizer() if digest == GPT2 else BPETokenizer(vocab_size=len(learned) + 1)
    tokenizer.learned = learned
    return tokenizer
