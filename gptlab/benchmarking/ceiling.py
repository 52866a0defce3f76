"""The GEMM limit: how fast this machine multiplies matrices, and how fast a step could be if it did nothing else."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from gptlab.benchmarking.clock import wait
from gptlab.hardware import DTYPES
from gptlab.model import GPT

SIDE = 2048  # of the square product
SECONDS = 0.5  # that one product is repeated for


def limit(model: GPT, rows: int, device: torch.device, precision: str, step_flops: float) -> dict[str, Any]:
    """Peaks in FLOP/s, of a square product and of the largest of the model's own, and the fastest possible step.

    The peak is the higher of the two in the precision of the training, so that no product is above it.
    """
    shape = largest(model, rows)
    names = list(dict.fromkeys(("fp32", "bf16", precision)))
    square = {name: peak((SIDE, SIDE, SIDE), DTYPES[name], device) for name in names}
    own = {name: peak(shape, DTYPES[name], device) for name in names} if shape else {}
    best = max(square[precision], own.get(precision, 0.0))
    return {"square": square, "own_shape": shape, "own": own, "peak": best, "fastest_step": step_flops / best}


def largest(model: GPT, rows: int) -> tuple[int, int, int] | None:
    """(rows, in, out) of the linear layer with the most products; None for a model that has none."""
    sizes = {(m.in_features, m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return max(((rows, *size) for size in sizes), key=lambda s: (s[1] * s[2], s), default=None)


@torch.no_grad()
def peak(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest of many products of (m, k) and (k, n), 2mkn each."""
    m, k, n = shape
    x, w = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    F.linear(x, w)
    repeats = max(1, round(5e9 / (2 * m * k * n))) if device.type == "cpu" else max(1, round(5e12 / (2 * m * k * n)))
    fastest, until = float("inf"), time.perf_counter() + SECONDS
    while True:
        wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            F.linear(x, w)
        wait(device)
        fastest = min(fastest, (time.perf_counter() - began) / repeats)
        if time.perf_counter() > until:
            return 2 * m * k * n / fastest


@torch.no_grad()
def seconds_to_read(n_bytes: int, device: torch.device) -> float:
    """The fastest of many passes over so many bytes of float32, from wherever they are kept: a cache, if they fit."""
    held = torch.ones(max(1, n_bytes // 4), device=device)
    held.sum()
    fastest, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        wait(device)
        began = time.perf_counter()
        held.sum()
        wait(device)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest
