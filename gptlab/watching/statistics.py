"""How well a training is conditioned, from a checkpoint and one batch: activations, gradients, updates."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gptlab import checkpoint, registry
from gptlab.activations import record
from gptlab.comparison.drawing import ARMS, MUTED, canvas
from gptlab.data import IGNORE
from gptlab.lab import Lab
from gptlab.model import GPT
from gptlab.optimizer import memory, parameter_groups
from gptlab.rundir import read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS = 4096  # of validation, at least one sequence
NAMED = 64  # parameters whose names have room
WRITERS = ("attention.out", "mlp.out", "out")  # of a block
HEALTHY = 1e-3  # an update of a weight, of its size: Karpathy 2022 (makemore part 3)


class Statistics(NamedTuple):
    """Root mean squares of what layers put out and of gradients; updates of a step over weights; the streams."""

    outputs: dict[str, list[float]]  # by writer, layer by layer
    gradients: dict[str, float]  # by parameter
    updates: dict[str, float]  # by parameter: norm of a step's change over the norm of the weight; empty: not known
    streams: list[Tensor]  # what each block puts out


def statistics(lab: Lab) -> Statistics:
    """One batch of validation forward and backward, and one step of the optimizer as it was saved, on a copy."""
    model, n_rows = copy.deepcopy(lab.model).eval(), max(1, TOKENS // lab.model.config.block_size)
    tokens, targets = lab.validation(n_rows)
    with record(model, ["blocks.*.out", "blocks.*.attention.out", "blocks.*.mlp.out"]) as seen:
        total, added, _ = model.loss(tokens, targets)
    (total / (targets != IGNORE).sum() + sum(added.values())).backward()
    layers = range(len(model.blocks))
    outputs = {
        writer: [_rms(seen[f"blocks.{layer}.{writer}"]) for layer in layers if f"blocks.{layer}.{writer}" in seen]
        for writer in WRITERS
    }
    gradients = {name: _rms(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    streams = [seen[f"blocks.{layer}.out"].flatten() for layer in layers]
    return Statistics(outputs, gradients, _updates(lab, model), streams)


def _updates(lab: Lab, model: GPT) -> dict[str, float]:
    """What one more step would change. Empty where adapters were merged, which the optimizer knows apart."""
    config = read_config(lab.path)
    if config.lora.rank:
        return {}
    optimizer = registry.build("optimizer", config.optimizer, parameter_groups(model))
    saved = checkpoint.load(lab.checkpoint, note=lab.note)
    names = {p: name for name, p in model.named_parameters()}
    memory.restore(optimizer, names, saved.tensors["optimizer"], saved.meta["optimizer"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if config.trainer.clip:
        torch.nn.utils.clip_grad_norm_(list(names), config.trainer.clip)
    optimizer.step()
    changes = {
        name: (float((p.detach() - before[name]).norm()), float(before[name].norm())) for p, name in names.items()
    }
    return {name: change / weight for name, (change, weight) in changes.items() if weight}


def draw(found: Statistics) -> Figure:
    """Four panels: outputs by depth, gradients and updates by parameter, the distribution of the stream by depth."""
    with canvas("statistics", 11, 8) as figure:
        (one, two), (three, four) = figure.subplots(2, 2)
        for colour, (writer, values) in zip(ARMS, found.outputs.items(), strict=False):
            one.plot(values, marker="o", color=colour, label=writer)
        _titled(one, "what a block puts out, root mean square", "layer")
        one.xaxis.get_major_locator().set_params(integer=True)
        one.legend(fontsize=7)
        _bars(two, found.gradients)
        _titled(two, "gradients, root mean square", "parameters", size=5)
        _bars(three, found.updates)
        three.axhline(HEALTHY, color=MUTED, linestyle="--", linewidth=1)
        _titled(three, "a step's update over the weight; a thousandth is usual", "parameters", size=5)
        for layer, stream in enumerate(found.streams):
            bound = float(stream.abs().max()) or 1.0
            counts = torch.histc(stream.float(), bins=80, min=-bound, max=bound)
            places, shade = torch.linspace(-bound, bound, 80), (layer + 1) / len(found.streams)
            density = counts / counts.sum() / (2 * bound / 80)
            four.plot(places, density, color=ARMS[0], alpha=0.25 + 0.75 * shade)
        _titled(four, "the residual stream after each layer (darker: later), density", "value")
        return figure


def _bars(axes: Axes, values: dict[str, float]) -> None:
    from matplotlib.ticker import LogFormatter

    kept = {name: value for name, value in values.items() if value > 0 and math.isfinite(value)}
    axes.bar(range(len(kept)), list(kept.values()), color=ARMS[0], width=0.8)
    if kept:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # in plain letters: those of formulas are not parsed here
        axes.yaxis.set_minor_formatter(LogFormatter())
    if len(kept) <= NAMED:
        axes.set_xticks(range(len(kept)), [name.removeprefix("blocks.") for name in kept], rotation=90)


def _titled(axes: Axes, title: str, below: str, size: int = 7) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(below, fontsize=7)
    axes.tick_params(axis="x", labelsize=size)
    axes.tick_params(axis="y", which="both", labelsize=7)


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
