"""A training step under the clock: seconds, tokens/s, MFU or the GEMM limit, memory, compiling, and where time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptlab.benchmarking import ceiling, graphs
from gptlab.benchmarking.clock import Batches, Walk, spread, wait, walk
from gptlab.benchmarking.memory import Growth
from gptlab.benchmarking.request import Request
from gptlab.benchmarking.subject import Lines, Say, Tree, flops, made, opened
from gptlab.config import to_dict
from gptlab.data import IGNORE
from gptlab.hardware import autocast, choose_device, peak_flops
from gptlab.remarks import remarks
from gptlab.step import TrainState

MFU = "tokens/s x FLOPs per token / peak FLOP/s"
TRACED = 3  # steps of a profile
TOP = 12  # operators that it names
SPLIT = 10  # steps taken apart, at most


def bench(tree: Tree, asked: Request, folder: Callable[[], Path], say: Say) -> dict[str, Any]:
    """All figures of the step of a config; `folder` is made for a trace alone, here."""
    display = Lines(say)
    config, source = opened(tree, display, asked.words)
    graphs.forget()
    grown = Growth(choose_device(config.trainer.device))
    state = made(config, source, display)
    per_token = flops(config, source, say)
    notes = remarks(state.model, state.device, state.precision, per_token)
    for line in notes:
        say(line)
    say(f"{asked.warmup} steps to warm up, {asked.steps} timed, on {state.device} in {state.precision}")
    began = time.perf_counter()
    walk(state, source.batch, 1)
    first = time.perf_counter() - began
    if asked.warmup > 1:
        walk(state, source.batch, asked.warmup - 1)
    warm = graphs.counted()
    timed = walk(state, source.batch, asked.steps)
    compiling = {**graphs.counted(), "first_step": first, "while_timed": graphs.counted()["graphs"] - warm["graphs"]}
    pace = spread(timed.seconds)
    peak, process = grown.peak(), state.peak_memory()
    settings = to_dict(config)
    found: dict[str, Any] = {
        "settings": {key: settings[key] for key in ("seed", "model", "optimizer", "schedule", "trainer")},
        "model": {"parameters": state.model.n_parameters(), "flops_per_token": per_token, "notes": notes},
        "device": str(state.device),
        "precision": state.precision,
        "tokens_per_step": state.tokens_per_step,
        "steps": asked.steps,
        "step": pace,
        "tokens_per_second": state.tokens_per_step / pace["median"],
        "loss": timed.loss,
        "not_finite": int(state.bad),
        "memory": {"peak": peak, "process": process},
        "compiling": compiling,
        "waiting": waiting(state, source.batch, timed),
        "utilisation": utilisation(state, per_token, pace["median"]),
    }
    found["split"] = split(state, source.batch, min(SPLIT, asked.steps))
    found["split"]["of"] = "the eager step, which the compiled one is not" if compiling["graphs"] else "the eager step"
    if asked.profile:
        found["profile"] = profile(state, source.batch, folder())
    return found


def utilisation(state: TrainState, per_token: float | None, seconds: float) -> dict[str, Any]:
    """MFU where the chip's peak is on record; on a CPU, where there is none, the GEMM limit, measured."""
    peak = peak_flops(state.device) if state.precision != "fp32" else None
    found: dict[str, Any] = {"formula": MFU, "mfu": None, "peak": peak, "chip": None, "gemm": None}
    if state.device.type == "cuda":
        found["chip"] = torch.cuda.get_device_name(state.device)
    if not per_token:
        return found
    work = per_token * state.tokens_per_step
    if peak:
        return {**found, "mfu": work / seconds / peak}
    rows = state.config.batch_size * (state.length or state.model.config.block_size)
    gemm = ceiling.limit(state.model, rows, state.device, state.precision, work)
    return {**found, "gemm": {**gemm, "share": gemm["fastest_step"] / seconds}}


def waiting(state: TrainState, batch_of: Batches, timed: Walk) -> dict[str, Any]:
    """The share of a step in which nothing is computed since its batch is not there."""
    if state.device.type != "cuda":
        return {"share": sum(timed.fetching) / sum(timed.seconds), "how": "time in which batches are made, of all"}
    batch = batch_of(state.step)
    held = statistics.median(walk(state, lambda step: batch, len(timed.seconds)).seconds)
    share = max(0.0, 1 - held / statistics.median(timed.seconds))
    return {"share": share, "how": "how much shorter steps are on one batch that is there already"}


def split(state: TrainState, batch_of: Batches, n: int) -> dict[str, Any]:
    """Median seconds of the parts of an eager step, the device awaited at each border."""
    taken: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": [], "rest": []}
    for step in range(n + 1):
        for name, seconds in _apart(state, batch_of).items():
            taken[name] += [seconds] if step else []  # the first warms up
    return {"seconds": {name: statistics.median(seconds) for name, seconds in taken.items()}}


def _apart(state: TrainState, batch_of: Batches) -> dict[str, float]:
    """One step in parts; rest is the batch, the norm of the gradients, clipping, and putting them away."""
    parts = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    clock = _Border(state.device)
    began = clock.at
    tokens, targets = batch_of(state.step)
    n_targets = max(1, int((targets != IGNORE).sum()))
    for rows, wanted in zip(*(x.split(state.config.batch_size) for x in (tokens, targets)), strict=True):
        x, y = rows.to(state.device), wanted.to(state.device)
        clock.lap()
        with autocast(state.device, state.precision):
            total, added, _ = state.model.loss(x, y)
        loss = total / n_targets + sum(added.values()) / state.config.accumulate
        parts["forward"] += clock.lap()
        (state.scaler.scale(loss) if state.scaler else loss).backward()
        parts["backward"] += clock.lap()
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, state.config.clip or float("inf"))
    clock.lap()
    if state.scaler:
        state.scaler.step(state.optimizer)
    else:
        state.optimizer.found_inf = torch.zeros((), device=state.device)
        state.optimizer.step()
    parts["optimizer"] += clock.lap()
    if state.scaler:
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    clock.lap()
    return {**parts, "rest": clock.at - began - sum(parts.values())}


class _Border:
    """A clock that waits for the device whenever it is read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        wait(device)
        self.at = time.perf_counter()

    def lap(self) -> float:
        """Seconds since it was read last."""
        wait(self.device)
        before, self.at = self.at, time.perf_counter()
        return self.at - before


def profile(state: TrainState, batch_of: Batches, folder: Path) -> dict[str, Any]:
    """A chrome trace of some steps, and the operators in which most time was spent, without what they call."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    cuda = state.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with recorded(activities=activities) as record:
        walk(state, batch_of, TRACED)
    path = folder / "trace.json"
    record.export_chrome_trace(str(path))
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda event: -getattr(event, own))
    whole = sum(getattr(event, own) for event in events) or 1
    top = [
        {"name": event.key, "calls": event.count / TRACED, "share": getattr(event, own) / whole,
         "seconds": getattr(event, own) / 1e6 / TRACED}
        for event in events[:TOP]
    ]  # fmt: skip
    return {"trace": str(path), "steps": TRACED, "top": top}
