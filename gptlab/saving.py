"""What a checkpoint holds of a training, taking it back, and who writes it when.

One process or all ranks together; training waits for it, or goes on meanwhile.
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gptlab import checkpoint, distributed
from gptlab.errors import DataError
from gptlab.model import GPT
from gptlab.optimizer import memory
from gptlab.step import TrainState

Tensors = Mapping[str, Mapping[str, Tensor]]  # file -> name -> tensor


def initial(model: GPT) -> dict[str, str]:
    """What each parameter begins with, as 8 digits of a hash: runs that share a tensor have the same there."""
    found = ((name, distributed.whole(x.detach()).cpu().contiguous()) for name, x in model.named_parameters())
    return {name: hashlib.sha256(x.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:8] for name, x in found}


def contents(state: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors of a training, and the rest of what it takes to go on, as JSON."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    tensors, rest = memory.tensors_of(state.optimizer, names)
    meta = {
        "optimizer": rest,
        "scaler": state.scaler.state_dict() if state.scaler else {},
        "seconds": state.seconds,
        "skipped": state.n_bad,
        "best": state.best if math.isfinite(state.best) else None,
        "best_step": state.best_step,
        "waited": state.waited,
        "last": state.last if math.isfinite(state.last) else None,
    }
    return {"model": state.model.tensors(), "optimizer": tensors}, meta


def restore(state: TrainState, run_dir: Path, fingerprint: str, note: Callable[[str], None]) -> None:
    """Take parameters, optimizer state and counters of the newest good checkpoint, bit for bit."""
    together = distributed.size() > 1
    saved = checkpoint.load(run_dir, note=note, device=state.device, together=together)
    if saved.meta["data"] != fingerprint:
        raise DataError(
            f"{run_dir} was trained on another text than the one its config finds now: bring that text back."
        )
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    if together:
        remembered = memory.blanks_of(state.optimizer, names, saved.meta["optimizer"])
        checkpoint.fill(saved, {**state.model.tensors(), **remembered})
    else:
        state.model.load_tensors(saved.tensors["model"])
        remembered = saved.tensors["optimizer"]
    memory.restore(state.optimizer, names, remembered, saved.meta["optimizer"])
    if state.scaler:
        state.scaler.load_state_dict(saved.meta["scaler"])
    state.step, state.seconds, state.n_bad = saved.step, saved.meta["seconds"], saved.meta["skipped"]
    state.bad.fill_(state.n_bad)
    state.best_step, state.waited = saved.meta.get("best_step", 0), saved.meta.get("waited", 0)
    state.best, state.last = (math.inf if x is None else x for x in (saved.meta["best"], saved.meta["last"]))


class Saver:
    """Writes one checkpoint at a time. In the background it writes what was there when it was asked to.

    What goes wrong there is raised by the next `save`, or by `wait`: no failure is lost.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self.group = distributed.host_group() if distributed.size() > 1 else None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, run_dir: Path, step: int, tensors: Tensors, meta: Mapping[str, Any], *, keep: int) -> None:
        """Write a checkpoint, once the one before is written. CheckpointError when either could not be."""
        self.wait()
        if self.background:
            tensors, meta = _snapshot(tensors), copy.deepcopy(dict(meta))

        def write() -> None:
            if self.group is None:
                checkpoint.save(run_dir, step, tensors, meta, keep=keep)
            else:
                checkpoint.save_together(run_dir, step, tensors, meta, keep=keep, group=self.group)

        if self.background:
            self.thread = threading.Thread(target=self._attempt, args=(write,), name="save", daemon=True)
            self.thread.start()
        else:
            write()

    def wait(self) -> None:
        """Return when nothing is being written. CheckpointError when what was, could not be."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def finish(self) -> None:
        """Return when nothing is being written, whatever became of it: for a training that has failed already."""
        if self.thread is not None:
            self.thread.join()

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self.error = error


def _snapshot(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Copies in the memory of the host, which training does not change."""
    return {file: {name: _copied(x) for name, x in group.items()} for file, group in tensors.items()}


@torch.no_grad()
def _copied(x: Tensor) -> Tensor:
    if not distributed.is_part(x):
        return x.detach().to("cpu", copy=True)
    from torch.distributed.tensor import DTensor

    part = cast(Any, x.detach())  # the part is on the host, whatever devices the ranks have: it is only read
    return DTensor(part.to_local().to("cpu", copy=True), part._spec, requires_grad=False)
