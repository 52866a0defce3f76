"""torch.compile where it pays and works; one line of warning, and the plain function, where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gptlab.hardware import has_compiler

Loss = Callable[..., Any]


def maybe_compile(loss: Loss, wanted: str, device: torch.device, note: Callable[[str], None]) -> Loss:
    """`loss` compiled, for `trainer.compile` true, or auto on CUDA: on a CPU, compiling costs more than it saves."""
    if wanted == "false" or (wanted == "auto" and device.type != "cuda"):
        return loss
    if not has_compiler(device):
        note("No compiler was found (C++; Triton on CUDA): training goes on without torch.compile.")
        return loss
    return _Compiled(loss, note)


class _Compiled:
    """A compiled loss that becomes the plain one, once, when its first compilation, forward or backward, fails."""

    def __init__(self, function: Loss, note: Callable[[str], None]) -> None:
        self.plain, self.note = function, note
        self.current: Loss = torch.compile(function)
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
            reason = str(error).strip().splitlines()[0]
            self.note(f"torch.compile failed ({reason}): training goes on without it.")
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


def _is_compilers(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException) or type(error).__module__.startswith(("torch._inductor", "triton"))
