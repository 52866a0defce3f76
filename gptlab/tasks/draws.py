"""Random numbers for questions, from a key alone: the same on every machine. Philox, Salmon et al. 2011 (SC11)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Draws:
    """Numbers for `n` questions, a row each; the k-th call gives the same for the same key, n and sizes."""

    def __init__(self, n: int, *key: object) -> None:
        self.n, self.key, self.calls = n, key, 0

    def below(self, bound: int, width: int) -> Array:
        """(n, width) whole numbers of 0..bound-1, each as likely as any other."""
        return (self._words(width) % np.uint64(bound)).astype(np.int64)

    def orders(self, size: int, width: int) -> Array:
        """(n, width) whole numbers of 0..size-1, none twice in a row: the beginning of a random order."""
        return np.argsort(self._words(size), axis=1, kind="stable")[:, :width]

    def _words(self, width: int) -> Array:
        """Raw words, since numpy may change how it draws integers; the bias of a remainder is below 1e-15."""
        key = hashlib.sha256(repr((*self.key, self.calls)).encode()).digest()
        self.calls += 1
        generator = np.random.Philox(key=int.from_bytes(key[:16], "little"))
        return generator.random_raw(self.n * width).reshape(self.n, width)
