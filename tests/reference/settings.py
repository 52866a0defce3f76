"""What the families share: sizes that take a blink, options by name, and settings that are nobody's default."""

from __future__ import annotations

from typing import Any

C, H, G, F, L = 32, 4, 2, 48, 3  # width, query heads, key heads, hidden size, layers
WINDOW = 7  # below the length of the text
MORE = 64  # positions that the reference is made for; gptlab's tables have as many
EPS = 1e-3  # of norms: nobody's default, and large enough to be seen

SIZES = {"n_layer": L, "n_head": H, "n_embd": C}
OLD = {**SIZES, "n_positions": MORE, "layer_norm_epsilon": EPS}
NEW = {"num_hidden_layers": L, "num_attention_heads": H, "hidden_size": C, "max_position_embeddings": MORE}
GROUPED = {
    **NEW, "num_key_value_heads": G, "intermediate_size": F, "tie_word_embeddings": False,
    "rms_norm_eps": EPS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
LAYERNORM, NO_BIAS = {"name": "layernorm", "eps": EPS}, {"name": "layernorm", "eps": EPS, "bias": False}
RMSNORM, PLUS_ONE = {"name": "rmsnorm", "eps": EPS}, {"name": "rmsnorm", "eps": EPS, "weight": "plus_one"}
CENTRED = {key: value for key, value in GROUPED.items() if key != "rms_norm_eps"} | {"layer_norm_eps": EPS}
SWIGLU = {"name": "glu", "activation": "silu", "expand": F / C}
GEGLU = {"name": "glu", "activation": "gelu_tanh", "expand": F / C}
LLAMA = {**SIZES, "attention": {"n_kv_head": G}, "position": "rope", "norm": RMSNORM, "mlp": SWIGLU}
RAMP = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.25}  # of YaRN: several pairs wide, with bounds between pairs
NO_SDPA: dict[str, Any] = {"kernels": ("math", "flex"), "implementations": ("eager",)}


def rope(theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    """Their setting of a rotary encoding."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}
