"""torch.compile where it pays and works; one line of warning, and the plain function, where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from gptlab.config import TrainerConfig, require
from gptlab.display import duration
from gptlab.hardware import choose_device, choose_precision, has_compiler

Loss = Callable[..., Any]
Note = Callable[[str], None]

# On a CPU. Compiling pays from a count of work, not of seconds, so that a run computes the same on any day.
TAKES = 60  # seconds to compile a step, about, on two cores
SAVES = 0.3  # of the time that steps take
RATE = 2e11  # FLOP/s of small models, about, on two cores
# On CUDA: FLOPs that a GPU does while a host launches the kernels of a layer, some 30 at 6 us; reckoned, not measured.
LAUNCHED = 4e10


def check_device(plan: TrainerConfig) -> None:
    """ConfigError where this machine cannot do what a training asks of it."""
    device = choose_device(plan.device)
    precision = choose_precision(plan.precision, device)
    require(
        plan.residual_in_fp32 or precision != "fp32",
        "trainer.residual_in_fp32=false is about bf16 and fp16, but the precision here is fp32: leave it out.",
    )
    if plan.cuda_graphs == "true":
        require(device.type == "cuda", f"trainer.cuda_graphs needs a CUDA device, but this is {device}: leave it out.")
        compiles = has_compiler(device)
        require(compiles, "trainer.cuda_graphs replays a compiled step, but no Triton was found: leave it out.")


def replays(wanted: str, device: torch.device, flops: float, n_layer: int) -> bool:
    """Whether the kernels of a step of so many FLOPs are recorded and replayed, for `trainer.cuda_graphs`."""
    return wanted == "true" or (wanted == "auto" and device.type == "cuda" and flops < LAUNCHED * n_layer)


def wants_compiling(wanted: str, device: torch.device, flops: float, note: Note) -> bool:
    """Whether to compile, for `trainer.compile` true, false or auto: on CUDA, and on a CPU where it pays."""
    if wanted == "false" or (wanted == "auto" and device.type == "cpu" and SAVES * flops / RATE < TAKES):
        return False
    if wanted == "auto" and device.type not in ("cpu", "cuda"):
        return False
    if not has_compiler(device):
        note("No compiler was found (C++; Triton on CUDA): training goes on without torch.compile.")
        return False
    return True


def forecast(compiles: bool, flops: float) -> str:
    """What compiling is to a training on a CPU, in a line."""
    worth = f"takes about {duration(TAKES)} once and saves about {duration(SAVES * flops / RATE)}"
    return f"compiled, which {worth}" if compiles else f"not compiled, which {worth}: trainer.compile=true"


def takes_whole_steps() -> bool:
    """Whether this torch can compile a step as one graph, its backward pass in it; from 2.13 on it can be told to."""
    import torch._dynamo as dynamo

    able = hasattr(dynamo.config, "trace_autograd_ops")
    if able:
        dynamo.config.trace_autograd_ops = True  # type: ignore[attr-defined]
        logger = logging.getLogger("torch._dynamo.variables.ctx_manager")
        logger.setLevel(logging.ERROR)  # that torch.optim's marks for a profiler are gone is no news
    return able


class Whole:
    """A step compiled as one graph; the first call finds out whether it can be, and calls `instead` where not."""

    def __init__(self, step: Loss, note: Note, instead: Loss) -> None:
        self.step, self.note, self.instead = torch.compile(step, fullgraph=True, dynamic=False), note, instead

    def __call__(self, *args: Any) -> Any:
        try:
            return self.step(*args)  # compiled before any of it runs: nothing is half done where that fails
        except Exception as error:
            if not _is_compilers(error):
                raise
            self.note(f"The step could not be compiled as one graph ({_first_line(error)}): its loss is, alone.")
        return self.instead(*args)


class CompiledLoss:
    """A compiled loss that becomes the plain one, once, when its first compilation, forward or backward, fails."""

    def __init__(self, function: Loss, note: Note, **options: Any) -> None:
        self.plain, self.note = function, note
        self.current: Loss = torch.compile(function, **options)
        self.tried = False

    def __call__(self, *args: Any) -> Any:
        try:
            if not self.tried:
                self.tried = True
                self._try_backward(*args)
            return self.current(*args)
        except Exception as error:
            if self.current is self.plain or not _is_compilers(error):
                raise
            self.note(f"torch.compile failed ({_first_line(error)}): training goes on without it.")
            self.current = self.plain
            return self.plain(*args)

    def _try_backward(self, *args: Any) -> None:
        """The backward graph may be compiled only when it runs, which is out of our hands later."""
        owner = getattr(self.plain, "__self__", None)
        model = owner if isinstance(owner, torch.nn.Module) else torch.nn.Module()
        parameters = [p for p in model.parameters() if p.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng(devices={p.device for p in parameters if p.is_cuda}):
            total, *_ = self.current(*args)
            if parameters and total.requires_grad:
                torch.autograd.grad(total, parameters, allow_unused=True)
        for buffer, value in buffers:  # a trial leaves no trace: what it drew and counted comes again
            buffer.copy_(value)


class CompiledBlock:
    """A block's forward, compiled where it learns; the plain one elsewhere, and once compiling it has failed."""

    def __init__(self, forward: Loss, note: Note) -> None:
        self.plain, self.note = forward, note
        self.current: Loss = torch.compile(forward)

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(*args)
        try:
            return self.current(*args)
        except Exception as error:
            if self.current is self.plain or not _is_compilers(error):
                raise
            self.note(f"torch.compile failed ({_first_line(error)}): a block goes on without it.")
            self.current = self.plain
        return self.plain(*args)


def compile_for_each_of(n: int) -> None:
    """Let dynamo compile one function for so many layers that differ, where it would give up after eight."""
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 2 * n)


def _is_compilers(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException) or type(error).__module__.startswith(("torch._inductor", "triton"))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
