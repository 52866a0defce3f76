"""What plugging costs: a training step of `model=gpt2` built from parts beside the same model written by hand.

    python scripts/bench_plugging.py [--tokens 256] [--pairs 12] [--out benchmarks/results/plugging_cpu.json]

Both have the weights of one draw, so their losses must agree; both use torch's fused attention and fused AdamW. Steps
alternate, and the ratio of each pair is what counts: the machine's moods hit both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab import GPT, ModelConfig
from gptlab.hardware import describe, versions

SIZES: dict[str, Any] = {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}


class Layer(nn.Module):
    """One pre-norm layer of GPT-2, by hand."""

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class ByHand(nn.Module):
    """GPT-2 in one file, as one would write it without a laboratory."""

    def __init__(self) -> None:
        super().__init__()
        width = SIZES["n_embd"]
        self.token, self.place = nn.Embedding(SIZES["vocab_size"], width), nn.Embedding(SIZES["block_size"], width)
        self.layers = nn.ModuleList(Layer(width, SIZES["n_head"]) for _ in range(SIZES["n_layer"]))
        self.norm = nn.LayerNorm(width)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross entropies, nats."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def copied(model: GPT) -> ByHand:
    """The model by hand with the weights of ours."""
    hand = ByHand()
    attention = {"q": "attention.q", "k": "attention.k", "v": "attention.v", "o": "attention.proj"}
    mlp = {"up": "mlp.up", "down": "mlp.proj"}
    norms = {"norm": "norm", "norm1": "attention_norms.before", "norm2": "mlp_norms.before"}
    names = {"token": "token_embedding", "place": "position.table", **attention, **mlp, **norms}
    tensors = model.tensors()
    with torch.no_grad():
        for name, parameter in hand.named_parameters():
            *where, module, leaf = name.split(".")
            prefix = f"blocks.{where[1]}." if where else ""
            parameter.copy_(tensors[f"{prefix}{names[module]}.{leaf}"])
    return hand


def stepper(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], n_tokens: int) -> Callable[[int], float]:
    """A function that trains one step on the tokens of a seed and returns the loss, nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(seed: int) -> float:
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(SIZES["vocab_size"], (1, n_tokens + 1), generator=draw)
        total = loss(tokens[:, :-1], tokens[:, 1:]) / n_tokens
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=256, help="in a step, one sequence")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    parts: dict[str, Any] = {"attention": "flash", "position": "learned", "norm": "layernorm", "block": "prenorm"}
    mlp = {"name": "plain", "activation": "gelu_tanh"}
    ours = GPT(ModelConfig(**SIZES, **parts, mlp=mlp, bias=True, tie_weights=True))
    hand = copied(ours)
    steps = [stepper(hand, hand.loss, options.tokens), stepper(ours, lambda x, y: ours.loss(x, y)[0], options.tokens)]
    seconds: list[list[float]] = [[], []]
    for pair in range(-2, options.pairs):  # two to warm up
        losses = []
        for which in (0, 1) if pair % 2 else (1, 0):
            began = time.perf_counter()
            losses.append(steps[which](pair + 2))
            seconds[which].append(time.perf_counter() - began)
        assert abs(losses[0] - losses[1]) < 1e-3, f"the two are not one model: {losses}"
    by_hand, built = (times[2:] for times in seconds)
    ratios = sorted(b / a for a, b in zip(by_hand, built, strict=True))
    figures = {
        "what": f"training step of GPT-2 124M, 1 x {options.tokens} tokens, float32, seconds",
        "by_hand": statistics.median(by_hand),
        "gptlab": statistics.median(built),
        "ratio": statistics.median(ratios),
        "ratio_spread": [ratios[0], ratios[-1]],
        "pairs": options.pairs,
        "hardware": describe(torch.device("cpu")),
        "versions": versions(),
    }
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
