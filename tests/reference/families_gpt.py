"""The families before Llama's names: positions in tables, slopes, both sublayers at once."""

from __future__ import annotations

from typing import Any

from gptlab.weights import names
from reference.harness import Family
from reference.settings import CENTRED, EPS, LAYERNORM, LLAMA, MORE, NEW, NO_BIAS, OLD, SIZES, C, F, G, H, L, rope


def gelu(bias: bool | None = None) -> dict[str, Any]:
    """The MLP with the exact GELU."""
    return {"name": "plain", "activation": "gelu", "bias": bias}


def tanh_gelu(bias: bool | None = None) -> dict[str, Any]:
    """The MLP with the GELU of GPT-2."""
    return {"name": "plain", "activation": "gelu_tanh", "bias": bias}


def learned() -> list[Family]:
    """Positions learned in a table: GPT-1, GPT-2, GPT-BigCode, OPT."""
    ours = {**SIZES, "block_size": MORE, "bias": True, "position": "learned", "norm": LAYERNORM, "mlp": tanh_gelu()}
    opt = {**NEW, "ffn_dim": F}
    relu = {"name": "plain", "activation": "relu", "expand": F / C}
    ours_opt = {**ours, "norm": "layernorm", "mlp": relu, "tie_weights": True}  # its norms have no option
    return [
        Family("gpt2", "GPT2LMHeadModel", OLD, {**ours, "tie_weights": True}, names.gpt2()),
        Family("gpt2_untied", "GPT2LMHeadModel", {**OLD, "tie_word_embeddings": False}, ours, names.gpt2()),
        Family(
            "openai_gpt", "OpenAIGPTLMHeadModel", {**OLD, "tie_word_embeddings": False}, {**ours, "block": "postnorm"},
            names.openai_gpt(), implementations=("eager",), cache=None,
        ),
        Family(
            "gpt_bigcode", "GPTBigCodeForCausalLM", OLD, {**ours, "tie_weights": True, "attention": {"n_kv_head": 1}},
            names.gpt2(transposed=False),
        ),
        Family(
            "opt", "OPTForCausalLM", opt, ours_opt,
            names.opt(attention_norm=names.BEFORE_ATTENTION, mlp_norm=names.BEFORE_MLP),
        ),
        Family(
            "opt_350m", "OPTForCausalLM", {**opt, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
            {**ours_opt, "block": "postnorm", "embedding_size": 24},
            names.opt(attention_norm=names.AFTER_ATTENTION, mlp_norm=names.AFTER_MLP),
        ),
    ]  # fmt: skip


def sloped() -> list[Family]:
    """ALiBi: Bloom, MPT."""
    bloom = {"hidden_size": C, "n_layer": L, "n_head": H, "layer_norm_epsilon": EPS}
    mpt = {"d_model": 48, "n_heads": 6, "n_layers": L, "max_seq_len": MORE, "layer_norm_epsilon": EPS}
    ours = {**SIZES, "position": "alibi", "tie_weights": True}
    ours_mpt = {**ours, "n_head": 6, "n_embd": 48, "norm": NO_BIAS, "mlp": gelu()}
    return [
        Family(
            "bloom", "BloomForCausalLM", bloom,
            {**ours, "bias": True, "norm": LAYERNORM, "embedding_norm": LAYERNORM, "mlp": tanh_gelu()},
            names.bloom(n_head=H), implementations=("eager",),
        ),
        Family(  # transformers takes no notice of alibi_bias_max
            "mpt", "MptForCausalLM", {**mpt, "attn_config": {"clip_qkv": 0.8}},
            {**ours_mpt, "attention": {"clip": 0.8}}, names.mpt(), implementations=("eager",),
        ),
    ]  # fmt: skip


def falcons() -> list[Family]:
    """Falcon: one key head, groups of heads, and none of that with ALiBi."""
    theirs = {**NEW, "tie_word_embeddings": True, "layer_norm_epsilon": EPS}
    sequential = {**theirs, "multi_query": False, "parallel_attn": False, "bias": True}
    ours = {**SIZES, "tie_weights": True, "position": "rope", "norm": LAYERNORM, "mlp": gelu()}
    pre = {names.BEFORE_ATTENTION: "input_layernorm", names.BEFORE_MLP: "post_attention_layernorm"}
    one, two = {names.PARALLEL: "input_layernorm"}, {names.PARALLEL: "ln_attn", names.PARALLEL_MLP: "ln_mlp"}
    return [
        Family(
            "falcon_7b", "FalconForCausalLM", theirs, {**ours, "block": "parallel", "attention": {"n_kv_head": 1}},
            names.falcon(n_kv_head=1, norms=one),
        ),
        Family(
            "falcon_40b", "FalconForCausalLM", {**theirs, "new_decoder_architecture": True, "num_kv_heads": G},
            {**ours, "block": {"name": "parallel", "two_norms": True}, "attention": {"n_kv_head": G}},
            names.falcon(n_kv_head=G, norms=two),
        ),
        Family(
            "falcon_sequential", "FalconForCausalLM", sequential, {**ours, "bias": True},
            names.falcon(n_kv_head=H, norms=pre),
        ),
        Family(  # with eager, transformers adds the slopes twice: once by themselves, once in the mask
            "falcon_rw", "FalconForCausalLM", {**sequential, "alibi": True},
            {**ours, "bias": True, "position": {"name": "alibi", "scale": (C / H) ** -0.5}},
            names.falcon(n_kv_head=H, norms=pre), implementations=("sdpa",),
        ),
    ]  # fmt: skip


def parallel() -> list[Family]:
    """Attention and MLP at once, a part of each head turned: GPT-J, GPT-NeoX, Phi, StableLM, Cohere."""
    half = {"name": "rope", "fraction": 0.5}
    ours = {**SIZES, "bias": True, "position": half, "norm": LAYERNORM, "block": "parallel", "mlp": tanh_gelu()}
    ours_neox = {**ours, "mlp": {**gelu(), "expand": F / C}}
    neox = {**NEW, "layer_norm_eps": EPS, "intermediate_size": F, **rope(partial_rotary_factor=0.5)}
    return [
        Family(
            "gptj", "GPTJForCausalLM", {**OLD, "rotary_dim": 4},
            {
                **ours, "bias": False, "head_bias": True, "mlp": tanh_gelu(bias=True),
                "position": {**half, "layout": "interleaved"},
            },
            names.gptj(), implementations=("eager",),
        ),
        Family(
            "gpt_neox", "GPTNeoXForCausalLM", neox, {**ours_neox, "block": {"name": "parallel", "two_norms": True}},
            names.gpt_neox(n_head=H, attention_norm=names.PARALLEL, mlp_norm=names.PARALLEL_MLP),
        ),
        Family(
            "gpt_neox_sequential", "GPTNeoXForCausalLM", {**neox, "use_parallel_residual": False},
            {**ours_neox, "block": "prenorm"},
            names.gpt_neox(n_head=H, attention_norm=names.BEFORE_ATTENTION, mlp_norm=names.BEFORE_MLP),
        ),
        Family(
            "phi", "PhiForCausalLM", {**CENTRED, "qk_layernorm": True, **rope(partial_rotary_factor=0.5)},
            {
                **ours, "head_bias": True, "attention": {"n_kv_head": G, "qk_norm": LAYERNORM},
                "mlp": {**tanh_gelu(), "expand": F / C},
            },
            names.phi(),
        ),
        *stablelm(), *cohere(),
    ]  # fmt: skip


def stablelm() -> list[Family]:
    """StableLM: sequential with biases of q, k and v; parallel with a norm for each head."""
    theirs = {**CENTRED, **rope(partial_rotary_factor=0.5)}
    ours = {**LLAMA, "position": {"name": "rope", "fraction": 0.5}, "norm": LAYERNORM}
    attention = {"n_kv_head": G, "qk_norm": NO_BIAS, "qk_norm_over": "heads"}
    return [
        Family(
            "stablelm", "StableLmForCausalLM", {**theirs, "use_qkv_bias": True},
            {**ours, "attention": {"n_kv_head": G, "bias": "qkv"}}, names.llama(),
        ),
        Family(
            "stablelm_2", "StableLmForCausalLM", {**theirs, "qk_layernorm": True, "use_parallel_residual": True},
            {**ours, "block": "parallel", "attention": attention},
            (*names.llama({names.PARALLEL: "input_layernorm"}), *names.qk_norm_of_stablelm()),
        ),
    ]  # fmt: skip


def cohere() -> list[Family]:
    """Command R, and Command R+ with a norm for each head."""
    theirs = {**CENTRED, "tie_word_embeddings": True, "logit_scale": 0.25}
    ours = {
        **LLAMA, "position": {"name": "rope", "layout": "interleaved"}, "norm": NO_BIAS, "block": "parallel",
        "tie_weights": True, "logit_scale": 0.25,
    }  # fmt: skip
    table = names.llama({names.PARALLEL: "input_layernorm"})
    return [
        Family("cohere", "CohereForCausalLM", theirs, ours, table),
        Family(
            "cohere_plus", "CohereForCausalLM", {**theirs, "use_qk_norm": True},
            {**ours, "attention": {"n_kv_head": G, "qk_norm": NO_BIAS, "qk_norm_over": "heads"}},
            (*table, *names.qk_norm_of_cohere(n_head=H, n_kv_head=G)),
        ),
    ]  # fmt: skip
