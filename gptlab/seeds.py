"""Seeds from keys: what is drawn depends on (seed, what it is for) alone, on every machine and in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_of(*key: Any) -> int:
    """A 63-bit seed from any key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(*key: Any) -> Iterator[None]:
    """torch's own CPU generator seeded by a key, and put back after: for parts that draw without being given one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))  # torch.manual_seed would seed the GPU's as well
        yield
