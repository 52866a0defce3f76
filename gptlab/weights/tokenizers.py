"""Tokenizers as Hugging Face's fast ones, with equal ids: tokenizer.json, tokenizer_config.json.

Byte-level BPE as in GPT-2: each byte is written as one printable character. Radford et al. 2019.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gptlab.errors import ConfigError
from gptlab.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, RankedTokenizer, Tokenizer

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # the bytes that are written as themselves
WRITTEN = {byte: chr(byte) for byte in PRINTABLE}
WRITTEN |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(directory)` reads. ConfigError for one of a plugin's own."""
    fast(tokenizer).save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # as with us, no text encodes to the border between two documents
    }
    if tokenizer.end_of_text is not None:
        settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def fast(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer in the tokenizers library."""
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_level([bytes([value]) for value in range(256)])
    if isinstance(tokenizer, CharTokenizer):
        return _characters(tokenizer.learned)
    if isinstance(tokenizer, RankedTokenizer):
        made = _byte_level([token.encode("latin-1") for token in tokenizer.state()["learned"]])
        made.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return made
    raise ConfigError(
        f"A byte, char, bpe or gpt2 tokenizer has a fast form, but {tokenizer.name!r} has none: write the model alone, "
        "with gptlab.weights.save(model, DIRECTORY)."
    )


def _byte_level(tokens: Sequence[bytes]) -> tokenizers.Tokenizer:
    """Ids are the places in `tokens`. A word that is a token is found without merging, as tiktoken does."""
    vocabulary = {_written(token): i for i, token in enumerate(tokens)}
    pairs = [(_written(left), _written(right)) for left, right in merges(tokens)]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return made


def _characters(symbols: str) -> tokenizers.Tokenizer:
    """One id for each of `symbols`. Another character is an error, as with us: the model has no row for an unknown."""
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    made = tokenizers.Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<character outside the vocabulary>"))
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token is merged from, in the order of tokens: the last two when its bytes are merged.

    Within a word, merges inside the span of a token come in the same order as in the token alone, so it never has
    other parts. A token that its own bytes do not reach has none.
    """
    ranks: dict[bytes, float] = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for token in tokens:
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [left + right for left, right in itertools.pairwise(parts)]
            first = min(range(len(joined)), key=lambda i: ranks.get(joined[i], math.inf))
            if joined[first] not in ranks:
                break
            parts[first : first + 2] = [joined[first]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def _written(token: bytes) -> str:
    return "".join(WRITTEN[byte] for byte in token)
