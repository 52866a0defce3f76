"""Mixtures of experts, latent attention, states of fixed size."""

from __future__ import annotations

from gptlab.weights import names
from reference.harness import Family
from reference.settings import (
    EPS,
    GROUPED,
    LLAMA,
    NO_SDPA,
    PLUS_ONE,
    RAMP,
    RMSNORM,
    SIZES,
    SWIGLU,
    WINDOW,
    C,
    F,
    G,
    H,
    L,
    rope,
)


def mixtures() -> list[Family]:
    """Mixtures of experts: Mixtral, Qwen 3, gpt-oss."""
    moe = {"name": "moe", "n_expert": 6, "top_k": 2, "expand": F / C}
    return [
        Family(
            "mixtral", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 6, "sliding_window": WINDOW},
            {**LLAMA, "norm": RMSNORM, "mlp": moe, "attention": {"n_kv_head": G, "window": WINDOW}},
            (*names.llama(), *names.moe()),
        ),
        Family(
            "qwen3_moe", "Qwen3MoeForCausalLM",
            {
                **GROUPED, "head_dim": 12, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                "norm_topk_prob": False, "mlp_only_layers": [0],
            },
            {
                **LLAMA, "mlp": {**moe, "top_k": 3, "expand": 16 / C, "renormalise": False},
                "attention": {"n_kv_head": G, "head_size": 12, "qk_norm": RMSNORM},
                "layers": [{"at": "0", "mlp": SWIGLU}],
            },
            (*names.llama(), *names.qk_norm(), *names.moe()),
        ),
        *deepseek(),
        Family(
            "gpt_oss", "GptOssForCausalLM",
            {
                **GROUPED, "head_dim": 12, "sliding_window": WINDOW, "num_local_experts": 6, "swiglu_limit": 0.7,
                "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                **rope(100.0, rope_type="yarn", original_max_position_embeddings=64, truncate=False, **RAMP),
            },
            {
                **LLAMA, "norm": RMSNORM,
                "position": {"name": "yarn", "theta": 100.0, "original": 64, "truncate": False, **RAMP},
                "attention": {"n_kv_head": G, "head_size": 12, "sinks": True, "bias": True},
                "mlp": {
                    **moe, "activation": "quick_gelu", "limit": 0.7, "offset": 1.0, "bias": True, "router_bias": True,
                },
                "layers": [{"at": "::2", "attention": {"window": WINDOW}}],
            },
            names.gpt_oss(n_hidden=F), **NO_SDPA,
        ),
    ]  # fmt: skip


def deepseek() -> list[Family]:
    """DeepSeek-V3, latent queries and YaRN; and as V2 Lite, without either."""
    theirs = {
        **GROUPED, "num_key_value_heads": H, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
    }  # fmt: skip
    yarn = {**RAMP, "mscale": 0.8, "mscale_all_dim": 0.5}
    latent = {"name": "latent", "kv_rank": 16, "nope_size": 8, "rope_size": 4, "value_size": 12}
    ours = {
        **LLAMA, "attention": {**latent, "latent_norm": {"name": "rmsnorm", "eps": 1e-6}},
        "position": {"name": "rope", "layout": "interleaved"}, "layers": [{"at": "0", "mlp": SWIGLU}],
        "mlp": {
            "name": "moe", "n_expert": 8, "top_k": 3, "expand": 16 / C, "router": "sigmoid", "scale": 1.5,
            "n_group": 4, "top_group": 2, "n_shared": 2, "balance": "bias",
        },
    }  # fmt: skip
    return [
        Family(
            "deepseek_v3", "DeepseekV3ForCausalLM",
            {**theirs, **rope(100.0, rope_type="yarn", original_max_position_embeddings=64, **yarn)},
            {
                **ours, "attention": {**ours["attention"], "q_rank": 20},
                "position": {"name": "yarn", "layout": "interleaved", "theta": 100.0, "original": 64, **yarn},
            },
            names.deepseek(latent_queries=True),
        ),
        Family(
            "deepseek_plain", "DeepseekV3ForCausalLM", {**theirs, "q_lora_rank": None}, ours,
            names.deepseek(latent_queries=False),
        ),
    ]  # fmt: skip


def states() -> list[Family]:
    """States of fixed size: Mamba-2, and Qwen3-Next, which has an attention among them."""
    return [
        Family(
            "mamba2", "Mamba2ForCausalLM",
            {
                "num_hidden_layers": L, "hidden_size": C, "num_heads": 8, "head_dim": 8, "state_size": 12,
                "n_groups": 2, "chunk_size": 8, "layer_norm_epsilon": EPS, "tie_word_embeddings": False,
            },
            {
                **SIZES, "position": "none", "mlp": "none", "norm": RMSNORM,
                "attention": {"name": "mamba2", "state_size": 12, "head_size": 8, "n_group": 2, "eps": EPS},
            },
            names.mamba2(), kernels=(None,), implementations=("eager",), cache="cache_params",
        ),
        Family(
            "qwen3_next", "Qwen3NextForCausalLM",
            {
                **GROUPED, "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                "linear_num_value_heads": 4, "linear_value_head_dim": 12, "num_experts": 6, "num_experts_per_tok": 2,
                "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
                **rope(partial_rotary_factor=0.25),
            },
            {
                **LLAMA, "n_layer": 4, "norm": PLUS_ONE, "position": {"name": "rope", "fraction": 0.25},
                "attention": {"n_kv_head": G, "head_size": 16, "gate": "element", "qk_norm": PLUS_ONE},
                "mlp": {
                    "name": "moe", "n_expert": 6, "top_k": 2, "expand": 16 / C, "n_shared": 1, "shared_gate": True,
                },
                "layers": [{"at": "0:3", "position": "none", "attention": {
                    "name": "gated_delta", "n_key_head": 2, "n_value_head": 4, "key_size": 8, "value_size": 12,
                    "eps": EPS,
                }}],
            },
            names.qwen3_next(n_head=H, n_key_head=2, linear=(0, 1, 2), full=(3,)),
        ),
    ]  # fmt: skip
