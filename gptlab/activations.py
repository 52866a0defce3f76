"""What a model computes on its way, by name: recorded, or replaced, at every point of the component interface.

Off, nothing of it is left in the model; an edit that changes nothing leaves the logits as they are, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gptlab.components.attention.kernels import Kernel, for_each_query_head, scores_of, weights_of
from gptlab.components.attention.plan import Plan
from gptlab.components.attention.planned import Planned
from gptlab.components.context import Places
from gptlab.components.mlp.router import Route
from gptlab.errors import ConfigError, did_you_mean
from gptlab.model import GPT
from gptlab.registry import label

Function = Callable[[Tensor], Tensor]
Listen = Callable[[nn.Module, Function], RemovableHandle]
OF_SOFTMAX = ("q", "k", "v", "scores", "weights")  # (B, H, T, ...), where an attention has them
OF_BLOCK = (
    "in",  # the residual stream, (B, T, C)
    "attention.in",  # what the attention reads: after the norm before it
    *(f"attention.{name}" for name in OF_SOFTMAX),  # q and k as they are multiplied; scores and weights (B, H, T, S)
    "attention.heads",  # what its layer `proj` reads: the heads side by side, (B, T, H E)
    "attention.out",
    "attention.added",  # what the stream gets of it: after norm, dropout and gain
    "mlp.in",
    *(f"mlp.{name}" for name in Route._fields),  # where its module `router` sends tokens, if that gives a Route
    "mlp.hidden",  # what its layer `proj` reads, (B, T, F)
    "mlp.out",
    "mlp.added",
    "out",
)
BEFORE_PROJ = {"attention": "heads", "mlp": "hidden"}
SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)
LISTED = "gptlab.activations.names(model)"


@torch.no_grad()
def names(model: GPT) -> list[str]:
    """Every point that can be recorded, in the order in which a pass comes by; found by a pass of 3 tokens."""
    training, n_tokens = model.training, min(3, model.position.limit or 3)
    try:
        with record(model.eval()) as seen:
            model(torch.zeros(1, n_tokens, dtype=torch.long, device=next(model.parameters()).device))
    finally:
        model.train(training)
    return list(seen)


@contextmanager
def record(
    model: GPT, patterns: str | Collection[str] = "*", *, keep_grad: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Name -> tensor of the newest pass in the context; `patterns` are names, or like those of files ("*.out").

    Tensors are copies; with `keep_grad` they are what the rest of the pass is computed from. ConfigError for a name
    that no point can have, and at the end for one that no pass came by.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        seen[name] = tensor.view_as(tensor) if keep_grad else tensor.detach().clone()
        return seen[name] if keep_grad else tensor

    with _tapped(model, [patterns] if isinstance(patterns, str) else patterns, keep):
        yield seen


@contextmanager
def edit(model: GPT, edits: Mapping[str, Function]) -> Iterator[None]:
    """In the context, what the function of a name (or pattern) gives takes the place of the tensor it is given.

    Of contexts inside one another, the outer comes first. ConfigError as for `record`.
    """

    def change(name: str, tensor: Tensor) -> Tensor:
        function = next(edits[pattern] for pattern in edits if fnmatchcase(name, pattern))
        changed = function(tensor)
        if not isinstance(changed, Tensor) or changed.shape != tensor.shape:
            given = tuple(changed.shape) if isinstance(changed, Tensor) else changed
            raise ConfigError(f"An edit of {name} must give a tensor of shape {tuple(tensor.shape)}, but gave {given}.")
        return changed

    with _tapped(model, list(edits), change):
        yield


@dataclass(eq=False)
class Tap:
    """A listener at some points: what `at` gives goes on in place of what came."""

    names: frozenset[str]
    at: Callable[[str, Tensor], Tensor]
    met: set[str] = field(default_factory=set)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What goes on from a point."""
        if name not in self.names:
            return tensor
        self.met.add(name)
        return self.at(name, tensor)


@contextmanager
def _tapped(model: GPT, patterns: Collection[str], at: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """`at` called at every point that a pattern names. A whole name is a demand; a pattern takes what there is."""
    known = ["embedding", *(f"blocks.{i}.{p}" for i in range(len(model.blocks)) for p in OF_BLOCK), "norm", "logits"]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(f"No point of a model is called {pattern!r}. {did_you_mean(pattern, known, LISTED)}")
    tap = Tap(frozenset(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)), at)
    passes: list[None] = []
    with ExitStack() as stack:
        stack.callback(model.dropout.register_forward_hook(lambda *_: passes.append(None)).remove)
        for name, module, listen in _borders(model):
            if name in tap.names:
                stack.callback(listen(module, partial(tap, name)).remove)
        for layer, attention in enumerate(model.attentions):
            here = f"blocks.{layer}.attention."
            if not tap.names.isdisjoint(here + name for name in OF_SOFTMAX):
                stack.enter_context(_overheard(attention, here, tap))
        yield
    missed = [name for name in known if name in patterns and name not in tap.met]
    if passes and missed:
        raise ConfigError(f"{_whose(model, missed[0])} computes no {missed[0]}: {LISTED} lists what there is.")


def _borders(model: GPT) -> Iterator[tuple[str, nn.Module, Listen]]:
    """The points where a module begins or ends, and how to listen there."""
    yield "embedding", model.dropout, _after
    for layer, block in enumerate(model.blocks):
        here = f"blocks.{layer}."
        yield f"{here}in", block, _before
        yield f"{here}out", block, _after
        for part, inside in BEFORE_PROJ.items():
            module = getattr(block, part)
            yield f"{here}{part}.in", module, _before
            yield f"{here}{part}.out", module, _after
            if isinstance(proj := getattr(module, "proj", None), nn.Module):
                yield f"{here}{part}.{inside}", proj, _before
            if isinstance(gain := getattr(block, f"{part}_gain", None), nn.Module):
                yield f"{here}{part}.added", gain, _after
        if isinstance(router := getattr(block.mlp, "router", None), nn.Module):
            yield from ((f"{here}mlp.{name}", router, _after_routing(name)) for name in Route._fields)
    yield "norm", model.norm, _after
    yield "logits", model, _after


def _before(module: nn.Module, tap: Function) -> RemovableHandle:
    def heard(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (tap(given[0]), *given[1:]), named
        first = next(name for name, value in named.items() if isinstance(value, Tensor))
        return (), {**named, first: tap(named[first])}

    return module.register_forward_pre_hook(heard, with_kwargs=True)


def _after(module: nn.Module, tap: Function) -> RemovableHandle:
    return module.register_forward_hook(lambda _, given, out: tap(out))


def _after_routing(name: str) -> Listen:
    """A field of the Route that a router gives; what a router of another kind gives is left alone."""

    def listen(module: nn.Module, tap: Function) -> RemovableHandle:
        def heard(_: nn.Module, given: Any, out: Any) -> Any:
            return out._replace(**{name: tap(getattr(out, name))}) if isinstance(out, Route) else out

        return module.register_forward_hook(heard)

    return listen


def _whose(model: GPT, name: str) -> str:
    """Who has no such point: an attention that is no softmax, or the model."""
    *_, layer, part, inside = ("", "", *name.split("."))
    if part == "attention" and inside in OF_SOFTMAX:
        return f"Attention {label('attention', model.attentions[int(layer)])!r}, which shows no softmax,"
    return "This model"


@contextmanager
def _overheard(attention: nn.Module, here: str, tap: Tap) -> Iterator[None]:
    """`tap` told of what the softmax of an attention is made of and gives, after those that listen there already."""
    own = vars(attention)
    name = "kernel" if isinstance(attention, Planned) else "forward"
    held = {key: own[key] for key in (name, "_ears") if key in own}
    ears: Ears = own.setdefault("_ears", Ears(here))
    if not ears.taps:
        own[name] = getattr(ears, name)(getattr(attention, name))
    ears.taps.append(tap)
    try:
        yield
    finally:
        ears.taps.remove(tap)
        for key in (name, "_ears"):
            own.pop(key)
        own.update(held)


@dataclass
class Ears:
    """Those who listen inside one attention: at its kernel, or where a plain one calls torch for a softmax."""

    here: str
    taps: list[Tap] = field(default_factory=list)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What goes on of `tensor`, which without a dimension of heads is shown as that of one."""
        shown = seen = tensor if tensor.ndim == 4 else tensor[:, None]
        for tap in self.taps:
            seen = tap(self.here + name, seen)
        return tensor if seen is shown else seen.reshape(tensor.shape)

    def wants_weights(self) -> bool:
        """Whether a kernel that keeps no weights must be accompanied by the definition."""
        return any(self.here + name in tap.names for tap in self.taps for name in ("scores", "weights"))

    def weigh(self, scores: Tensor, weights: Tensor, softmax: Function) -> Tensor:
        """The weights that go on, where those of the scores that came are `weights`."""
        seen = self("scores", scores)
        return self("weights", weights if seen is scores else softmax(seen))

    def reweigh(self, y: Tensor, v: Tensor, scores: Tensor, softmax: Function) -> Tensor:
        """What a kernel gave, moved by what was made of its scores and weights: of a copy exactly by 0."""
        weights = softmax(scores)
        changed = self.weigh(scores, weights, softmax)
        return y if changed is weights else y + ((changed - weights) @ v.to(weights.dtype)).to(y.dtype)

    def kernel(self, kernel: Kernel) -> Kernel:
        """The same kernel, overheard."""

        def run(
            q: Tensor, k: Tensor, v: Tensor, plan: Plan, queries: Places, keys: Places,
            dropout: float = 0.0, sinks: Tensor | None = None,
        ) -> Tensor:  # fmt: skip
            q, k, v = self("q", q), self("k", k), self("v", v)
            y = kernel.run(q, k, v, plan, queries, keys, dropout, sinks)
            if not self.wants_weights():
                return y
            k, v = for_each_query_head(k, v, plan)
            return self.reweigh(y, v, scores_of(q, k, plan, queries, keys), partial(weights_of, sinks=sinks))

        return dataclasses.replace(kernel, run=run)

    def forward(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same pass of an attention without a kernel, its calls of torch overheard."""

        def run(*given: Any, **named: Any) -> Tensor:
            x = next(value for value in (*given, *named.values()) if isinstance(value, Tensor))
            with Calls(self, x.shape[1]):
                return forward(*given, **named)

        return run


class Calls(TorchFunctionMode):
    """torch's softmax and fused attention, overheard where they are called for a map of tokens."""

    def __init__(self, ears: Ears, n_tokens: int) -> None:
        super().__init__()
        self.ears, self.n_tokens = ears, n_tokens

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call, or what goes on in place of what it gives."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.fused(*args, **kwargs)
        out = func(*args, **kwargs)
        if func not in SOFTMAXES or not _is_map(out, self.n_tokens):
            return out
        if args:
            return self.ears.weigh(args[0], out, lambda scores: func(scores, *args[1:], **kwargs))
        return self.ears.weigh(kwargs["input"], out, lambda scores: func(**{**kwargs, "input": scores}))

    def fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """torch's scaled_dot_product_attention; its weights by its documentation."""
        q, k, v = self.ears("q", query), self.ears("k", key), self.ears("v", value)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )  # fmt: skip
        if not self.ears.wants_weights():
            return y
        n_group = q.shape[-3] // k.shape[-3] if enable_gqa else 1
        k, v = k.repeat_interleave(n_group, -3), v.repeat_interleave(n_group, -3)
        scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
        if attn_mask is not None:
            seen = attn_mask.dtype is torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if seen else scores + attn_mask
        return self.ears.reweigh(y, v, scores, partial(torch.softmax, dim=-1))


def _is_map(weights: Tensor, n_tokens: int) -> bool:
    """Whether these are weights of tokens for tokens, (..., T, S): rows that sum to 1, and nothing of the future."""
    if weights.ndim not in (3, 4) or weights.shape[-2] != n_tokens or weights.shape[-1] < n_tokens:
        return False
    future = weights.triu(weights.shape[-1] - n_tokens + 1)
    return not future.any() and bool(((weights.sum(-1) - 1).abs() < 0.05).all())
