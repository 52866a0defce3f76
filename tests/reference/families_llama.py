"""Llama, and the dense families that followed its names."""

from __future__ import annotations

from gptlab.weights import names
from reference.harness import Family
from reference.settings import GEGLU, GROUPED, LLAMA, NO_SDPA, PLUS_ONE, RAMP, RMSNORM, WINDOW, C, F, G, rope


def llamas() -> list[Family]:
    """Llama, its ways to stretch RoPE, and what followed its wiring: Mistral, Qwen, OLMo, Granite."""
    attention = {"n_kv_head": G}
    windowed = [{"at": "2:", "attention": {"window": WINDOW}}]
    window = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
    stretched = {"factor": 4.0, "original_max_position_embeddings": 16}
    return [
        Family(
            "llama", "LlamaForCausalLM", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
            {**LLAMA, "bias": True, "attention": {**attention, "head_size": 12}}, names.llama(),
        ),
        Family(
            "llama_linear", "LlamaForCausalLM", {**GROUPED, **rope(rope_type="linear", factor=4.0)},
            {**LLAMA, "position": {"name": "rope", "factor": 4.0}}, names.llama(),
        ),
        Family(
            "llama_yarn", "LlamaForCausalLM",
            {**GROUPED, **rope(100.0, rope_type="yarn", original_max_position_embeddings=64, **RAMP)},
            {**LLAMA, "position": {"name": "yarn", "theta": 100.0, "original": 64, **RAMP}}, names.llama(),
        ),
        Family(
            "llama_3", "LlamaForCausalLM",
            {**GROUPED, **rope(rope_type="llama3", **stretched, low_freq_factor=1.0, high_freq_factor=4.0)},
            {**LLAMA, "position": {"name": "llama3", "factor": 4.0, "original": 16}}, names.llama(),
        ),
        Family(
            "arcee", "ArceeForCausalLM", {**GROUPED, "mlp_bias": True},
            {**LLAMA, "mlp": {"name": "plain", "activation": "relu2", "expand": F / C, "bias": True}},
            names.llama(gated=False),
        ),
        Family(
            "mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": WINDOW},
            {**LLAMA, "attention": {**attention, "window": WINDOW}}, names.llama(),
        ),
        Family(
            "qwen2", "Qwen2ForCausalLM", {**GROUPED, **window},
            {**LLAMA, "attention": {**attention, "bias": "qkv"}, "layers": windowed}, names.llama(),
        ),
        Family(
            "qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 12, **rope(1e6)},
            {
                **LLAMA, "attention": {**attention, "head_size": 12, "qk_norm": RMSNORM},
                "position": {"name": "rope", "theta": 1e6},
            },
            (*names.llama(), *names.qk_norm()),
        ),
        Family(
            "olmo", "OlmoForCausalLM", {**GROUPED, "clip_qkv": 0.8},
            {
                **LLAMA, "attention": {**attention, "clip": 0.8},
                "norm": {"name": "layernorm", "weight": False, "bias": False},
            },
            names.llama({}),
        ),
        Family(
            "olmo2", "Olmo2ForCausalLM", GROUPED,
            {
                **LLAMA, "block": "outnorm", "norm": RMSNORM,
                "attention": {**attention, "qk_norm": RMSNORM, "qk_norm_over": "projection"},
            },
            (*names.llama(names.OUT_NORM), *names.qk_norm(over_projection=True)),
        ),
        Family(
            "granite", "GraniteForCausalLM",
            {
                **GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.4,
                "attention_multiplier": 0.2,
            },
            {
                **LLAMA, "embedding_scale": 3.0, "logit_scale": 0.25, "block": {"name": "prenorm", "scale": 0.4},
                "attention": {**attention, "scale": 0.2},
            },
            names.llama(),
        ),
    ]  # fmt: skip


def gemmas() -> list[Family]:
    """Gemma, Gemma 2 with its bounds and windows, Gemma 3 with two bases of RoPE."""
    theirs = {**GROUPED, "head_dim": 12, "tie_word_embeddings": True}
    ours = {**LLAMA, "norm": PLUS_ONE, "mlp": GEGLU, "embedding_scale": "sqrt", "tie_weights": True}
    attention = {"n_kv_head": G, "head_size": 12}
    scaled = {**attention, "scale": 24**-0.5}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    windowed = {**theirs, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "layer_types": types}
    bases = {
        kind: {"rope_type": "default", "rope_theta": theta}
        for kind, theta in (("sliding_attention", 1e4), ("full_attention", 1e6))
    }
    return [
        Family("gemma", "GemmaForCausalLM", theirs, {**ours, "attention": attention}, names.llama()),
        Family(
            "gemma2", "Gemma2ForCausalLM", {**windowed, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
            {
                **ours, "block": "sandwich", "attention": {**scaled, "softcap": 2.0}, "logit_softcap": 3.0,
                "layers": [{"at": "::2", "attention": {"window": WINDOW}}],
            },
            names.llama(names.SANDWICH), **NO_SDPA,
        ),
        Family(
            "gemma3", "Gemma3ForCausalLM", {**windowed, "rope_parameters": bases},
            {
                **ours, "block": "sandwich", "attention": {**scaled, "qk_norm": PLUS_ONE},
                "position": {"name": "rope", "theta": 1e6},
                "layers": [{"at": "::2", "attention": {"window": WINDOW}, "position": {"theta": 1e4}}],
            },
            (*names.llama(names.SANDWICH), *names.qk_norm()),
        ),
    ]  # fmt: skip
