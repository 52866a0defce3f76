"""Seconds of a training's steps, one by one: by the host's clock on a CPU, by events of the device on a GPU."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptlab.step import Batch, TrainState, train_step
from gptlab.trainer import garbage_kept

Batches = Callable[[int], Batch]
Mark = Any  # a moment: seconds of the host, or an event of the device


@dataclass(frozen=True)
class Walk:
    """Some steps that were taken: how long each took, its batch included, and how long the host was at batches."""

    seconds: list[float]
    fetching: list[float]
    loss: float  # mean of the last step, nats


@garbage_kept()
def walk(state: TrainState, batch_of: Batches, n: int) -> Walk:
    """Take `n` steps. On a GPU the host waits before the first and after the last, never between."""
    cuda = state.device.type == "cuda"
    wait(state.device)
    marks = [_mark(cuda)]
    fetching = []
    for _ in range(n):
        began = time.perf_counter()
        batch = batch_of(state.step)
        fetching.append(time.perf_counter() - began)
        means, _ = train_step(state, batch)
        state.step = (state.step + 1) % state.config.steps  # a schedule knows no more steps
        marks.append(_mark(cuda))
    wait(state.device)
    return Walk([_between(a, b) for a, b in itertools.pairwise(marks)], fetching, means["loss"].item())


def wait(device: torch.device) -> None:
    """Until the device has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the values that a tenth are below and above."""
    if len(values) == 1:
        return dict.fromkeys(("median", "p10", "p90"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def _mark(cuda: bool) -> Mark:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(a: Mark, b: Mark) -> float:
    if isinstance(a, torch.cuda.Event):
        return a.elapsed_time(b) / 1000
    return b - a
