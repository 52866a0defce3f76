"""A composition in the words of transformers' configs: one vocabulary, of which each class knows some."""

from __future__ import annotations

from typing import Any

from gptlab.errors import ConfigError
from gptlab.weights.composition import Composition

Settings = dict[str, Any]  # of a config of transformers
Options = dict[str, Any]  # of a ModelConfig

ACTIVATIONS = {  # theirs -> ours; where several are one, the last is written
    "swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "linear": "identity",
    **{name: name for name in ("gelu", "silu", "relu", "relu2", "tanh", "sigmoid", "quick_gelu")},
}  # fmt: skip
THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
SCALINGS = {  # rope_type -> our position, and their names of its options
    "default": ("rope", {}),
    "linear": ("rope", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "factor", "original": "original_max_position_embeddings", "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
    ),
    "yarn": (
        "yarn",
        {
            "factor": "factor", "original": "original_max_position_embeddings", "beta_fast": "beta_fast",
            "beta_slow": "beta_slow", "truncate": "truncate", "attention_factor": "attention_factor",
        },
    ),
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"


def activation(theirs: str) -> str:
    """Our name of an activation; one that is not ours is refused by the part that is given it."""
    return ACTIVATIONS.get(theirs, theirs)


def rope(said: Settings, *, partial: bool = False) -> Options:
    """Our position for their rotary settings. ConfigError for what has no counterpart."""
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in SCALINGS:
        raise ConfigError(f"A rotary encoding here is one of {', '.join(SCALINGS)}, but this is {kind!r}.")
    name, options = SCALINGS[kind]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *options.values()}
    odd = {key: value for key, value in said.items() if key not in known and value is not None}
    if not partial and said.get("partial_rotary_factor", 1.0) != 1:
        odd["partial_rotary_factor"] = said["partial_rotary_factor"]
    if odd:
        key, value = next(iter(odd.items()))
        raise ConfigError(f"A rotary encoding of type {kind!r} has no {key} here, but this model sets {key}={value}.")
    chosen = {ours: said[theirs] for ours, theirs in options.items() if said.get(theirs) is not None}
    fraction = {"fraction": said["partial_rotary_factor"]} if said.get("partial_rotary_factor", 1.0) != 1 else {}
    return {"name": name, "theta": float(said["rope_theta"]), **fraction, **chosen}


def windowed(kinds: list[str], change: Options) -> list[Options]:
    """The rules of `model.layers` by which the layers that slide have `change`: as few slices as cover them."""
    waiting, rules, n = [layer for layer, kind in enumerate(kinds) if kind == SLIDING], [], len(kinds)
    while waiting:
        slices = [range(waiting[0], n, step) for step in range(1, n + 1)]
        taken = max((picked for picked in slices if set(picked) <= set(waiting)), key=len)
        rules.append({"at": f"{taken.start}::{taken.step}", **change})
        waiting = [layer for layer in waiting if layer not in taken]
    return rules


def settings_of(whole: Composition) -> Settings:
    """Every word that a class may have for what this composition is. A class takes those that it knows.

    It need not be right for a composition that no class has: whoever asks reads the words back, and compares.
    """
    first = whole["layers"][0]
    return {
        **_sizes(whole),
        **_attention(whole, first["attention"]),
        **_positions(whole),
        **_mlp(whole, first["mlp"]),
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), whole["norm"].get("eps", 1e-5)),
        "use_parallel_residual": first["block"]["name"] == "parallel",
        "residual_multiplier": first["block"].get("scale", 1.0),
        "embedding_multiplier": whole["embedding_scale"],
        "logits_scaling": 1 / whole["logit_scale"],
        "logit_scale": whole["logit_scale"],
        "final_logit_softcapping": whole["logit_softcap"],
    }


def _sizes(whole: Composition) -> Settings:
    names = {
        "vocab_size": ("vocab_size",),
        "block_size": ("n_positions", "max_position_embeddings"),
        "n_layer": ("n_layer", "num_hidden_layers"),
        "n_head": ("n_head", "num_attention_heads"),
        "n_embd": ("n_embd", "hidden_size"),
        "tie_weights": ("tie_word_embeddings",),
    }
    return {theirs: whole[ours] for ours, several in names.items() for theirs in several}


def _attention(whole: Composition, attention: Options) -> Settings:
    windows = [layer["attention"].get("window") for layer in whole["layers"]]
    scale = attention.get("scale") or 1.0
    return {
        "num_key_value_heads": attention.get("n_kv_head", whole["n_head"]),
        "head_dim": attention.get("head_size", whole["n_embd"] // whole["n_head"]),
        "attention_bias": bool(attention.get("bias")),
        "use_qkv_bias": bool(attention.get("bias")),
        **dict.fromkeys(("qk_layernorm", "use_qk_norm"), attention.get("qk_norm") is not None),
        "attention_multiplier": scale,
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": attention.get("softcap"),
        "clip_qkv": attention.get("clip"),
        "use_sliding_window": any(windows),
        "sliding_window": next(filter(None, windows), None),
        "layer_types": [SLIDING if window else FULL for window in windows],
    }


def _positions(whole: Composition) -> Settings:
    """Rotary settings in the words that all versions read; a class with two kinds of layers has two bases."""
    full, sliding = (
        [layer["position"] for layer in whole["layers"] if bool(layer["attention"].get("window")) is slides]
        for slides in (False, True)
    )
    position, near = (full or sliding)[0], (sliding or full)[0]
    theta, fraction = position.get("theta", 10000.0), position.get("fraction", 1.0)
    return {
        "rope_theta": theta,
        "rotary_emb_base": theta,
        "rope_local_base_freq": near.get("theta", 10000.0),
        "partial_rotary_factor": fraction,
        "rotary_pct": fraction,
        "rotary_dim": round(fraction * whole["n_embd"] / whole["n_head"]),
        "rope_scaling": _scaling(position),
    }


def _scaling(position: Options) -> Settings | None:
    kinds = {"yarn": "yarn", "llama3": "llama3", "rope": "linear" if position.get("factor", 1.0) != 1 else "default"}
    kind = kinds.get(position.get("name", ""), "default")
    words = {theirs: position[ours] for ours, theirs in SCALINGS[kind][1].items() if position[ours] is not None}
    return {"rope_type": kind, **words} if words else None


def _mlp(whole: Composition, mlp: Options) -> Settings:
    hidden = round(mlp.get("expand", 4.0) * whole["n_embd"])
    act = THEIR_ACTIVATIONS.get(mlp.get("activation", ""), "linear")
    return {
        **dict.fromkeys(("intermediate_size", "n_inner"), hidden),
        **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), act),
        "mlp_bias": bool(mlp.get("bias")),
    }
