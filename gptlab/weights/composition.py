"""What a model's options come to, layer by layer, with defaults resolved: equal for two configs of one function.

What only training or speed depends on (dropout, kernels, initial values) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gptlab import registry
from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.position.rotary import Rotary
from gptlab.components.shape import Shape
from gptlab.config import LAYER_SLOTS, ModelConfig

Composition = dict[str, Any]
FIELDS = (
    "vocab_size", "block_size", "n_layer", "n_head", "n_embd", "tie_weights", "head_bias", "logit_scale",
    "logit_softcap", "document_mask",
)  # fmt: skip
SOFTMAX = ("softmax", "vanilla", "flash", "flex")  # one function, each by a kernel of its own
CLOSE = 1e-9  # of two numbers that went through 1/x or a root


def composition(config: ModelConfig) -> Composition:
    """All that decides what a model of this config computes; `layers` holds slot -> {name, **options} for each."""
    scale = math.sqrt(config.n_embd) if config.embedding_scale == "sqrt" else config.embedding_scale
    return {
        **{name: getattr(config, name) for name in FIELDS},
        "embedding_size": config.embedding_size or config.n_embd,
        "embedding_scale": scale,
        "embedding_norm": config.embedding_norm and registry.complete("norm", config.embedding_norm),
        "norm": registry.complete("norm", config.norm),
        "position": _of_the_model(config.position),
        "layers": [
            {slot: _settled(slot, slots[slot], config) for slot in LAYER_SLOTS} for slots in config.slots_of_layers()
        ],
    }


def differences(one: Composition, other: Composition) -> list[str]:
    """What `one` has and `other` has not, as `model.attention.window=64`, with the layer where not all have it."""
    found = dict.fromkeys(_unequal({**one, "layers": None}, {**other, "layers": None}, "model"))
    layers: dict[str, list[int]] = {}
    for layer, (mine, its) in enumerate(zip(one["layers"], other["layers"], strict=False)):
        for said in _unequal(mine, its, "model"):
            layers.setdefault(said, []).append(layer)
    for said, where in layers.items():
        found.setdefault(said if len(where) == one["n_layer"] else f"{said} in layer {where[0]}")
    return list(found)


def close(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers but for their rounding."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=CLOSE)
    return bool(one == other)


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> Iterator[str]:
    """Keys of `one` that `other` lacks or has otherwise. Variants of two names differ in their name alone."""
    keys = ["name"] if one.get("name") != other.get("name") else list(one)
    for key in keys:
        mine, its = one[key], other.get(key)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from _unequal(mine, its, f"{at}.{key}")
        elif not close(mine, its):
            label = at if key == "name" else f"{at}.{key}"
            yield f"{label}={mine['name'] if isinstance(mine, Mapping) else mine}"


def _of_the_model(spec: Any) -> dict[str, Any] | None:
    """The position, unless it only turns q and k: then what the layers have, which may be others, is all of it."""
    options = registry.complete("position", spec)
    return None if issubclass(registry.get("position", options["name"]), Rotary) else options


def _settled(slot: str, spec: Any, config: ModelConfig) -> dict[str, Any]:
    """A layer's spec with every option written out, and what is left to the model resolved."""
    options = registry.complete(slot, spec)
    if slot == "attention" and options["name"] in SOFTMAX:
        return _softmax(options, config)
    if slot == "mlp" and "expand" in options:
        hidden = hidden_size(Shape(config.n_embd, config.n_head, config.block_size), options["expand"])
        options["expand"] = hidden / config.n_embd
    if options.get("bias", False) is None:
        options["bias"] = config.bias
    return options


def _softmax(options: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    kept = {key: value for key, value in options.items() if key not in ("kernel", "dropout")}
    size = options["head_size"] or config.n_embd // config.n_head
    bias = config.bias if options["bias"] is None else options["bias"]
    letters = ("qkvo" + "g" * (options["gate"] != "none")) if bias is True else bias or ""
    return {
        **kept,
        "name": "softmax",
        "n_kv_head": options["n_kv_head"] or config.n_head,
        "head_size": size,
        "scale": size**-0.5 if options["scale"] is None else options["scale"],
        "bias": "".join(sorted(letters, key="qkvog".index)),
        "qk_norm": options["qk_norm"] and registry.complete("norm", options["qk_norm"]),
    }
