"""Which kernel computes a plan: the one that was named, if it can; or the fastest that can, by a measured table."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from gptlab.components.attention.kernels import FLEX, FLEX_SIZE, KERNELS, MATH, SDPA, Kernel
from gptlab.components.attention.plan import Plan
from gptlab.errors import ConfigError
from gptlab.registry import label

KernelName = Annotated[Literal["auto", "math", "sdpa", "flex"], "how it is computed; auto: by device, type and length"]
ATTENTION_OF = {"math": "vanilla", "sdpa": "flash", "flex": "flex"}  # the softmax mixer on each kernel
LONG = 256  # tokens seen, from which the fused kernel is faster in bf16 too; figures in docs/log.md


def choose(name: str, plan: Plan, by_option: bool = False) -> Kernel:
    """The kernel of that name, given by an option or by which attention it is; `auto` decides when it sees its inputs.

    ConfigError naming what the plan needs and the kernel lacks, and the kernels that have it.
    """
    if name == "auto":
        return AUTO
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    missing = sorted(plan.needs() - kernel.can)
    if missing:
        able = [other.name for other in KERNELS if plan.needs() <= other.can]
        who, way_out = f"kernel {name!r}", f"set model.attention.kernel={' or '.join(['auto', *able])}"
        if not by_option:
            who = f"attention {ATTENTION_OF[name]!r}"
            way_out = f"choose model/attention={' or '.join(sorted(ATTENTION_OF[other] for other in able))}"
        without = " and ".join(map(_do_without, missing))
        lacking = " and ".join(_whose(word, plan) for word in missing)
        raise ConfigError(f"{who} cannot do {lacking}: {way_out}, or {without}.")
    return kernel


def fastest(plan: Plan, device: torch.device, dtype: torch.dtype, n_seen: int, size: int) -> tuple[Kernel, str]:
    """The kernel that `auto` takes for so many tokens seen and entries of a head, and why."""
    kernel = _first_able(plan, device, dtype, n_seen, size)
    if device.type == "cuda" and kernel is FLEX:
        return FLEX, "it skips what the mask hides"
    if kernel is SDPA:
        return SDPA, "fused, scores are not stored"
    wanted = sorted(plan.needs() - SDPA.can)
    return kernel, f"sdpa cannot do {' and '.join(wanted)}" if wanted else f"faster than sdpa in {dtype} at {n_seen}"


def run_fastest(q: Tensor, k: Tensor, v: Tensor, plan: Plan, *rest: object) -> Tensor:
    """The plan on the kernel that is fastest for these inputs."""
    kernel = _first_able(plan, q.device, v.dtype, k.shape[2], min(q.shape[-1], v.shape[-1]))
    return kernel.run(q, k, v, plan, *rest)


def _first_able(plan: Plan, device: torch.device, dtype: torch.dtype, n_seen: int, size: int) -> Kernel:
    needs = plan.needs()
    return next(kernel for kernel in _by_speed(plan, device.type, dtype, n_seen, size) if needs <= kernel.can)


AUTO = Kernel("auto", MATH.can, run_fastest)  # the definition can do everything


def substitute(kernel: Kernel, device: torch.device, size: int) -> str | None:
    """One line where another kernel trains in place of this one on a device; None where it trains itself."""
    if kernel is FLEX and device.type != "cuda":
        return f"torch has no backward pass of FlexAttention on {device.type}: attention trains by its math kernel."
    if kernel is FLEX and size < FLEX_SIZE:
        return f"FlexAttention takes heads of {FLEX_SIZE} entries or more, not {size}: attention is by its math kernel."
    return None


def _by_speed(plan: Plan, device_type: str, dtype: torch.dtype, n_seen: int, size: int) -> tuple[Kernel, ...]:
    """All kernels, the fastest first, whether they can or not."""
    if device_type == "cuda" and (plan.masks or plan.terms) and size >= FLEX_SIZE:
        return FLEX, SDPA, MATH
    if device_type == "cpu" and dtype is torch.bfloat16 and n_seen < LONG:
        return MATH, SDPA, FLEX
    return SDPA, MATH, FLEX


def _whose(word: str, plan: Plan) -> str:
    """A need; with the positions that have it where it is theirs, whose methods terms are."""
    positions = sorted({label("position", getattr(term, "__self__", term)) for term in plan.terms})
    return f"the {word} of position {' and '.join(map(repr, positions))}" if "terms" in word else word


def _do_without(word: str) -> str:
    """The way out of a need, by the setting that makes it."""
    if word == "dropout":
        return "set model.attention.dropout=0"  # model.dropout counts too
    if word in ("terms", "vector terms"):
        return "choose another position"
    return f"leave {word} out"
