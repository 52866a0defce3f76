"""One optimizer step: micro-batches, their losses and gradients, clipping, the optimizer; and what it changes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gptlab.config import TrainerConfig
from gptlab.data import IGNORE
from gptlab.hardware import autocast
from gptlab.model import GPT
from gptlab.schedule import Schedule
from gptlab.seeds import seed_of

Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]  # tokens, and the token after each (or -100)
FP16_START = 2.0**16  # first loss scale: fp16 gradients are small


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
