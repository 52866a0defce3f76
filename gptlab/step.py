"""One optimizer step: micro-batches, their losses and gradients, clipping, the optimizer; and what it changes."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from gptlab import distributed
from gptlab.compiling import CompiledBlock, CompiledLoss, Whole, compile_for_each_of, replays, takes_whole_steps
from gptlab.config import TrainerConfig
from gptlab.data import IGNORE
from gptlab.hardware import autocast
from gptlab.model import GPT
from gptlab.optimizer.rule import Rule
from gptlab.schedule import Schedule
from gptlab.seeds import seed_of

Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]  # tokens, and the token after each (or -100)
FP16_START = 2.0**16  # first loss scale: fp16 gradients are small


@dataclass
class TrainState:
    """Everything that changes while a model trains, and what it takes to change it."""

    model: GPT
    optimizer: Rule
    schedule: Schedule
    config: TrainerConfig
    seed: int
    device: torch.device
    precision: str
    loss: Callable[..., tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]] = field(init=False)  # or it compiled
    whole: Callable[[Tensor, Tensor, Tensor], tuple[dict[str, Tensor], Tensor]] | None = None  # a step, compiled
    length: int = 0  # tokens fed in a sequence; 0: block_size
    step: int = 0
    seconds: float = 0.0  # of the run so far, pauses of a stopped run left out
    best: float = math.inf  # lowest validation loss
    best_step: int = 0  # where that was
    waited: int = 0  # evaluations since
    last: float = math.inf  # newest validation loss
    paces: list[float] = field(default_factory=list)  # seconds per step, between one look of the host and the next
    n_bad: int = 0  # steps left out because they were not finite, as of the last log
    scaler: GradScaler | None = field(init=False)  # of fp16
    bad: Tensor = field(init=False)  # the same count on the device, read when a row is logged or a checkpoint saved
    afterwards: list[Callable[[Tensor], None]] = field(init=False)  # what modules do after each step

    def __post_init__(self) -> None:
        self.loss = self.model.loss
        fp16 = self.precision == "fp16"
        self.scaler = GradScaler(self.device.type, init_scale=FP16_START) if fp16 else None
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
    def n_micro_batches(self) -> int:
        """In a step, over all ranks."""
        n, plan = distributed.size(), self.config
        return plan.accumulate if n == 1 else n * distributed.micro_batches(plan.batch_size, plan.accumulate)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.config.batch_size * self.config.accumulate * (self.length or self.model.config.block_size)


def train_step(state: TrainState, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step over the micro-batches of all ranks: mean losses and metrics by name, the gradient norm.

    `batch` is this rank's share. The loss is the mean over all targets of the step that are not -100, whatever
    micro-batch and rank they fall to. No sync.
    """
    _set_rates(state)
    counted = distributed.host_total(int((batch[1] != IGNORE).sum()))  # the batch is still on the host
    n_targets, parts = torch.tensor(float(max(1, counted))), list(_micro_batches(state, batch))
    if state.whole and len(parts) == 1:
        _seed(state, 0)
        return state.whole(*parts[0], n_targets)
    means: dict[str, Tensor] = {}
    first = distributed.rank() * len(parts)
    for part, (tokens, targets) in enumerate(parts):
        _seed(state, first + part)
        distributed.last_of_step(state.model, part == len(parts) - 1)
        pieces = learn(state, tokens, targets, n_targets)
        means |= {name: means.get(name, 0) + piece for name, piece in pieces.items()}
    means = _over_ranks(means)
    return means, update(state, means["loss"])


def compile_step(state: TrainState, note: Callable[[str], None]) -> None:
    """Let torch.compile have the step: whole, on a CPU and with one micro-batch, else the loss alone."""
    plain = state.loss = state.model.loss
    flops = 6.0 * state.model.n_parameters() * state.tokens_per_step
    if state.n_micro_batches == 1 and replays(state.config.cuda_graphs, state.device, flops, len(state.model.blocks)):
        if state.config.cuda_graphs == "auto":
            note(
                "The kernels of so small a step are replayed as a CUDA graph; trainer.cuda_graphs=false launches them."
            )
        state.loss = _Replayed(plain, note, mode="reduce-overhead")
        return
    if state.config.parallel == "fsdp":
        compile_for_each_of(len(state.model.blocks))
        for block in state.model.blocks:
            block.forward = CompiledBlock(block.forward, note)  # what gathers it stays outside, as its hooks
        return
    if state.device.type != "cpu" or state.n_micro_batches > 1 or not takes_whole_steps():
        state.loss = CompiledLoss(plain, note)
        return

    def instead(*args: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        state.whole, state.loss = None, CompiledLoss(plain, note)
        return learn_and_update(state, *args)

    for group in state.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]))
        state.optimizer.remember(group["params"], group)
    state.whole = Whole(functools.partial(learn_and_update, state), note, instead)


class _Replayed(CompiledLoss):
    """Through CUDA graphs, whose memory the next step overwrites: what is looked at later is copied."""

    def __call__(self, *args: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        torch.compiler.cudagraph_mark_step_begin()
        total, losses, metrics = super().__call__(*args)
        return total, losses, {name: metric.clone() for name, metric in metrics.items()}


def learn_and_update(
    state: TrainState, tokens: Tensor, targets: Tensor, n_targets: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """A step of one micro-batch, which torch.compile takes as one graph."""
    pieces = learn(state, tokens, targets, n_targets)
    return pieces, update(state, pieces["loss"])


def learn(state: TrainState, tokens: Tensor, targets: Tensor, n_targets: Tensor) -> dict[str, Tensor]:
    """Add a micro-batch's gradients; its losses and metrics by name, as shares of the step's."""
    with autocast(state.device, state.precision):
        total, added, metrics = state.loss(tokens, targets)
    names = ["loss", *added, *metrics]
    assert len(names) == len({*names}), "a part adds to context.losses and metrics under names of its own"
    pieces = {name: x / state.n_micro_batches for name, x in added.items()}
    pieces["loss"] = total * _guard(state, total) / n_targets
    loss = torch.stack(list(pieces.values())).sum()
    (state.scaler.scale(loss) if state.scaler else loss).backward()
    pieces |= {name: x / state.n_micro_batches for name, x in metrics.items()}
    return {name: piece.detach() for name, piece in pieces.items()}


def update(state: TrainState, loss: Tensor) -> Tensor:
    """Clip and step, unless a gradient is not finite; returns the gradient norm before clipping."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    distributed.add_gradients(parameters)
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    norm = distributed.whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if state.config.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, state.config.clip, norm)
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:  # a norm that is not finite tells of a gradient that is not, or of one too large to be stepped by
        state.optimizer.found_inf = (~torch.isfinite(norm)).float()
        state.optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    finite = torch.isfinite(loss) & torch.isfinite(norm)
    for act in state.afterwards:
        act(finite)
    state.bad += ~(torch.isfinite(loss) if state.scaler else finite)  # fp16 overflows are routine
    return norm


def rate(state: TrainState, step: int, group: Mapping[str, Any]) -> float:
    """The learning rate of a group of parameters in a step."""
    now: float = state.optimizer.defaults["lr"] * state.schedule(step)
    return now * group.get("lr_scale", 1.0)


def _set_rates(state: TrainState) -> None:
    for group in state.optimizer.param_groups:
        now = rate(state, state.step, group)
        if isinstance(group["lr"], Tensor):  # of a compiled step, for which a new number would be a new graph
            group["lr"].fill_(now)
        else:
            group["lr"] = now


def _seed(state: TrainState, part: int) -> None:
    torch.manual_seed(seed_of(state.seed, "dropout", state.step, part))


def _over_ranks(means: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums over ranks, in one exchange."""
    if distributed.size() == 1:
        return means
    sums = distributed.total(torch.stack([x.float() for x in means.values()]))
    return dict(zip(means, sums.unbind(), strict=True))


def _guard(state: TrainState, loss: Tensor) -> Tensor:
    """1, or NaN, which spoils every gradient so that no step is taken: for a loss that is not finite, and after it."""
    fine = torch.isfinite(loss.detach())
    if state.config.on_nonfinite == "stop":
        fine &= state.bad == state.n_bad
    return torch.where(fine, 1.0, math.nan)


def _micro_batches(state: TrainState, batch: Batch) -> Iterator[Batch]:
    cuda = state.device.type == "cuda"
    mine = state.n_micro_batches // distributed.size()
    for pair in zip(*(x.tensor_split(mine) for x in batch), strict=True):
        tokens, targets = ((x.pin_memory() if cuda else x).to(state.device, non_blocking=cuda) for x in pair)
        yield tokens, targets
