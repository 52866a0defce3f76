"""What a fresh process of bench_against.py does: judge a checkpoint of nanoGPT's, or write text with one of four."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPT = 16  # tokens before those that are written
SECONDS = 5.0  # that writing is repeated for


def child(asked: dict[str, Any]) -> dict[str, Any]:
    """The figures that were asked for."""
    if "loss" in asked:
        return {"loss": _their_loss(Path(asked["loss"]), asked["device"])}
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked["precision"]]
    torch.manual_seed(0)
    model, write = WRITING[asked["who"]](asked)
    model.to(device=asked["device"], dtype=dtype).eval()
    with torch.no_grad():
        write(asked["tokens"])  # warms up, and compiles
        taken: list[float] = []
        until = time.perf_counter() + SECONDS
        while not taken or time.perf_counter() < until:
            began = time.perf_counter()
            n = write(asked["tokens"])
            taken.append((time.perf_counter() - began) / n)
    return {"tokens_per_second": 1 / statistics.median(taken), "milliseconds_per_token": 1e3 * statistics.median(taken)}


def _their_loss(folder: Path, device: str) -> float:
    """The mean loss of the newest checkpoint over the whole of validation, in the windows of gptlab's evaluation."""
    from gptlab.data import IGNORE, windows

    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's

    saved = torch.load(folder / "out" / "ckpt.pt", weights_only=True, map_location="cpu")
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()})
    model.to(device).eval()
    tokens = np.fromfile(folder / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16)
    total, n = 0.0, 0
    with torch.no_grad():
        for x, y in windows(tokens, block_size=model.config.block_size, batch_size=12):
            x, y = x.to(device), y.to(device)
            logits, _ = model(x, y.clamp(min=0))
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
            n += int((y != IGNORE).sum())
    return total / n


Writer = tuple[Any, Callable[[int], int]]  # a model, and a function that writes so many tokens and says how many


def _nanogpt(asked: dict[str, Any]) -> Writer:
    sys.path.insert(0, asked["nanogpt"])
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(**asked["sizes"], dropout=0.0, bias=True))
    prompt = torch.arange(PROMPT, device=asked["device"])[None]
    return model, lambda n: model.generate(prompt, n).shape[1] - PROMPT


def _transformers(asked: dict[str, Any]) -> Writer:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = asked["sizes"]
    names: dict[str, Any] = {
        "n_positions": sizes["block_size"],
        **{k: sizes[k] for k in ("n_layer", "n_head", "n_embd", "vocab_size")},
    }
    model: Any = GPT2LMHeadModel(GPT2Config(**names))
    prompt = torch.arange(PROMPT, device=asked["device"])[None]
    kept: dict[str, Any] = {"do_sample": True, "top_k": 0, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    return model, lambda n: model.generate(prompt, attention_mask=mask, max_new_tokens=n, **kept).shape[1] - PROMPT


def _gptlab(asked: dict[str, Any], compiled: Callable[[str], None] | None = None) -> Writer:
    from gptlab import GPT, ModelConfig
    from gptlab.sampling import generate, lay_out

    parts: dict[str, Any] = {"attention": "softmax", "position": "learned", "norm": "layernorm", "block": "prenorm"}
    mlp = {"name": "plain", "activation": "gelu_tanh"}
    model = GPT(ModelConfig(**asked["sizes"], **parts, mlp=mlp, bias=True, tie_weights=True))
    lay_out(model)
    return model, lambda n: sum(1 for _ in generate(model, list(range(PROMPT)), n, compiled=compiled))


def _gptlab_compiled(asked: dict[str, Any]) -> Writer:
    return _gptlab(asked, print)


WRITING: dict[str, Callable[[dict[str, Any]], Writer]] = {
    "nanogpt": _nanogpt,
    "transformers": _transformers,
    "gptlab": _gptlab,
    "gptlab compiled": _gptlab_compiled,
}


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
