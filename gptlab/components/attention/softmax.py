"""The softmax mixer: softmax(q k^T / sqrt(D)) v over heads, on any kernel. Vaswani et al. 2017, arXiv:1706.03762."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.attention.choice import KernelName
from gptlab.components.attention.heads import FirstValues, Gate, NoGate, OwnValues, head_norm, split
from gptlab.components.attention.planned import Planned
from gptlab.components.context import Context, KVCache
from gptlab.components.position import Position
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import label, register


class SoftmaxAttention(Planned):
    """Softmax attention; a subclass names the kernel. Its options exist for every kernel that can do them."""

    maps: ClassVar[int] = 1  # softmax maps that a head's output is made of
    examples: ClassVar[dict[str, object]] = {
        **Planned.examples, "qk_norm": "rmsnorm", "qk_norm_after": True, "clip": 0.3, "head_size": 12, "bias": "qv",
    }  # fmt: skip
    beside: ClassVar[dict[str, dict[str, object]]] = {  # options that mean something only beside others
        "qk_norm_over": {"qk_norm": "rmsnorm"},
        "qk_norm_after": {"qk_norm": "rmsnorm"},
    }

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        n_kv_head: Annotated[
            int | None, "key and value heads, each shared by n_head / n_kv_head queries; null: n_head"
        ] = None,
        head_size: Annotated[int | None, "entries of a head; null: n_embd / n_head"] = None,
        qk_norm: Annotated[str | dict[str, Any] | None, "a norm of queries and keys; null: none"] = None,
        qk_norm_over: Annotated[
            Literal["head", "heads", "projection"], "each head, each with its own weights, or all heads at once"
        ] = "head",
        qk_norm_after: Annotated[bool, "normalize after rotation, not before"] = False,
        clip: Annotated[float | None, "bound of the entries of q, k and v; null: none"] = None,
        gate: Annotated[Literal["none", "head", "element"], "a sigmoid gate on each head's output or entry"] = "none",
        value_residual: Annotated[bool, "mix in the values of the first layer"] = False,
        bias: Annotated[
            bool | str | None, "biases: all, none, or some of q k v o g (gate), as in qkv; null: model.bias"
        ] = None,
        **options: Any,
    ) -> None:
        n_kv_head = shape.n_head if n_kv_head is None else n_kv_head
        size = shape.head_size if head_size is None else head_size
        _check(shape.n_head, n_kv_head, size, clip)
        _check_norm(position, qk_norm, qk_norm_over, qk_norm_after)
        super().__init__(shape, position, size, shape.n_head // n_kv_head, **options)
        self.n_kv_head, self.head_size = n_kv_head, size
        position.fit(size)
        self._project(shape.n_embd, _biases(shape.bias if bias is None else bias, gate), gate)
        self.bound = nn.Identity() if clip is None else nn.Hardtanh(-clip, clip)
        self.q_norm = head_norm(qk_norm, qk_norm_over, shape.n_head, size)
        self.k_norm = head_norm(qk_norm, qk_norm_over, n_kv_head, size)
        self.place = self._rotate_then_norm if qk_norm_after else self._norm_then_rotate
        self.values = FirstValues() if value_residual else OwnValues()
        self.relative = self.relative and not qk_norm_after  # gains do not turn
        self.cached = 2 * n_kv_head * size
        self.inert = self._inert()

    def _project(self, n_embd: int, biases: frozenset[str], gate: str) -> None:
        """The linear layers."""
        n_query, n_key = self.n_head * self.head_size, self.n_kv_head * self.head_size
        self.q = nn.Linear(n_embd, n_query, bias="q" in biases)
        self.k = nn.Linear(n_embd, n_key, bias="k" in biases)
        self.v = nn.Linear(n_embd, n_key, bias="v" in biases)
        self.proj = nn.Linear(n_query, n_embd, bias="o" in biases)
        n_out, gates = self.n_head // self.maps, {"head": 1, "element": self.maps * self.head_size}
        self.gate = Gate(n_embd, n_out, gates[gate], bias="g" in biases) if gate in gates else NoGate()

    def forward(
        self, x: Float[Tensor, "B T C"], context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Project, place, attend, project back."""
        q = split(self.bound(self.q(x)), self.n_head)
        k = split(self.bound(self.k(x)), self.n_kv_head)
        v = self.values(split(self.bound(self.v(x)), self.n_kv_head), context)
        q, k = self.place(q, k, context.positions)
        keys = context.places
        if cache is not None:
            k, v, keys = cache.append(k, v, context.places)
        y = self.attend(q, k, v, context.places, keys)
        return self.proj(self.gate(y, x).transpose(1, 2).flatten(2))

    def _norm_then_rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.position.rotate(self.q_norm(q), self.k_norm(k), positions)

    def _rotate_then_norm(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.position.rotate(q, k, positions)
        return self.q_norm(q), self.k_norm(k)

    def _inert(self) -> dict[str, str]:
        """What is added to all keys alike moves all scores of a query alike: that shows only where something else acts.

        Keys that turn or are clipped, capped scores, a sink beside them.
        """
        rotates = "rotate" in self.position.acts
        if rotates or self.plan.softcap is not None or self.plan.sinks or isinstance(self.bound, nn.Hardtanh):
            return {}
        last = "k" if isinstance(self.k_norm, nn.Identity) else "k_norm"
        names = (name for name, _ in getattr(self, last).named_parameters() if name.rpartition(".")[2] == "bias")
        return {f"{last}.{name}": "softmax ignores what all scores share" for name in names}


@register("attention", "softmax")
class Softmax(SoftmaxAttention):
    """Softmax attention on the kernel that is fastest for its inputs. Vaswani et al. 2017, arXiv:1706.03762.

    Checked against transformers eager attention, 37 configurations.
    """

    neutral = frozenset({"kernel"})

    def __init__(
        self,
        shape: Shape,
        position: Position,
        *,
        kernel: KernelName = "auto",
        **options: Any,
    ) -> None:
        self.kernel_name = kernel  # before the base, which chooses by it
        super().__init__(shape, position, **options)


def _check(n_head: int, n_kv_head: int, head_size: int, clip: float | None) -> None:
    """The rules that a type alone does not say."""
    if n_kv_head < 1 or n_head % n_kv_head:
        raise ConfigError(f"n_kv_head must divide n_head, but {n_kv_head} does not divide {n_head}.")
    if head_size < 1:
        raise ConfigError(f"model.attention.head_size must be at least 1, but is {head_size}.")
    if clip is not None and clip <= 0:
        raise ConfigError(f"model.attention.clip must be above 0, but is {clip}.")


def _check_norm(position: Position, spec: Any, over: str, after: bool) -> None:
    """Options about a norm of q and k have a meaning where there is one, and its order where something turns."""
    if spec is None and (over != "head" or after):
        raise ConfigError("qk_norm_over and qk_norm_after are about qk_norm, but there is none: set qk_norm=rmsnorm.")
    if after and "rotate" not in position.acts:
        raise ConfigError(
            f"qk_norm_after=true is about rotation, but position {label('position', position)!r} rotates nothing: "
            "choose position=rope, or leave qk_norm_after out."
        )


def _biases(said: bool | str, gate: str) -> frozenset[str]:
    """Which projections have a bias. ConfigError for a letter that stands for none."""
    letters = ("qkvo" + ("g" if gate != "none" else "")) if said is True else (said or "")
    odd = set(letters) - set("qkvo" if gate == "none" else "qkvog")
    if odd or (said != "" and isinstance(said, str) and len(set(said)) < len(said)):
        raise ConfigError(
            f"model.attention.bias must be true, false or letters of q k v o (and g where there is a gate), each once, "
            f"but is {said!r}."
        )
    return frozenset(letters)
