"""Memory at its peak: what a GPU's tensors held at most, or how much a process grew on a CPU (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """From now on, how many bytes a device's tensors, or the process, come to hold at most."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.base = torch.cuda.memory_allocated(device)
            return
        if sys.platform == "linux":
            with contextlib.suppress(AttributeError):  # another C library
                ctypes.CDLL(None).malloc_trim(0)  # what is free in the process goes back, so that it is counted again
            with contextlib.suppress(OSError):
                RESET.write_text("5")  # VmHWM begins anew: man 5 proc
        self.base = _kept("VmRSS")

    def peak(self) -> int | None:
        """The bytes so far; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.base
        return _kept("VmHWM") - self.base if self.base else None


def _kept(name: str) -> int:
    """A line of /proc/self/status, bytes; 0 where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
