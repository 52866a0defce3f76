"""The pictures of docs/catalogue/, drawn from the parts themselves: rotary wavelengths, biases of distance, masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from gptlab.components.attention.plan import Plan
from gptlab.components.position import Position
from gptlab.components.position.rotary import Rotary
from gptlab.config import ModelConfig
from gptlab.conformance.probes import influence
from gptlab.model import GPT

ORIGINAL, LONG, HEAD = 1024, 4096, 64
SEEN = 24  # tokens in the picture of masks
STYLE: dict[Any, Any] = {"svg.hashsalt": "gptlab", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False}  # fmt: skip


def draw(folder: Path) -> None:
    """All pictures, the same bytes every time."""
    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        for name, paint in {"rope": rope, "biases": biases, "masks": masks}.items():
            figure = paint(plt)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def rope(plt: Any) -> Any:
    """Tokens in a whole turn of each pair, and the angles themselves of plain RoPE."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    stretch = {"original": ORIGINAL, "factor": LONG / ORIGINAL}
    specs: dict[str, dict[str, Any]] = {
        "rope": {}, "rope, factor=4": {"factor": 4.0}, "ntk": {"original": ORIGINAL}, "yarn": stretch,
        "llama3": stretch,
    }  # fmt: skip
    for label, options in specs.items():
        position: Rotary = _position({"name": label.partition(",")[0], **options}, LONG)
        tokens = 2 * math.pi / position.frequencies(HEAD, torch.device("cpu"))
        left.semilogy(tokens.tolist(), label=label, linewidth=1.2)
    for length in (ORIGINAL, LONG):
        left.axhline(length, color="grey", linewidth=0.6, linestyle=":")
    left.set(xlabel="pair", ylabel="tokens in a turn", title=f"heads of {HEAD}, theta 10,000")
    left.legend(frameon=False, loc="upper left")
    plain: Rotary = _position("rope", LONG)
    cosines = plain.waves(torch.arange(256)[None], HEAD)[0][0, 0]
    image = right.imshow(cosines.T.numpy(), aspect="auto", cmap="RdBu", interpolation="nearest")
    right.set(xlabel="position", ylabel="pair", title="cosine of the angle, rope")
    figure.colorbar(image, ax=right)
    return figure


def biases(plt: Any) -> Any:
    """What each head adds to the score of the token so far back, before anything is learned."""
    names = ("alibi", "t5", "kerple", "fire")
    figure, axes = plt.subplots(1, len(names), figsize=(9, 2.4), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        position: Position = _position(name, ORIGINAL)
        last = torch.tensor(ORIGINAL - 1).view(1, 1, 1, 1)
        heads, keys = torch.arange(12).view(1, -1, 1, 1), torch.arange(ORIGINAL).view(1, 1, 1, -1)
        with torch.no_grad():
            added = sum(term(heads, last, keys) for term in position.terms())
        for head in torch.as_tensor(added).expand(1, 12, 1, -1)[0, :, 0, -256:].flip(-1):
            axis.plot(head.tolist(), linewidth=0.8)
        axis.set(title=name, xlabel="tokens back")
    axes[0].set(ylabel="added to the score, 12 heads")
    return figure


def masks(plt: Any) -> Any:
    """Which tokens (columns) each token (row) sees."""
    at = torch.arange(SEEN)
    documents = torch.tensor([0] * 9 + [1] * 11 + [2] * 4)
    whole = Plan(scale=1.0).visible(at[:, None], at)
    window = Plan(scale=1.0, window=6).visible(at[:, None], at)
    seen = {
        "causal": whole,
        "window=6": window,
        "chunk=8": Plan(scale=1.0, chunk=8).visible(at[:, None], at),
        "window=6, documents": window & (documents[:, None] == documents),
        "conv, dilation=4": _felt({"name": "conv", "kernel_size": 3, "dilation": 4}),
    }
    figure, axes = plt.subplots(1, len(seen), figsize=(10, 2.3), layout="constrained")
    for axis, (name, mask) in zip(axes, seen.items(), strict=True):
        axis.imshow(mask.numpy(), cmap="Greys", interpolation="nearest", vmin=0, vmax=1.3)
        axis.set(title=name, xticks=(), yticks=())
    return figure


def _position(spec: Any, block_size: int) -> Any:
    """A position as a new model has it."""
    config = ModelConfig(vocab_size=29, block_size=block_size, n_layer=1, n_head=12, n_embd=12 * HEAD, position=spec)
    return GPT(config).position


def _felt(attention: dict[str, Any]) -> Tensor:
    """Which tokens the logits of each have a gradient of, through one layer."""
    config = ModelConfig(
        vocab_size=29, block_size=SEEN, n_layer=1, n_head=2, n_embd=16, attention=attention, position="none", mlp="none"
    )
    model, tokens = GPT(config).eval(), torch.arange(SEEN)[None]
    return torch.stack([influence(model, tokens, i) > 0 for i in range(SEEN)])
