"""The loop on one screen: batch, step, look. What happens between steps is handed in as functions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gptlab.errors import TrainingError
from gptlab.step import Batch, TrainState, rate, train_step

Meter = Callable[[float], Mapping[str, float]]  # tokens per second -> {"mfu": share of the peak}, or nothing
Status = Literal["done", "interrupted", "pruned"]
FP16_LEAST = 2.0**-10  # a scale below this is not looking for the right one any more


@dataclass(frozen=True)
class Actions:
    """What happens on the way: each is called between steps, when the configuration says that it is due."""

    log: Callable[[Mapping[str, Any]], None]
    evaluate: Callable[[], Mapping[str, float]]  # must hold val/loss
    sample: Callable[[], None]
    save: Callable[[], None]
    stopping: Callable[[], bool]  # asked after every step
    keep_best: Callable[[], None] = lambda: None  # when the validation loss is the lowest, where training may end early


@contextmanager
def garbage_kept() -> Iterator[None]:
    """No pause in the middle of a step to look for cycles: the loop asks for that between steps."""
    _collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _collect() -> None:
    gc.collect()
    gc.freeze()  # what is there is not looked at again: a compiler leaves a million objects


@garbage_kept()
def train(state: TrainState, batch_of: Callable[[int], Batch], actions: Actions, meter: Meter) -> Status:
    """Train from `state.step` to `config.steps`; every batch and every draw depends on (seed, step) alone."""
    plan, clock = state.config, _Clock(state)
    while not state.ended:
        means, norm = train_step(state, batch_of(state.step))
        state.step += 1
        row: dict[str, Any] = {}
        if state.step == 1 or _due(state, plan.log_every):
            row |= _measure(state, means, norm, clock, meter)
        if _due(state, plan.eval_every):
            with clock.pause():
                row |= actions.evaluate()
                _compare(state, row["val/loss"], actions)
        if row:
            _collect()
            actions.log(
                {"step": state.step, "tokens": state.step * state.tokens_per_step, "seconds": clock.read(), **row}
            )
        stopping = actions.stopping()
        with clock.pause():
            if _due(state, plan.save_every) or stopping:
                _refuse_nonfinite(state)
                actions.save()
            if _due(state, plan.sample_every) and not stopping:
                actions.sample()
        if stopping and not state.ended:
            return "interrupted"
    return "done"


def _due(state: TrainState, every: int) -> bool:
    return state.ended or (every > 0 and state.step % every == 0)


def _compare(state: TrainState, loss: float, actions: Actions) -> None:
    """Remember a validation loss; the lowest so far is a step to keep, any other one more that was waited."""
    state.last = loss
    if loss < state.best:
        state.best, state.best_step, state.waited = loss, state.step, 0
        if state.config.patience:
            actions.keep_best()
    else:
        state.waited += 1


def _measure(
    state: TrainState, means: Mapping[str, Tensor], norm: Tensor, clock: _Clock, meter: Meter
) -> dict[str, Any]:
    """What a log row holds: the one place where the host waits for the device."""
    row = {f"train/{name}": value.item() for name, value in means.items()}
    row |= {"lr": rate(state, state.step - 1, state.optimizer.param_groups[0]), "grad_norm": norm.item()}
    _refuse_nonfinite(state)
    if state.n_bad:
        row["skipped_steps"] = state.n_bad
    pace = clock.tokens_per_second()
    if pace is not None:
        row["tokens_per_second"] = pace
        row |= meter(pace)
    return row


def _refuse_nonfinite(state: TrainState) -> None:
    """Count the steps that were left out. TrainingError for on_nonfinite=stop, with the state back before the first."""
    new = int(state.bad) - state.n_bad
    if new and state.config.on_nonfinite == "stop":
        first, state.step = state.step - new + 1, state.step - new  # no step was taken after the first
        raise TrainingError(
            f"The loss or its gradient was not finite at step {first}; the parameters are those before it. Lower "
            "optimizer.lr, lengthen schedule.warmup, choose trainer.precision=fp32, or set trainer.on_nonfinite=skip."
        )
    state.n_bad += new
    if state.scaler and state.scaler.get_scale() < FP16_LEAST:
        raise TrainingError(
            f"In fp16 the gradients overflow at any loss scale, by step {state.step}: "
            "choose trainer.precision=bf16 or fp32."
        )


class _Clock:
    """Seconds of the run, and the pace of its steps since the last look, with evaluations and saves left out."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.began = time.perf_counter() - state.seconds
        self.since, self.from_step = time.perf_counter(), state.step

    def read(self) -> float:
        """Seconds since the run began, kept in the state."""
        self.state.seconds = time.perf_counter() - self.began
        return self.state.seconds

    def tokens_per_second(self) -> float | None:
        """The pace since the last call; None for the very first step, which warms up."""
        now, steps = time.perf_counter(), self.state.step - self.from_step
        seconds = (now - self.since) / steps
        self.since, self.from_step = now, self.state.step
        if self.state.step == 1:
            return None
        self.state.paces.append(seconds)
        return self.state.tokens_per_step / seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time that is not training."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began
