"""Gated DeltaNet: a decaying state in which each key's value is replaced, not added to; linear in time.

Yang et al. 2024, arXiv:2412.06464, with the parts of Qwen3-Next.
"""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.components.attention.mixer import Attention
from gptlab.components.attention.short_conv import short_conv
from gptlab.components.attention.state_space import (
    Memory,
    TimeStep,
    heads,
    in_chunks,
    left_by_decay,
    side_by_side,
    states_before,
)
from gptlab.components.context import Context
from gptlab.components.norm.rmsnorm import RMSNorm
from gptlab.components.position import Position
from gptlab.components.precision import without_autocast
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register

Q = Float[Tensor, "B G 1 T K"]
V = Float[Tensor, "B G R T D"]
Number = Float[Tensor, "B G R T 1"]
State = Float[Tensor, "B G R K D"]


@register("attention", "gated_delta")
class GatedDelta(Attention):
    """Linear attention by the gated delta rule, in chunks. Yang et al. 2024, arXiv:2412.06464.

    Checked against transformers Qwen3NextGatedDeltaNet.
    """

    honours = frozenset()
    separates_documents = True
    cached = 0
    roles: ClassVar[Mapping[str, str]] = {"a.weight": "vector", "b.weight": "vector"}  # a row a head
    examples: ClassVar[dict[str, object]] = {"n_key_head": 2, "n_value_head": 8, "eps": 0.1}
    neutral = frozenset({"kernel"})

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        n_key_head: Annotated[int | None, "heads of queries and keys; null: n_head"] = None,
        n_value_head: Annotated[int | None, "heads of values, a multiple of n_key_head; null: n_key_head"] = None,
        key_size: Annotated[int | None, "size of a query or key; null: n_embd / n_head"] = None,
        value_size: Annotated[int | None, "size of a value; null: n_embd / n_head"] = None,
        conv_size: Annotated[int, "tokens that the convolution of q, k, v sees, itself included; 0: none"] = 4,
        gate: Annotated[bool, "multiply the output by silu(z(x))"] = True,
        bias: Annotated[bool | None, "a bias in the projections; null: model.bias"] = None,
        eps: Annotated[float, "added to the mean square in the norm of the output"] = 1e-5,
        kernel: Annotated[
            Literal["auto", "torch", "fla"], "fla: flash-linear-attention, on CUDA; auto: where it is installed"
        ] = "auto",
    ) -> None:
        super().__init__(shape, position)
        self.n_key_head = shape.n_head if n_key_head is None else n_key_head
        n_value_head = self.n_key_head if n_value_head is None else n_value_head
        self.key_size = shape.head_size if key_size is None else key_size
        self.value_size = shape.head_size if value_size is None else value_size
        bias = shape.bias if bias is None else bias
        _check(self.n_key_head, n_value_head, self.key_size, self.value_size)
        self.n_shared = n_value_head // self.n_key_head  # value heads for each key head
        n_key, n_value = self.n_key_head * self.key_size, n_value_head * self.value_size
        self.sizes = (n_key, n_key, n_value)
        self.conv_size, self.fused = conv_size, _can_fuse(kernel)
        self.q = nn.Linear(shape.n_embd, n_key, bias=bias)
        self.k = nn.Linear(shape.n_embd, n_key, bias=bias)
        self.v = nn.Linear(shape.n_embd, n_value, bias=bias)
        self.a = nn.Linear(shape.n_embd, n_value_head, bias=False)  # its bias is dt_bias
        self.b = nn.Linear(shape.n_embd, n_value_head, bias=bias)
        self.z = nn.Linear(shape.n_embd, n_value, bias=bias) if gate else None
        self.conv = short_conv(sum(self.sizes), conv_size, bias=False)
        self.step = TimeStep(n_value_head)
        self.norm = RMSNorm(self.value_size, eps=eps)
        self.proj = nn.Linear(n_value, shape.n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: Memory | None = None
    ) -> Float[Tensor, "B T C"]:
        """proj(norm(y) * silu(z)), where y_t = S_t^T q_t is read from the state that the delta rule writes."""
        memory = cache or self.new_cache(x.shape[0], 0)
        v = self.v(x)
        with without_autocast(x.device):  # of a state that holds one token, the norm leaves but the sign of q . k
            y = self.recall(x.to(self.q.weight.dtype), v, context, memory)
        y = side_by_side(self.norm(y.to(x.dtype)))
        return self.proj(y if self.z is None else y * F.silu(self.z(x)))

    def recall(
        self, x: Float[Tensor, "B T C"], v: Float[Tensor, "B T E"], context: Context, memory: Memory
    ) -> Float[Tensor, "B G R T D"]:
        """y, from q and k of length 1 (over sqrt(K) for q), and from what each token overwrites and lets fade."""
        documents = memory.with_past(context.documents)
        qkv = torch.cat((self.q(x), self.k(x), v), dim=-1)
        qkv, memory.window = self.conv(qkv, memory.window, documents)
        q, k, v = F.silu(qkv).to(memory.state.dtype).split(self.sizes, dim=-1)
        q, k = (unit(heads(part, self.n_key_head, 1)) for part in (q, k))
        v, beta, log_decay = (
            heads(part.to(v.dtype), self.n_key_head, self.n_shared)
            for part in (v, torch.sigmoid(self.b(x)), self.step(self.a(x))[1])
        )
        rule = fla_rule if self.fused and x.is_cuda and documents is None else delta_rule
        y, memory.state = rule(q * self.key_size**-0.5, k, v, beta, log_decay, memory.state, documents)
        return y

    def new_cache(self, batch_size: int, max_len: int) -> Memory:
        """A window and a state of zeros; neither grows."""
        like = self.step.A_log
        window = like.new_zeros(batch_size, max(0, self.conv_size - 1), sum(self.sizes))
        sizes = (batch_size, self.n_key_head, self.n_shared, self.key_size, self.value_size)
        return Memory(window, like.new_zeros(sizes, dtype=torch.promote_types(like.dtype, torch.float32)))


def delta_rule(
    q: Q, k: Q, v: V, beta: Number, log_decay: Number, state: State, documents: Int[Tensor, "B S"] | None
) -> tuple[V, State]:
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T; y_t = S_t^T q_t; and the last S.

    What token i writes, beta_i (v_i - what its key recalls), depends on what the earlier ones of its chunk wrote: a
    triangular system (the UT transform). It is linear in the state before the chunk: `written` - `recalled` @ S.
    """
    n_tokens, left = q.shape[-2], left_by_decay(log_decay, documents)
    q, k, v, beta = (in_chunks(part) for part in (q, k, v, beta))
    system = beta * (k @ k.mT) * left.within  # below its diagonal, and ones on it
    sides = torch.cat((beta * v, beta * left.entering * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    written, recalled = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    keys = (left.leaving * k).mT
    kept = left.whole * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - keys @ recalled
    before, state = states_before(state, kept, keys @ written, operator.matmul)
    y = (q @ k.mT * left.within) @ (written - recalled @ before) + left.entering * (q @ before)
    return y.flatten(-3, -2)[..., :n_tokens, :], state


def fla_rule(
    q: Q, k: Q, v: V, beta: Number, log_decay: Number, state: State, documents: Int[Tensor, "B S"] | None
) -> tuple[V, State]:
    """`delta_rule` by the Triton kernels of flash-linear-attention. Written to its signature (0.6); never run yet."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    n_group, n_shared = v.shape[1:3]
    q, k, v, g, beta = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v, log_decay, beta))
    y, last = chunk_gated_delta_rule(
        q, k, v, g[..., 0], beta[..., 0], scale=1.0, initial_state=state.flatten(1, 2), output_final_state=True
    )
    return y.transpose(1, 2).unflatten(1, (n_group, n_shared)), last.unflatten(1, (n_group, n_shared))


def unit(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Vectors of length 1, but for very short ones."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _can_fuse(kernel: str) -> bool:
    """Whether fla's kernels are to be used on CUDA. ConfigError when they are asked for and cannot be."""
    lacking = None if torch.cuda.is_available() else "CUDA"
    lacking = lacking if importlib.util.find_spec("fla") else "flash-linear-attention (pip install 'gptlab[fla]')"
    if kernel == "fla" and lacking:
        raise ConfigError(
            f"model.attention.kernel=fla needs {lacking}, which is not here: leave it at auto, or set kernel=torch."
        )
    return kernel != "torch" and not lacking


def _check(n_key_head: int, n_value_head: int, key_size: int, value_size: int) -> None:
    """The rules that a type alone does not say."""
    if n_key_head < 1 or n_value_head < 1 or n_value_head % n_key_head:
        raise ConfigError(f"n_key_head must divide n_value_head, but {n_key_head} does not divide {n_value_head}.")
    if key_size < 1 or value_size < 1:
        raise ConfigError(f"key_size and value_size must be at least 1, but are {key_size} and {value_size}.")
