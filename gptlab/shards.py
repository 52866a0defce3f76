"""Tensors that ranks hold parts of, in safetensors files: torch.distributed.checkpoint plans who writes and reads what.

Its own format has a pickled index, which could run code; its safetensors files say in their JSON head what they hold.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gptlab import distributed


def write(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> list[Path]:
    """Write this rank's share, while all others write theirs: parts as they are, what all have once. Its files.

    OSError on all ranks where one of them could not write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _failures_as_oserror():
        save(dict(tensors), storage_writer=writer, process_group=group)
    return sorted(folder.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors"))


def read(folder: Path, device: str | torch.device) -> dict[str, Tensor]:
    """All tensors, each put together from its parts, in one process. SafetensorError or OSError where they do not."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    known: dict[str, Any] = dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in known.items()}
    _fill(folder, tensors, alone=True)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def fill(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read into tensors that ranks hold, whoever wrote the files; all ranks together. A part reads what it needs."""
    _fill(folder, dict(tensors), alone=False)


def _fill(folder: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _failures_as_oserror():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


@contextlib.contextmanager
def _failures_as_oserror() -> Iterator[None]:
    """What went wrong on any rank, as the first of them says it. Its warnings are about what we know."""
    from torch.distributed.checkpoint.api import CheckpointException

    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as failure:
        error = next(iter(failure.failures.values()))[0]
        if isinstance(error, OSError | SafetensorError):
            raise OSError(getattr(error, "strerror", None) or str(error)) from None
        raise RuntimeError(f"{type(error).__name__}: {error}") from failure
    finally:
        logger.setLevel(level)
