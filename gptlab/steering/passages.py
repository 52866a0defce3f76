"""Two texts as passages of tokens: the first half of each is for finding a direction, the second is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptlab import registry
from gptlab.config import require
from gptlab.data import IGNORE
from gptlab.tokenizer import Ids, Tokenizer

LEAST = 8  # passages of a text: four to find a direction, which can be shuffled evenly, and four to measure it


@dataclass(frozen=True)
class Passages:
    """Equally many passages of tokens that a direction leads to and that it leads away from."""

    positive: list[Tensor]
    negative: list[Tensor]


def halves(
    tokenizer: Tokenizer, positive: str, negative: str, *, window: int, at_most: int, lines: bool
) -> tuple[Passages, Passages]:
    """What a direction is found on, and what is held out: the first and the second half of each text, read whole.

    Where there are more than `at_most` passages of a text, those taken stand evenly over it.
    """
    texts = [read(tokenizer, path, window, lines=lines) for path in (positive, negative)]
    for path, text in zip((positive, negative), texts, strict=True):
        require(
            len(text) >= LEAST,
            f"Steering needs {LEAST} passages of each text, but {path} has {len(text)} of {window} tokens: give more "
            "text, a smaller --window, or --lines.",
        )
    n = min(at_most, *map(len, texts)) // 4 * 4
    spread = [[text[round(place)] for place in np.linspace(0, len(text) - 1, n)] for text in texts]
    return Passages(*(text[: n // 2] for text in spread)), Passages(*(text[n // 2 :] for text in spread))


def read(tokenizer: Tokenizer, path: str, window: int, *, lines: bool = False) -> list[Tensor]:
    """The passages of a file or folder, each from one document. With `lines` every line is a document."""
    source = registry.build("data", {"name": "text", "path": path, "lines": lines})
    documents: list[list[str]] = []
    for begins, piece in source.documents():
        if begins:
            documents.append([])
        documents[-1].append(piece)
    return [ids for document in documents for ids in cut(tokenizer.encode_array("".join(document)), window)]


def cut(ids: Ids, window: int) -> list[Tensor]:
    """Whole windows, as many as there are; all of a shorter document, unless one token is all that it has."""
    tokens = torch.from_numpy(ids.astype(np.int64))
    whole = tokens[: len(tokens) // window * window].split(window)
    return [passage for passage in (whole if len(tokens) >= window else (tokens,)) if len(passage) > 1]


def batches(passages: Sequence[Tensor], size: int) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """Tokens and the one after each, `size` passages at a time; filled up on the right with id 0 and targets -100."""
    for first in range(0, len(passages), size):
        part = passages[first : first + size]
        tokens = pad_sequence([passage[:-1] for passage in part], batch_first=True)
        yield tokens, pad_sequence([passage[1:] for passage in part], batch_first=True, padding_value=IGNORE)
