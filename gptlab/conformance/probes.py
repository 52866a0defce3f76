"""What the laws measure with: logits, influence of tokens on one another, gradients, errors of rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from gptlab.components.attention import trait
from gptlab.components.attention.planned import Planned
from gptlab.config import as_spec
from gptlab.model import GPT
from gptlab.seeds import seed_of, seeded


class LawBroken(Exception):
    """What happened, the number, and what to look at, in one line."""


def at_most(number: float, bound: float, message: str) -> None:
    """LawBroken with `message` unless number <= bound."""
    if not number <= bound:  # NaN breaks every law
        raise LawBroken(f"{message} (by {number:.1e}; allowed {bound:.0e}).")


def at_least(number: float, bound: float, message: str) -> None:
    """LawBroken with `message` unless number >= bound."""
    if not number >= bound:
        raise LawBroken(f"{message} ({number:.1e}; at least {bound:.0e}).")


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def logits_of(model: GPT, tokens: Tensor, training: bool = False) -> Tensor:
    """Logits, with the same dropout each time; in training with gradients, where a kernel may take another path."""
    model.train(training)
    with torch.set_grad_enabled(training), seeded("a law"):
        logits: Tensor = model(tokens).detach()
    model.eval()
    return logits


def with_other_ids(tokens: Tensor, where: Any) -> Tensor:
    """Tokens with other ids at `where`."""
    changed = tokens.clone()
    changed[where] = (changed[where] + 11) % 29
    return changed


def influence(model: GPT, tokens: Tensor, i: int) -> Tensor:
    """How much the logits of token i feel each token's embedding, (T,): the largest derivative, with random weights."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
        leaves.append(embedded.detach().requires_grad_())
        return leaves[0]

    handle = model.token_embedding.register_forward_hook(cut)
    try:
        chosen = model(tokens)[:, i]
    finally:
        handle.remove()
    weights = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(seed_of("cotangent")))
    (gradient,) = torch.autograd.grad((chosen * weights).sum(), leaves[0])
    return gradient.abs().amax(dim=(0, 2))


def softmax_mixers(model: GPT) -> list[Planned]:
    """The attentions that compute a plan on a kernel."""
    return [module for module in model.modules() if isinstance(module, Planned)]


def visible_from(attention: nn.Module, i: int, n_tokens: int, n_source: int = 0) -> Tensor:
    """Which of n tokens the i-th may see, (n,), by the attention's plan or by the reach that it declares."""
    at = torch.arange(n_tokens)
    if isinstance(attention, Planned):
        return attention.plan.visible(torch.tensor(i), at, torch.tensor(n_source))
    return (at <= i) & (i - at < trait(attention, "reach"))


def with_kernel(model: GPT, tokens: Tensor, kernel: Any) -> tuple[Tensor, Tensor]:
    """Logits without gradients, then all gradients in one vector, with every softmax mixer on `kernel`."""
    for mixer in softmax_mixers(model):
        vars(mixer)["kernel"] = kernel  # over the class's own
    logits = logits_of(model, tokens)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed_of("cotangent")))
    gradients = torch.autograd.grad((model(tokens) * weights).sum(), list(model.parameters()), allow_unused=True)
    return logits, torch.cat([g.flatten() for g in gradients if g is not None])


def declared_inert(model: GPT) -> Iterator[tuple[str, str]]:
    """Full name and reason of each parameter that a part calls inert."""
    for name, module in model.named_modules():
        for suffix, reason in getattr(module, "inert", {}).items():
            yield f"{name}.{suffix}", reason


def identities(model: GPT) -> dict[str, int]:
    """Which object each parameter and buffer is."""
    return {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@contextmanager
def no_new_parameters() -> Iterator[None]:
    """LawBroken where a parameter is created inside, even one that no module of the model keeps."""

    def refuse(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            owner = type(module).__name__
            raise LawBroken(f"forward creates the parameter {name!r} of a {owner}: create it in __init__.")

    handle = register_module_parameter_registration_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def bf16_error(exact: GPT, model: GPT, tokens: Tensor) -> float:
    """Root mean square error of bf16 logits, relative; of the median token where parts choose between paths."""
    wanted = logits_of(exact, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        got = logits_of(model, tokens).double()
    error, size = (x.square().mean(-1) for x in (got - wanted, wanted))
    typical = torch.median if any(getattr(part, "chooses", False) for part in model.modules()) else torch.mean
    return float((typical(error) / typical(size)).sqrt())


def is_none(spec: Any) -> bool:
    """Whether a spec names the variant `none`."""
    return bool(as_spec(spec)["name"] == "none")
