"""What the machine is and can do: device, precision, compiler, and the peak that MFU is a share of."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gptlab.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Dense bf16 and fp16 products, FLOP/s, from the makers' data sheets, by the whole name that the driver gives.
PEAK_FLOPS = {
    r"NVIDIA H200": 989e12,
    r"NVIDIA H100 80GB HBM3": 989e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA A100(-SXM4-\d+GB|-PCIE-40GB| 80GB PCIe)": 312e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA GeForce RTX 4090": 165e12,
}


# man 3 mallopt; the larger blocks of a threshold are given back to the system when they are freed
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST_THRESHOLD = -1, -3, 2**25


def choose_device(wanted: str) -> torch.device:
    """The device for `trainer.device`. ConfigError when this machine does not have it."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"The device must be auto, cpu, cuda, cuda:0 or mps, but is {wanted!r}.") from None
    here = {"cpu": True, "cuda": torch.cuda.device_count() > (device.index or 0), "mps": _has_mps()}
    if not here.get(device.type, False):
        raise ConfigError(f"The device {wanted} is not on this machine: choose auto or cpu.")
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 for `trainer.precision`; auto is bf16 where the device is good at it."""
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise ConfigError("trainer.precision=fp16 needs a GPU: on a CPU choose fp32 or bf16.")
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _multiplies_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Matrix products in the precision, the rest as torch's autocast lists have it."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can build code for the device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))


def keep_freed_memory() -> None:
    """Let glibc keep what one step frees for the next: what goes back to the system comes again page by page.

    Nothing where there is another C library, or where the environment tells glibc what to do.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None where it is not known, so that no other chip's is shown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for chip, peak in PEAK_FLOPS.items() if re.fullmatch(chip, name)), None)


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware that a run's numbers belong to."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """The versions of what computes, by package."""
    packages = ("gptlab", "torch", "numpy", "hydra-core", "omegaconf")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products; without them bf16 is slower than fp32."""
    tell = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 does not have it
    known: dict[str, Any] = tell() if tell else {}
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
