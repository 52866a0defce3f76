"""Ways to compute a plan from q (B, H, T, D) and k, v (B, G, S, D): `math` to read, `sdpa`, `flex`.

Every kernel gives the same numbers up to rounding; what it cannot compute it does not claim, and the model is refused.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gptlab.components.attention.plan import Plan
from gptlab.errors import ConfigError
from gptlab.hardware import has_compiler

Q = Float[Tensor, "B H T D"]
KV = Float[Tensor, "B G S D"]
QPos = Int[Tensor, "#B T"]
KPos = Int[Tensor, "#B S"]


@dataclass(frozen=True)
class Kernel:
    """One way of computing a plan, and the words of `Plan.needs` that it can do."""

    name: str
    can: frozenset[str]
    run: Callable[..., Tensor]

    def check(self, plan: Plan) -> None:
        """ConfigError naming what the plan needs and this kernel lacks, and the kernels that have it."""
        missing = sorted(plan.needs() - self.can)
        if missing:
            able = sorted(ATTENTION_OF[kernel.name] for kernel in KERNELS if plan.needs() <= kernel.can)
            raise ConfigError(
                f"attention {ATTENTION_OF[self.name]!r} cannot do {' or '.join(missing)}: "
                f"choose model/attention={' or '.join(able)}, or {' and '.join(map(_do_without, missing))}."
            )


def attend_math(q: Q, k: KV, v: KV, plan: Plan, q_pos: QPos, k_pos: KPos, dropout: float) -> Q:
    """The definition. Scores are kept whole, (B, H, T, S); the softmax is taken in float32 at least."""
    k, v = _for_each_query_head(k, v, plan)
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) * plan.scale
    if plan.softcap is not None:
        scores = plan.softcap * torch.tanh(scores / plan.softcap)
    head, q_at, k_at = _grid(q, q_pos, k_pos)
    if plan.terms:
        scores = scores + plan.bias(head, q_at, k_at)
    scores = scores.masked_fill(~plan.visible(q_at, k_at), float("-inf"))
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return weights.to(v.dtype) @ v


def attend_sdpa(q: Q, k: KV, v: KV, plan: Plan, q_pos: QPos, k_pos: KPos, dropout: float) -> Q:
    """torch's fused attention. `is_causal` is aligned to the top left, so it serves only where no past is held."""
    n_new, n_seen = q.shape[2], k.shape[2]
    reaches_all = plan.window is None or n_seen <= plan.window
    fresh = n_new == n_seen  # nothing held: queries and keys are the same tokens
    mask = None
    if plan.terms or not reaches_all or not (fresh or n_new == 1):
        mask = _dense_mask(q, plan, q_pos, k_pos)
        k, v = _for_each_query_head(k, v, plan)  # with a mask, CUDA's fused kernels take no groups
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and fresh, scale=plan.scale,
        enable_gqa=k.shape[1] < q.shape[1],
    )  # fmt: skip


def attend_flex(q: Q, k: KV, v: KV, plan: Plan, q_pos: QPos, k_pos: KPos, dropout: float) -> Q:
    """FlexAttention (arXiv:2412.05496), which skips the blocks of keys that no query of a block may see.

    torch has it for CUDA, and without a backward pass for CPU; elsewhere the same plan is computed by its definition.
    """
    if not _flex_can_run(q):
        return attend_math(q, k, v, plan, q_pos, k_pos, dropout)
    q_at, k_at = q_pos.expand(q.shape[0], -1), k_pos.expand(q.shape[0], -1)

    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if plan.softcap is not None:
            logit = plan.softcap * torch.tanh(logit / plan.softcap)
        return logit + plan.bias(h, q_at[b, i], k_at[b, j]) if plan.terms else logit

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return plan.visible(q_at[b, i], k_at[b, j])

    n_masks = q.shape[0] if q_pos.shape[0] > 1 else None  # one mask for all sequences, where they stand alike
    blocks = create_block_mask(visible, n_masks, None, q.shape[2], k.shape[2], device=str(q.device))
    attend: Any = flex_attention if torch.compiler.is_compiling() else _flex_on(q.device.type)
    y: Tensor = attend(
        q, k, v, score_mod=score if plan.needs() & {"softcap", "terms"} else None, block_mask=blocks, scale=plan.scale,
        enable_gqa=plan.n_group > 1,
    )  # fmt: skip
    return y


MATH = Kernel("math", frozenset({"groups", "window", "softcap", "terms", "dropout"}), attend_math)
SDPA = Kernel("sdpa", frozenset({"groups", "window", "terms", "dropout"}), attend_sdpa)
FLEX = Kernel("flex", frozenset({"groups", "window", "softcap", "terms"}), attend_flex)
KERNELS = (MATH, SDPA, FLEX)
ATTENTION_OF = {"math": "vanilla", "sdpa": "flash", "flex": "flex"}  # the softmax mixer on each kernel


def _grid(q: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads and positions shaped to broadcast over (B, H, T, S)."""
    head = torch.arange(q.shape[1], device=q.device)[None, :, None, None]
    return head, q_pos[:, None, :, None], k_pos[:, None, None, :]


def _for_each_query_head(k: Tensor, v: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Keys and values of grouped heads, repeated for each query head of the group."""
    if plan.n_group == 1:
        return k, v
    return k.repeat_interleave(plan.n_group, dim=1), v.repeat_interleave(plan.n_group, dim=1)


def _do_without(word: str) -> str:
    return "set model.attention.dropout=0" if word == "dropout" else f"leave {word} out"  # model.dropout counts too


def substitute(kernel: Kernel, device: torch.device) -> str | None:
    """One line where another kernel trains in place of this one on a device; None where it trains itself."""
    if kernel is FLEX and device.type != "cuda":
        return f"torch has no backward pass of FlexAttention on {device.type}: attention trains by its math kernel."
    return None


def _dense_mask(q: Tensor, plan: Plan, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Mask and terms as SDPA takes them: boolean where there are no terms, else logits with -inf for what is hidden."""
    head, q_at, k_at = _grid(q, q_pos, k_pos)
    visible = plan.visible(q_at, k_at)
    if not plan.terms:
        return visible
    return torch.where(visible, plan.bias(head, q_at, k_at), float("-inf")).to(q.dtype)


def _flex_can_run(q: Tensor) -> bool:
    return q.device.type == "cuda" or (q.device.type == "cpu" and not q.requires_grad)


@functools.cache
def _flex_on(device_type: str) -> Callable[..., Any]:
    """FlexAttention outside a compiled model: compiled by itself on CUDA; on a CPU decoding does without, knowingly."""
    if device_type == "cuda" and has_compiler(torch.device(device_type)):
        return torch.compile(flex_attention)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    return flex_attention
