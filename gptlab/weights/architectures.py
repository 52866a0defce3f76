"""gptlab's options for the settings of each architecture of transformers: what a config.json means here.

A setting that is not read here must have its default: families.py holds every import to that.
"""

from __future__ import annotations

from typing import Any

from gptlab.weights.settings import FULL, SLIDING, Options, Settings, activation, rope, windowed


def gpt2(said: Settings) -> Options:
    """GPT-2. Radford et al. 2019."""
    width = said["n_embd"]
    hidden = said["n_inner"] or 4 * width
    return {
        "vocab_size": said["vocab_size"],
        "block_size": said["n_positions"],
        "n_layer": said["n_layer"],
        "n_head": said["n_head"],
        "n_embd": width,
        "tie_weights": said["tie_word_embeddings"],
        "bias": True,
        "attention": "softmax",
        "position": "learned",
        "norm": {"name": "layernorm", "eps": said["layer_norm_epsilon"]},
        "mlp": {"name": "plain", "activation": activation(said["activation_function"]), "expand": hidden / width},
        "block": "prenorm",
    }


def gpt_neox(said: Settings) -> Options:
    """GPT-NeoX, Pythia. Black et al. 2022, arXiv:2204.06745."""
    block = {"name": "parallel", "two_norms": True} if said["use_parallel_residual"] else "prenorm"
    return {
        **_sizes(said),
        "bias": True,
        "attention": {"name": "softmax", "bias": said["attention_bias"]},
        "position": rope(said["rope_parameters"], partial=True),
        "norm": {"name": "layernorm", "eps": said["layer_norm_eps"]},
        "mlp": {"name": "plain", "activation": activation(said["hidden_act"]), "expand": _expand(said)},
        "block": block,
    }


def gptj(said: Settings) -> Options:
    """GPT-J: a part of each head turns, neighbours in pairs. Wang and Komatsuzaki 2021."""
    options = gpt2(said)
    fraction = said["rotary_dim"] * said["n_head"] / said["n_embd"]
    return options | {
        "bias": False,
        "head_bias": True,
        "position": {"name": "rope", "fraction": fraction, "layout": "interleaved"},
        "mlp": options["mlp"] | {"bias": True},
        "block": "parallel",
    }


def phi(said: Settings) -> Options:
    """Phi: one norm before both sublayers. Li et al. 2023, arXiv:2309.05463."""
    options = gpt_neox({**said, "use_parallel_residual": False, "attention_bias": True})
    qk_norm = options["norm"] if said["qk_layernorm"] else None
    more = {"head_bias": True, "block": "parallel"}
    return _attending(options, n_kv_head=said["num_key_value_heads"], qk_norm=qk_norm) | more


def llama(said: Settings, *, partial: bool = False) -> Options:
    """Llama. Touvron et al. 2023, arXiv:2302.13971."""
    return {
        **_sizes(said),
        "attention": {
            "name": "softmax",
            "n_kv_head": said["num_key_value_heads"],
            "head_size": said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"],
            "bias": said.get("attention_bias", False),
        },
        "position": rope(said["rope_parameters"], partial=partial),
        "norm": {"name": "rmsnorm", "eps": said["rms_norm_eps"]},
        "mlp": {
            "name": "glu",
            "activation": activation(said.get("hidden_activation") or said["hidden_act"]),
            "expand": _expand(said),
            "bias": said.get("mlp_bias", False),
        },
        "block": "prenorm",
    }


def arcee(said: Settings) -> Options:
    """Arcee: Llama with an MLP that has no gate. Arcee AI 2025, AFM-4.5B."""
    options = llama(said)
    return options | {"mlp": options["mlp"] | {"name": "plain"}}


def mistral(said: Settings) -> Options:
    """Mistral: all layers slide. Jiang et al. 2023, arXiv:2310.06825."""
    return _attending(llama(said), window=said["sliding_window"])


def qwen2(said: Settings) -> Options:
    """Qwen 2: biases of q, k and v. Yang et al. 2024, arXiv:2407.10671."""
    return _attending(llama(said), bias="qkv") | _sliding(said)


def qwen3(said: Settings) -> Options:
    """Qwen 3: norms of q and k. Yang et al. 2025, arXiv:2505.09388."""
    options = llama(said)
    return _attending(options, qk_norm=options["norm"]) | _sliding(said)


def olmo(said: Settings) -> Options:
    """OLMo: norms without weights, bounded q, k and v. Groeneveld et al. 2024, arXiv:2402.00838."""
    options = llama({**said, "rms_norm_eps": 1e-5})
    norm = {"name": "layernorm", "weight": False, "bias": False, "eps": 1e-5}
    return _attending(options, clip=said["clip_qkv"]) | {"norm": norm}


def olmo2(said: Settings) -> Options:
    """OLMo 2: norms on what is added, and of whole projections. OLMo team 2025, arXiv:2501.00656."""
    options = llama(said)
    return _attending(options, qk_norm=options["norm"], qk_norm_over="projection") | {"block": "outnorm"}


def stablelm(said: Settings) -> Options:
    """StableLM: centred norms, a part of each head turns. Bellagente et al. 2024, arXiv:2402.17834."""
    options = llama({**said, "rms_norm_eps": said["layer_norm_eps"]}, partial=True)
    norm = {"name": "layernorm", "eps": said["layer_norm_eps"]}
    attention = {"bias": "qkv" if said["use_qkv_bias"] else False, **_norms_of_heads(said["qk_layernorm"], norm)}
    block = "parallel" if said["use_parallel_residual"] else "prenorm"
    return _attending(options, **attention) | {"norm": norm, "block": block}


def cohere(said: Settings) -> Options:
    """Command R: norms without biases, neighbours turn in pairs. Cohere 2024."""
    options = llama({**said, "rms_norm_eps": said["layer_norm_eps"]})
    norm = {"name": "layernorm", "eps": said["layer_norm_eps"], "bias": False}
    return _attending(options, **_norms_of_heads(said["use_qk_norm"], norm)) | {
        "position": options["position"] | {"layout": "interleaved"},
        "norm": norm,
        "logit_scale": float(said["logit_scale"]),
        "block": "parallel",
    }


def granite(said: Settings) -> Options:
    """Granite: four fixed factors. IBM 2024, arXiv:2408.13359."""
    return _attending(llama(said), scale=float(said["attention_multiplier"])) | {
        "embedding_scale": float(said["embedding_multiplier"]),
        "logit_scale": 1 / said["logits_scaling"],
        "block": {"name": "prenorm", "scale": float(said["residual_multiplier"])},
    }


def gemma(said: Settings) -> Options:
    """Gemma: scaled embeddings, gains about 0. Gemma team 2024, arXiv:2403.08295."""
    norm = {"name": "rmsnorm", "weight": "plus_one", "eps": said["rms_norm_eps"]}
    return llama(said) | {"norm": norm, "embedding_scale": "sqrt"}


def gemma2(said: Settings) -> Options:
    """Gemma 2: sandwiches, bounds, every other layer slides. Gemma team 2024, arXiv:2408.00118."""
    scale, softcap = said["query_pre_attn_scalar"] ** -0.5, said["attn_logit_softcapping"]
    options = _attending(gemma(said), scale=scale, softcap=softcap) | _sliding(said)
    return options | {"block": "sandwich", "logit_softcap": said["final_logit_softcapping"]}


def gemma3(said: Settings) -> Options:
    """Gemma 3 text: norms of q and k, and a base of its own where a layer slides. Gemma team 2025, arXiv:2503.19786."""
    bases = said["rope_parameters"]
    options = gemma2({**said, "rope_parameters": bases[FULL]})
    near = _sliding(said, position={"factor": 1.0, **rope(bases[SLIDING])})  # else that of the others would stay
    return _attending(options, qk_norm=options["norm"]) | near


def _sizes(said: Settings) -> Options:
    return {
        "vocab_size": said["vocab_size"],
        "block_size": said["max_position_embeddings"],
        "n_layer": said["num_hidden_layers"],
        "n_head": said["num_attention_heads"],
        "n_embd": said["hidden_size"],
        "tie_weights": said["tie_word_embeddings"],
    }


def _expand(said: Settings) -> float:
    return said["intermediate_size"] / said["hidden_size"]


def _attending(options: Options, **more: Any) -> Options:
    return options | {"attention": options["attention"] | more}


def _norms_of_heads(has: bool, norm: Options) -> Options:
    """Norms of q and k with weights for each head and no biases, where there are any."""
    return {"qk_norm": norm | {"bias": False}, "qk_norm_over": "heads"} if has else {}


def _sliding(said: Settings, **more: Any) -> Options:
    return {"layers": windowed(said["layer_types"], {"attention": {"window": said["sliding_window"]}, **more})}
