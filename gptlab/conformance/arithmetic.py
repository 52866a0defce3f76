"""Laws of arithmetic: other ways to the same numbers, gradients that are slopes, sizes that are sane, costs as said."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gptlab.components.attention import trait
from gptlab.components.attention.kernels import KERNELS, MATH
from gptlab.conformance.cases import PLAIN, Case, with_slot
from gptlab.conformance.law import EXACT, first, law
from gptlab.conformance.probes import (
    LawBroken,
    at_least,
    at_most,
    bf16_error,
    difference,
    logits_of,
    softmax_mixers,
    with_kernel,
)
from gptlab.cost import cached_per_token, count
from gptlab.model import GPT
from gptlab.seeds import seed_of

STEP = 1e-7  # of the central difference: small enough to cross no kink of a rectifier
SLOPE = 1e-5  # relative; the difference itself is right to about STEP^2 of curvature


@law(lambda case: bool(softmax_mixers(case.untouched)) and case.slot in ("attention", "position"))
def kernels_agree(case: Case) -> str:
    """Every kernel that can do what the mixer asks gives the logits and gradients of the definition."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    reference = with_kernel(model, tokens, MATH)
    for kernel in KERNELS:
        # nothing is dropped in evaluation
        if all(mixer.plan.needs() - {"dropout"} <= kernel.can for mixer in softmax_mixers(model)):
            computed = with_kernel(model, tokens, kernel)
            for what, wanted, got in zip(("logits", "gradients"), reference, computed, strict=True):
                apart = difference(wanted, got) / max(1.0, float(wanted.abs().max()))
                at_most(apart, EXACT, f"the {what} of kernel {kernel.name!r} differ from those of 'math'")
                worst = max(worst, apart)
    return f"largest difference {worst:.1e}"


@law()
def cached_is_uncached(case: Case) -> str:
    """Fed at once, one by one, in chunks or mixed, past block_size where the position allows: the same logits."""
    model, worst = case.model(), 0.0
    limit = model.position.limit
    tokens = case.tokens(limit or case.config.block_size + 6)
    whole, total = logits_of(model, tokens), tokens.shape[1]
    begun = case.n_source or 1  # a source that is seen both ways is fed at once
    one_by_one = [begun] + [1] * (total - begun)
    feeds = {"at once": [total], "one by one": one_by_one, "in chunks of 7, 1, 1, 5, ...": [7, 1, 1, 5, total - 14]}
    reaches = [trait(attention, "reach") for attention in model.attentions]
    enough = [total, max(reaches)] if reaches and all(reaches) else [total]  # a window needs no more memory than itself
    for max_len in enough:
        for how, feed in feeds.items():
            cache = model.new_cache(len(tokens), max_len)
            with torch.no_grad():
                pieces = torch.cat([model(piece, cache) for piece in tokens.split(feed, dim=1)], dim=1)
            apart = difference(whole, pieces)
            at_most(apart, EXACT, f"fed {how} with memory for {max_len}, the logits are not the uncached ones")
            worst = max(worst, apart)
    return f"largest difference {worst:.1e}"


@law()
def bf16_stays_near_the_definition(case: Case) -> str:
    """Under bf16 autocast the logits are at most twice as far from float64 as those of the plain variant on `math`."""
    tokens = case.tokens()
    judged = bf16_error(case.model(), case.model(dtype=torch.float32), tokens)
    yardstick = dataclasses.replace(case, config=with_slot(case.config, case.slot, PLAIN[case.slot]))
    allowed = 2 * bf16_error(yardstick.model(), yardstick.model(dtype=torch.float32), tokens) + 2**-9
    at_most(judged, allowed, "the relative error in bf16 is too large: compute sums, softmax and norms in float32")
    return f"error {judged:.1e} of {allowed:.1e}"


@law()
def the_gradient_is_the_slope_of_the_loss(case: Case) -> str:
    """Along a random direction of all parameters, the derivative of the loss is its central difference, in float64."""
    model, tokens, targets = case.model(), case.tokens(), case.tokens(seed=1)
    parameters: list[Tensor] = list(model.parameters())
    draw = torch.Generator().manual_seed(seed_of("direction"))
    along = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
    gradients = torch.autograd.grad(_total(model, tokens, targets), parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)
    ends = []
    for step in (STEP, -2 * STEP):  # forward, then as far behind
        with torch.no_grad():
            torch._foreach_add_(parameters, along, alpha=step)
            ends.append(float(_total(model, tokens, targets)))
    measured = (ends[0] - ends[1]) / (2 * STEP)
    apart = abs(slope - measured) / max(1.0, abs(measured))
    at_most(apart, SLOPE, "the gradient is not the loss's slope: look for detach, no_grad and rounding functions")
    return f"relative difference {apart:.1e}"


def _total(model: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    total, losses, _ = model.loss(tokens, targets)
    return total + sum(losses.values())


@law(first)
def initial_activations_are_of_sane_size(case: Case) -> str:
    """Untrained and 8 layers deep, every block puts out sizes of 0.001 to 10, and the loss is that of guessing."""
    model, sizes = case.model(noise=0, n_layer=8), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, out: sizes.append(float(out.square().mean().sqrt())))
    tokens, targets = case.tokens(), case.tokens(seed=1)
    with torch.no_grad():
        loss = float(model.loss(tokens, targets)[0]) / targets.numel()
    at_least(min(sizes), 1e-3, f"block {sizes.index(min(sizes))} puts out almost nothing: look at initial values")
    at_most(max(sizes), 10.0, f"block {sizes.index(max(sizes))} puts out large numbers: look at initial values, scales")
    guess = math.log(case.config.vocab_size or 1)
    at_most(loss, guess + 1, f"the first loss should be about {guess:.2f} nats: look at what feeds the head")
    return f"sizes {min(sizes):.2g} to {max(sizes):.2g}, loss {loss:.2f}"


@law(lambda case: case.first or case.slot == "attention")
def declared_costs_are_counted_costs(case: Case) -> str:
    """Numbers cached per token are those declared, and costs counted without storage are those of a real model."""
    model = case.model(noise=0, dtype=torch.float32)
    for layer, (attention, counted) in enumerate(zip(model.attentions, cached_per_token(model), strict=True)):
        said, reach = trait(attention, "cached"), trait(attention, "reach")
        soon_full = reach is not None and reach <= 5  # tokens that are fed while counting
        if said not in (None, counted) and not soon_full:
            raise LawBroken(f"layer {layer} says that it caches {said} numbers a token, but holds {counted:g}.")
    if not case.first:
        return "memory alone"  # options change what is remembered; counting FLOPs is slow
    costs = count(case.config)
    real = model.n_parameters()
    if costs.parameters != real:
        raise LawBroken(f"without storage the model has {costs.parameters} parameters, with storage {real}.")
    tokens = case.tokens(n_rows=1)
    for mixer in softmax_mixers(model):
        vars(mixer)["kernel"] = MATH  # torch counts nothing for its fused kernel on a CPU
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens)[0].backward()
    flops = counter.get_total_flops() / tokens.shape[1]
    least = 6 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad)
    at_most(abs(flops - costs.flops_per_token) / flops, 1e-6, "FLOPs counted without storage are not those with")
    return f"{real} parameters, {flops:,.0f} FLOPs a token ({least:,} in linear layers)"
