"""The writing of text under the clock: the prompt, each token, alone and side by side, beside what reading costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gptlab import pretrained
from gptlab.benchmarking import graphs
from gptlab.benchmarking.ceiling import seconds_to_read
from gptlab.benchmarking.clock import spread
from gptlab.benchmarking.request import Request
from gptlab.benchmarking.subject import Lines, Say, Tree, opened
from gptlab.hardware import DTYPES, choose_device
from gptlab.model import GPT
from gptlab.sampling import check_length, generate, lay_out


def bench(tree: Tree, asked: Request, say: Say) -> dict[str, Any]:
    """Tokens/s of one text and of several, in float32 as `gptlab sample` has it, or as trainer.precision says."""
    config, _ = opened(tree, Lines(say), asked.words)
    device = choose_device(config.trainer.device)
    model = GPT(config.model, config.seed)
    if config.init:
        pretrained.fill(model, config.init, say)
    model.to(device=device, dtype=DTYPES.get(tree["trainer"]["precision"], torch.float32)).eval()
    lay_out(model)
    check_length(model, asked.prompt, asked.tokens)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    say(f"{asked.tokens} tokens after a prompt of {asked.prompt}, {asked.rounds} times, on {device}")
    sizes = list(dict.fromkeys((1, asked.batch)))
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    graphs.forget()
    compiled = Lines(say).note if asked.compile else None
    began = time.perf_counter()
    for size in sizes:
        _timed(model, asked, size, compiled)  # warms up, and compiles
    warming = time.perf_counter() - began
    for _ in range(asked.rounds):
        for size in sizes:
            times[size].append(_timed(model, asked, size, compiled))
    return {
        "device": str(device),
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "parameters": model.n_parameters(),
        "prompt": asked.prompt,
        "tokens": asked.tokens,
        "rounds": asked.rounds,
        "compiling": {**graphs.counted(), "asked": asked.compile, "warming": warming},
        "batches": [_row(size, taken, asked.tokens) for size, taken in times.items()],
        "reading": {"bytes": weights, "seconds": seconds_to_read(weights, device)},
    }


def _timed(model: GPT, asked: Request, batch: int, compiled: Callable[[str], None] | None) -> tuple[float, float]:
    """Seconds to the first token, and of each one after it."""
    prompt = [i % (model.config.vocab_size or 1) for i in range(asked.prompt)]
    began = time.perf_counter()
    drawn = generate(model, prompt, asked.tokens, seeds=range(batch), compiled=compiled)
    next(drawn)  # it is on the host, so a device has been awaited
    first = time.perf_counter()
    n = sum(1 for _ in drawn)
    return first - began, (time.perf_counter() - first) / n


def _row(batch: int, taken: list[tuple[float, float]], n_tokens: int) -> dict[str, Any]:
    per_token = spread([each for _, each in taken])
    return {
        "batch": batch,
        "prefill": statistics.median(first for first, _ in taken),
        "per_token": per_token,
        "tokens_per_second": batch / per_token["median"],
        "whole": statistics.median(batch * n_tokens / (first + (n_tokens - 1) * each) for first, each in taken),
    }
