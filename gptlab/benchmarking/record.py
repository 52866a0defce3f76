"""What a bench leaves: a directory with the figures as JSON, and with them machine, versions, command and date."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from gptlab import rundirs
from gptlab.config import require
from gptlab.files import write_atomically
from gptlab.hardware import describe, versions
from gptlab.runlog import strict

FILE = "bench.json"
TOLD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "LD_PRELOAD",
        "PYTORCH_CUDA_ALLOC_CONF", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_",
        "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # fmt: skip


def folder(out: str | None) -> Path:
    """Where the figures go. ConfigError where there is something already."""
    path = Path(out).expanduser() if out else rundirs.fresh(None, "bench")
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(empty, f"--out must be new or empty, but {path} is not: name another.")
    return path


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    """What figures belong to: the date, the command, the machine, its settings, the versions."""
    told = {name: re.sub(r"[^\s:]*/", "", os.environ[name]) for name in TOLD if name in os.environ}  # no folders
    machine = {**describe(device), "cpu": _processor(), "memory": _memory(), "environment": told}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": now, "command": command, "machine": machine, "versions": versions()}


def write(path: Path, figures: dict[str, Any]) -> Path:
    """The figures in their directory."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / FILE, f"{json.dumps(strict(figures), indent=1, ensure_ascii=False)}\n".encode())
    return path / FILE


def _processor() -> str:
    """The name that the CPU gives itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> int | None:
    """Bytes of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
