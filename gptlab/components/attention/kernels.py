"""Ways to compute a plan from q (B, H, T, D), k (B, G, S, D) and v (B, G, S, E): `math` to read, `sdpa`, `flex`.

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
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from gptlab.components.attention.plan import Plan
from gptlab.components.context import Places
from gptlab.hardware import has_compiler

Q = Float[Tensor, "B H T D"]
K = Float[Tensor, "B G S D"]
V = Float[Tensor, "B G S E"]
Y = Float[Tensor, "B H T E"]
Scores = Float[Tensor, "B H T S"]
Sinks = Float[Tensor, "H"] | None

FLEX_SIZE = 16  # entries of a head, at least, that torch's FlexAttention takes on CUDA


@dataclass(frozen=True)
class Kernel:
    """One way of computing a plan, and the words of `Plan.needs` that it can do."""

    name: str
    can: frozenset[str]
    run: Callable[..., Tensor]  # (q, k, v, plan, queries, keys, dropout, sinks) -> (B, H, T, E)


def attend_math(
    q: Q, k: K, v: V, plan: Plan, queries: Places, keys: Places, dropout: float = 0.0, sinks: Sinks = None
) -> Y:
    """The definition. Scores are kept whole, (B, H, T, S); the softmax is taken in float32 at least."""
    k, v = for_each_query_head(k, v, plan)
    weights = weights_of(scores_of(q, k, plan, queries, keys), sinks)
    return F.dropout(weights, dropout).to(v.dtype) @ v


def scores_of(q: Q, k: Float[Tensor, "B H S D"], plan: Plan, queries: Places, keys: Places) -> Scores:
    """What the softmax is taken of, with a key for each query head: -inf where a query may not look."""
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) * plan.scale
    if plan.softcap is not None:
        scores = plan.softcap * torch.tanh(scores / plan.softcap)
    if plan.terms:
        scores = scores + plan.bias(*_grid(q, queries, keys))
    return scores.masked_fill(~plan.mask(queries, keys), float("-inf"))


def weights_of(scores: Scores, sinks: Sinks = None) -> Scores:
    """The share that each query has of each key; with sinks the rest goes nowhere."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    nothing = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat((scores, nothing), dim=-1), dim=-1)[..., :-1]


def attend_sdpa(
    q: Q, k: K, v: V, plan: Plan, queries: Places, keys: Places, dropout: float = 0.0, sinks: Sinks = None
) -> Y:
    """torch's fused attention. `is_causal` is aligned to the top left, so it serves only where no past is held."""
    assert sinks is None, "a plan with sinks is not for this kernel"
    n_new, n_seen = q.shape[2], k.shape[2]
    fresh = keys.live is None and not n_seen - n_new  # nothing held: queries and keys are the same tokens
    alone = not n_new - 1  # one token sees all that there is
    ordered = bool(plan.causal) and not alone
    limited = plan.chunk is not None or (plan.window is not None and n_seen > plan.window) or keys.live is not None
    both_ways = plan.causal == "prefix" and queries.prefix is not None
    mask = None
    if plan.terms or limited or queries.documents is not None or (ordered and (both_ways or not fresh)):
        mask = _dense_mask(q, plan, queries, keys)
        k, v = for_each_query_head(k, v, plan)  # with a mask, CUDA's fused kernels take no groups
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and ordered, scale=plan.scale,
        enable_gqa=k.shape[1] < q.shape[1],
    )  # fmt: skip


def attend_flex(
    q: Q, k: K, v: V, plan: Plan, queries: Places, keys: Places, dropout: float = 0.0, sinks: Sinks = None
) -> Y:
    """FlexAttention (arXiv:2412.05496), which skips the blocks of keys that no query of a block may see.

    torch has it for CUDA, and without a backward pass for CPU; elsewhere the same plan is computed by its definition.
    """
    if not _flex_can_run(q, v):
        return attend_math(q, k, v, plan, queries, keys, dropout, sinks)
    q_at, k_at = (places.positions.expand(q.shape[0], -1) for places in (queries, keys))
    q_doc, k_doc, live = queries.documents, keys.documents, keys.live
    prefix = queries.prefix if plan.causal == "prefix" else None

    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if plan.softcap is not None:
            logit = plan.softcap * torch.tanh(logit / plan.softcap)
        return logit + plan.bias(h, q_at[b, i], k_at[b, j]) if plan.terms else logit

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = plan.visible(q_at[b, i], k_at[b, j], None if prefix is None else prefix[b, 0])
        seen = seen if live is None else seen & live[j]
        return seen if q_doc is None or k_doc is None else seen & (q_doc[b, i] == k_doc[b, j])

    alike = queries.positions.shape[0] == 1 and q_doc is None and prefix is None  # one mask for all sequences
    n_masks = None if alike else q.shape[0]
    blocks = create_block_mask(visible, n_masks, None, q.shape[2], k.shape[2], device=str(q.device))
    attend: Any = flex_attention if torch.compiler.is_compiling() else _flex_on(q.device.type)
    y, aux = attend(
        q, k, v, score_mod=score if plan.needs() & {"softcap", "terms"} else None, block_mask=blocks, scale=plan.scale,
        enable_gqa=plan.n_group > 1, return_aux=AuxRequest(lse=sinks is not None),
    )  # fmt: skip
    return y if sinks is None else y * torch.sigmoid(aux.lse - sinks[:, None]).to(y.dtype)[..., None]


EVERYWHERE = frozenset({"groups", "later tokens", "window", "chunk", "terms"})
MATH = Kernel("math", EVERYWHERE | {"softcap", "dropout", "sinks", "vector terms"}, attend_math)
SDPA = Kernel("sdpa", EVERYWHERE | {"dropout", "vector terms"}, attend_sdpa)
FLEX = Kernel("flex", EVERYWHERE | {"softcap", "sinks"}, attend_flex)
KERNELS = (MATH, SDPA, FLEX)


def _grid(q: Tensor, queries: Places, keys: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Heads and positions shaped to broadcast over (B, H, T, S)."""
    head = torch.arange(q.shape[1], device=q.device)[None, :, None, None]
    return head, queries.positions[:, None, :, None], keys.positions[:, None, None, :]


def for_each_query_head(k: Tensor, v: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Keys and values of grouped heads, repeated for each query head of the group."""
    if plan.n_group == 1:
        return k, v
    return k.repeat_interleave(plan.n_group, dim=1), v.repeat_interleave(plan.n_group, dim=1)


def _dense_mask(q: Tensor, plan: Plan, queries: Places, keys: Places) -> Tensor:
    """Mask and terms as SDPA takes them: boolean where there are no terms, else logits with -inf for what is hidden."""
    visible = plan.mask(queries, keys)
    if not plan.terms:
        return visible
    return torch.where(visible, plan.bias(*_grid(q, queries, keys)), float("-inf")).to(q.dtype)


def _flex_can_run(q: Tensor, v: Tensor) -> bool:
    if q.device.type == "cuda":
        return min(q.shape[-1], v.shape[-1]) >= FLEX_SIZE
    return q.device.type == "cpu" and not q.requires_grad


@functools.cache
def _flex_on(device_type: str) -> Callable[..., Any]:
    """FlexAttention outside a compiled model: compiled by itself on CUDA; on a CPU decoding does without, knowingly."""
    if device_type == "cuda" and has_compiler(torch.device(device_type)):
        return torch.compile(flex_attention)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    return flex_attention
