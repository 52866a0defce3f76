"""The loop on one screen: batch, loss, gradient, step. What happens between steps is handed in as functions."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gptlab.config import TrainerConfig
from gptlab.data import IGNORE
from gptlab.errors import TrainingError
from gptlab.hardware import autocast
from gptlab.model import GPT
from gptlab.schedule import Schedule
from gptlab.seeds import seed_of

Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]  # tokens, and the token after each (or -100)
Meter = Callable[[float], Mapping[str, float]]  # tokens per second -> {"mfu": share of the peak}, or nothing
Status = Literal["done", "interrupted", "pruned"]
FP16_START = 2.0**16  # first loss scale: fp16 gradients are small
FP16_LEAST = 2.0**-10  # a scale below this is not looking for the right one any more


@dataclass
class TrainState:
    """Everything that changes while a model trains, and what it takes to change it."""

    model: GPT
    optimizer: Optimizer
    schedule: Schedule
    config: TrainerConfig
    seed: int
    device: torch.device
    precision: str
    loss: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]  # model.loss, or it compiled
    length: int = 0  # tokens fed in a sequence; 0: block_size
    step: int = 0
    seconds: float = 0.0  # of the run so far, pauses of a stopped run left out
    best: float = math.inf  # lowest validation loss
    best_step: int = 0  # where that was
    waited: int = 0  # evaluations since
    last: float = math.inf  # newest validation loss
    paces: list[float] = field(default_factory=list)  # seconds per step, between one look of the host and the next
    n_bad: int = 0  # steps left out because they were not finite, as of the last log
    scaler: GradScaler = field(init=False)
    bad: Tensor = field(init=False)  # the same count on the device, read when a row is logged or a checkpoint saved
    afterwards: list[Callable[[Tensor], None]] = field(init=False)  # what modules do after each step

    def __post_init__(self) -> None:
        # The loss scaler is the guard for every precision: it leaves out steps with gradients that are not finite,
        # on the device and without waiting for it. In fp32 and bf16 its scale stays at 1.
        scale = FP16_START if self.precision == "fp16" else 1.0
        self.scaler = GradScaler(self.device.type, init_scale=scale)
        self.bad = torch.zeros((), dtype=torch.long, device=self.device)
        found = (getattr(module, "after_step", None) for module in self.model.modules())
        self.afterwards = [after_step for after_step in found if after_step]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not become better for as long as the configuration waits."""
        return 0 < self.config.patience <= self.waited

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.step >= self.config.steps or self.stopped_early

    def peak_memory(self) -> int | None:
        """Bytes held at most: on a GPU by this training's tensors, elsewhere by the process; None: not known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.config.batch_size * self.config.accumulate * (self.length or self.model.config.block_size)


@dataclass(frozen=True)
class Actions:
    """What happens on the way: each is called between steps, when the configuration says that it is due."""

    log: Callable[[Mapping[str, Any]], None]
    evaluate: Callable[[], Mapping[str, float]]  # must hold val/loss
    sample: Callable[[], None]
    save: Callable[[], None]
    stopping: Callable[[], bool]  # asked after every step
    keep_best: Callable[[], None] = lambda: None  # when the validation loss is the lowest, where training may end early


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


def train_step(state: TrainState, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step over `accumulate` micro-batches: mean losses and metrics by name, the gradient norm. No sync.

    The loss is the mean over all targets of the step that are not -100, whatever micro-batch they fall in.
    """
    rate = state.optimizer.defaults["lr"] * state.schedule(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    n_targets = max(1, int((batch[1] != IGNORE).sum()))  # the batch is still on the host
    means: dict[str, Tensor] = {}
    for part, (tokens, targets) in enumerate(_micro_batches(state, batch)):
        torch.manual_seed(seed_of(state.seed, "dropout", state.step, part))
        with autocast(state.device, state.precision):
            total, added, metrics = state.loss(tokens, targets)
        names = ["loss", *added, *metrics]
        assert len(names) == len({*names}), "a part adds to context.losses and metrics under names of its own"
        pieces = {name: x / state.config.accumulate for name, x in added.items()}
        pieces["loss"] = total * _guard(state, total) / n_targets
        state.scaler.scale(torch.stack(list(pieces.values())).sum()).backward()
        pieces |= {name: x / state.config.accumulate for name, x in metrics.items()}
        means |= {name: means.get(name, 0) + piece.detach() for name, piece in pieces.items()}
    return means, _step_optimizer(state, means["loss"])


def _guard(state: TrainState, loss: Tensor) -> Tensor:
    """1, or NaN, which spoils every gradient so that no step is taken: for a loss that is not finite, and after it."""
    fine = torch.isfinite(loss.detach())
    if state.config.on_nonfinite == "stop":
        fine &= state.bad == state.n_bad
    return torch.where(fine, 1.0, math.nan)


def _step_optimizer(state: TrainState, loss: Tensor) -> Tensor:
    """Clip and step, unless a gradient is not finite; returns the gradient norm before clipping."""
    fp16 = state.precision == "fp16"
    if fp16:
        state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not fp16:  # finite gradients whose norm overflows are spoilt, so that no step is taken
        norm = torch.where(torch.isfinite(norm), norm, math.nan)
    torch.nn.utils.clip_grads_with_norm_(parameters, state.config.clip or math.inf, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update(None if fp16 else 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    finite = torch.isfinite(loss) & torch.isfinite(norm)
    for act in state.afterwards:
        act(finite)
    state.bad += ~(torch.isfinite(loss) if fp16 else finite)  # fp16 overflows are routine
    return norm


def _micro_batches(state: TrainState, batch: Batch) -> Iterator[Batch]:
    cuda = state.device.type == "cuda"
    for pair in zip(*(x.split(state.config.batch_size) for x in batch), strict=True):
        tokens, targets = ((x.pin_memory() if cuda else x).to(state.device, non_blocking=cuda) for x in pair)
        yield tokens, targets


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
    row |= {"lr": state.optimizer.param_groups[0]["lr"], "grad_norm": norm.item()}
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
    if state.precision == "fp16" and state.scaler.get_scale() < FP16_LEAST:
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
