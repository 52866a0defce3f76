"""What a device makes of a model: kernels that were chosen or stand in, positions that may be idle, the peak of MFU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptlab.components.attention import trait
from gptlab.components.attention.choice import fastest, substitute
from gptlab.components.attention.planned import Planned
from gptlab.hardware import peak_flops
from gptlab.model import GPT

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def remarks(model: GPT, device: torch.device, precision: str, flops: float | None) -> list[str]:
    """Lines for the head of a run, each once; `flops` is of one training token, None where it is not known."""
    notes = [*_kernels(model, device, precision)]
    silent = {type(a).__name__ for a in model.attentions if trait(a, "honours") is None}
    if silent and model.position.acts - {"embed"}:
        notes.append(
            f"note    {', '.join(sorted(silent))}: honours is not declared, so the position may have no effect"
        )
    peak = peak_flops(device)
    if peak and flops and precision != "fp32":
        notes.append(f"mfu     tokens/s x {flops / 1e6:,.1f} MFLOP per token / {peak / 1e12:,.0f} TFLOP/s")
    return list(dict.fromkeys(notes))


def _kernels(model: GPT, device: torch.device, precision: str) -> Iterator[str]:
    """How attention is computed, where that is not what was named: chosen here, or another in its place."""
    dtype = DTYPES.get(precision, torch.float32)
    for mixer in (module for module in model.modules() if isinstance(module, Planned)):
        kernel = mixer.kernel
        if kernel.name == "auto":
            kernel, why = fastest(mixer.plan, device, dtype, model.config.block_size, mixer.size)
            yield f"kernel  auto is {kernel.name}: {why}"
        if instead := substitute(kernel, device, mixer.size):
            yield instead
