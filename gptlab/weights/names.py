"""The tables of names, one for each architecture of transformers; what differs inside one is given to its function."""

from __future__ import annotations

from dataclasses import replace

from gptlab.weights.table import Row

A, M = "blocks.{i}.attention", "blocks.{i}.mlp"
QKV = (f"{A}.q", f"{A}.k", f"{A}.v")
BEFORE_ATTENTION, BEFORE_MLP = "blocks.{i}.attention_norms.before", "blocks.{i}.mlp_norms.before"
AFTER_ATTENTION, AFTER_MLP = "blocks.{i}.attention_norms.after", "blocks.{i}.mlp_norms.after"
OUT_OF_ATTENTION, OUT_OF_MLP = "blocks.{i}.attention_norms.out", "blocks.{i}.mlp_norms.out"
PARALLEL, PARALLEL_MLP = "blocks.{i}.norm", "blocks.{i}.mlp_norm"
Table = tuple[Row, ...]


def ends(embedding: str, norm: str, head: str = "lm_head") -> Table:
    """Embedding, last norm and head."""
    return Row("token_embedding", embedding), Row("norm", norm), Row("head", head)


def gpt2(*, transposed: bool = True) -> Table:
    """GPT-2, whose matrices are (in, out); GPT-BigCode, whose are not."""
    layer = "transformer.h.{i}"
    return (
        *ends("transformer.wte", "transformer.ln_f"),
        Row("position.table", "transformer.wpe"),
        Row(BEFORE_ATTENTION, f"{layer}.ln_1"),
        Row(QKV, f"{layer}.attn.c_attn", transposed=transposed),
        Row(f"{A}.proj", f"{layer}.attn.c_proj", transposed=transposed),
        Row(BEFORE_MLP, f"{layer}.ln_2"),
        Row(f"{M}.up", f"{layer}.mlp.c_fc", transposed=transposed),
        Row(f"{M}.proj", f"{layer}.mlp.c_proj", transposed=transposed),
    )


def openai_gpt() -> Table:
    """GPT-1."""
    layer = "transformer.h.{i}"
    return (
        Row("token_embedding", "transformer.tokens_embed"),
        Row("position.table", "transformer.positions_embed"),
        Row("head", "lm_head"),
        Row(QKV, f"{layer}.attn.c_attn", transposed=True),
        Row(f"{A}.proj", f"{layer}.attn.c_proj", transposed=True),
        Row(AFTER_ATTENTION, f"{layer}.ln_1"),
        Row(f"{M}.up", f"{layer}.mlp.c_fc", transposed=True),
        Row(f"{M}.proj", f"{layer}.mlp.c_proj", transposed=True),
        Row(AFTER_MLP, f"{layer}.ln_2"),
    )


def opt(*, attention_norm: str, mlp_norm: str) -> Table:
    """OPT, with its norms where they are; its first two positions are padding's."""
    layer = "model.decoder.layers.{i}"
    return (
        *ends("model.decoder.embed_tokens", "model.decoder.final_layer_norm"),
        Row("embedding_proj", "model.decoder.project_in"),
        Row("head_proj", "model.decoder.project_out"),
        Row("position.table", "model.decoder.embed_positions", skip=2),
        *same(A, f"{layer}.self_attn", q="q_proj", k="k_proj", v="v_proj", proj="out_proj"),
        Row(attention_norm, f"{layer}.self_attn_layer_norm"),
        *same(M, layer, up="fc1", proj="fc2"),
        Row(mlp_norm, f"{layer}.final_layer_norm"),
    )


def bloom(*, n_head: int) -> Table:
    """Bloom: q, k and v take turns, head by head."""
    layer = "transformer.h.{i}"
    return (
        *ends("transformer.word_embeddings", "transformer.ln_f"),
        Row("embedding_norm", "transformer.word_embeddings_layernorm"),
        Row(BEFORE_ATTENTION, f"{layer}.input_layernorm"),
        Row(QKV, f"{layer}.self_attention.query_key_value", groups=n_head),
        Row(f"{A}.proj", f"{layer}.self_attention.dense"),
        Row(BEFORE_MLP, f"{layer}.post_attention_layernorm"),
        *same(M, f"{layer}.mlp", up="dense_h_to_4h", proj="dense_4h_to_h"),
    )


def mpt() -> Table:
    """MPT."""
    layer = "transformer.blocks.{i}"
    return (
        *ends("transformer.wte", "transformer.norm_f"),
        Row(BEFORE_ATTENTION, f"{layer}.norm_1"),
        Row(QKV, f"{layer}.attn.Wqkv"),
        Row(f"{A}.proj", f"{layer}.attn.out_proj"),
        Row(BEFORE_MLP, f"{layer}.norm_2"),
        *same(M, f"{layer}.ffn", up="up_proj", proj="down_proj"),
    )


def falcon(*, n_kv_head: int, norms: dict[str, str]) -> Table:
    """Falcon: the queries of a group, its key and its value, group by group."""
    layer = "transformer.h.{i}"
    return (
        *ends("transformer.word_embeddings", "transformer.ln_f"),
        *(Row(ours, f"{layer}.{theirs}") for ours, theirs in norms.items()),
        Row(QKV, f"{layer}.self_attention.query_key_value", groups=n_kv_head),
        Row(f"{A}.proj", f"{layer}.self_attention.dense"),
        *same(M, f"{layer}.mlp", up="dense_h_to_4h", proj="dense_4h_to_h"),
    )


def gptj() -> Table:
    """GPT-J."""
    layer = "transformer.h.{i}"
    return (
        *ends("transformer.wte", "transformer.ln_f"),
        Row(PARALLEL, f"{layer}.ln_1"),
        *same(A, f"{layer}.attn", q="q_proj", k="k_proj", v="v_proj", proj="out_proj"),
        *same(M, f"{layer}.mlp", up="fc_in", proj="fc_out"),
    )


def gpt_neox(*, n_head: int, attention_norm: str, mlp_norm: str, head: str = "lm_head") -> Table:
    """GPT-NeoX: q, k and v take turns, head by head; in files the head has another name than in the class."""
    layer = "gpt_neox.layers.{i}"
    return (
        *ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", head),
        Row(attention_norm, f"{layer}.input_layernorm"),
        Row(QKV, f"{layer}.attention.query_key_value", groups=n_head),
        Row(f"{A}.proj", f"{layer}.attention.dense"),
        Row(mlp_norm, f"{layer}.post_attention_layernorm"),
        *same(M, f"{layer}.mlp", up="dense_h_to_4h", proj="dense_4h_to_h"),
    )


def phi() -> Table:
    """Phi."""
    layer = "model.layers.{i}"
    return (
        *ends("model.embed_tokens", "model.final_layernorm"),
        Row(PARALLEL, f"{layer}.input_layernorm"),
        *same(
            A, f"{layer}.self_attn", q="q_proj", k="k_proj", v="v_proj", proj="dense",
            q_norm="q_layernorm", k_norm="k_layernorm",
        ),
        *same(M, f"{layer}.mlp", up="fc1", proj="fc2"),
    )  # fmt: skip


PRE_NORM = {BEFORE_ATTENTION: "input_layernorm", BEFORE_MLP: "post_attention_layernorm"}
ONE_NORM = {PARALLEL: "input_layernorm"}
OUT_NORM = {OUT_OF_ATTENTION: "post_attention_layernorm", OUT_OF_MLP: "post_feedforward_layernorm"}
SANDWICH = {BEFORE_ATTENTION: "input_layernorm", BEFORE_MLP: "pre_feedforward_layernorm", **OUT_NORM}


def llama(norms: dict[str, str] = PRE_NORM, *, gated: bool = True) -> Table:
    """Llama, and what followed its names; `norms` are those of a layer."""
    layer = "model.layers.{i}"
    return (
        *ends("model.embed_tokens", "model.norm"),
        *(Row(ours, f"{layer}.{theirs}") for ours, theirs in norms.items()),
        *same(A, f"{layer}.self_attn", q="q_proj", k="k_proj", v="v_proj", proj="o_proj"),
        *(swiglu if gated else ungated)(M, f"{layer}.mlp"),
    )


def qk_norm(*, over_projection: bool = False) -> Table:
    """Norms of q and k, of each head or of all at once."""
    inner = ".norm" if over_projection else ""
    return tuple(Row(f"{A}.{x}_norm{inner}", f"model.layers.{{i}}.self_attn.{x}_norm") for x in "qk")


def qk_norm_of_stablelm() -> Table:
    """StableLM's norms of q and k: weights for each head."""
    return tuple(
        Row(f"{A}.{x}_norm.norms.{{h}}", f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{h}}") for x in "qk"
    )


def qk_norm_of_cohere(*, n_head: int, n_kv_head: int) -> Table:
    """Cohere's norms of q and k: one matrix holds the weights of all heads."""
    counts = {"q": n_head, "k": n_kv_head}
    return tuple(
        Row(
            tuple(f"{A}.{x}_norm.norms.{head}" for head in range(n)),
            f"model.layers.{{i}}.self_attn.{x}_norm",
            stacked=True,
        )
        for x, n in counts.items()
    )


def moe() -> Table:
    """Experts as transformers stacks them: gate and up side by side."""
    mlp = "model.layers.{i}.mlp"
    branches = (f"{M}.experts.branches.gate.weight", f"{M}.experts.branches.up.weight")
    return (
        Row(f"{M}.router.linear", f"{mlp}.gate"),
        Row(branches, f"{mlp}.experts.gate_up_proj", dim=1),
        Row(f"{M}.experts.proj.weight", f"{mlp}.experts.down_proj"),
    )


def deepseek(*, latent_queries: bool) -> Table:
    """DeepSeek-V3: queries, keys and values from latents; some layers dense, the others mixtures."""
    queries = {"q.0": "q_a_proj", "q.1": "q_a_layernorm", "q.2": "q_b_proj"} if latent_queries else {"q": "q_proj"}
    latents = {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "proj": "o_proj"}
    layer = "model.layers.{i}"
    return (
        *ends("model.embed_tokens", "model.norm"),
        *(Row(ours, f"{layer}.{theirs}") for ours, theirs in PRE_NORM.items()),
        *same(A, f"{layer}.self_attn", **queries, **latents),
        *swiglu(M, f"{layer}.mlp"),
        *moe(),
        *swiglu(f"{M}.shared", f"{layer}.mlp.shared_experts"),
        Row(f"{M}.router.balance.bias", f"{layer}.mlp.gate.e_score_correction_bias"),
    )


def gpt_oss(*, n_hidden: int) -> Table:
    """gpt-oss: experts are (in, out), gate and up take turns unit by unit."""
    mlp = "model.layers.{i}.mlp"
    branches = [f"{M}.experts.branches.{branch}" for branch in ("gate", "up")]
    weights, biases = (tuple(f"{branch}.{leaf}" for branch in branches) for leaf in ("weight", "bias"))
    return (
        *llama(),
        Row(f"{A}.sinks", "model.layers.{i}.self_attn.sinks"),
        Row(f"{M}.router.linear", f"{mlp}.router"),
        Row(weights, f"{mlp}.experts.gate_up_proj", transposed=True, dim=1, groups=n_hidden),
        Row(biases, f"{mlp}.experts.gate_up_proj_bias", dim=1, groups=n_hidden),
        Row(f"{M}.experts.proj.weight", f"{mlp}.experts.down_proj", transposed=True),
        Row(f"{M}.experts.proj.bias", f"{mlp}.experts.down_proj_bias"),
    )


def mamba2() -> Table:
    """Mamba-2."""
    layer = "backbone.layers.{i}"
    return (
        *ends("backbone.embeddings", "backbone.norm_f"),
        Row(BEFORE_ATTENTION, f"{layer}.norm"),
        *same(A, f"{layer}.mixer", in_proj="in_proj", conv="conv1d", D="D", norm="norm", proj="out_proj"),
        *same(f"{A}.step", f"{layer}.mixer", A_log="A_log", dt_bias="dt_bias"),
    )


def qwen3_next(*, n_head: int, n_key_head: int, linear: tuple[int, ...], full: tuple[int, ...]) -> Table:
    """Qwen3-Next: a gate beside each head's query; in `linear` layers q, k, v, z and b, a take turns by key head."""
    layer = "model.layers.{i}"
    attention = (
        Row((f"{A}.q", f"{A}.gate.linear"), f"{layer}.self_attn.q_proj", groups=n_head),
        *same(A, f"{layer}.self_attn", k="k_proj", v="v_proj", proj="o_proj", q_norm="q_norm", k_norm="k_norm"),
    )
    delta = (
        Row((*QKV, f"{A}.z"), f"{layer}.linear_attn.in_proj_qkvz", groups=n_key_head),
        Row((f"{A}.b", f"{A}.a"), f"{layer}.linear_attn.in_proj_ba", groups=n_key_head),
        *same(A, f"{layer}.linear_attn", conv="conv1d", norm="norm", proj="out_proj"),
        *same(f"{A}.step", f"{layer}.linear_attn", A_log="A_log", dt_bias="dt_bias"),
    )
    return (
        *ends("model.embed_tokens", "model.norm"),
        *(Row(ours, f"{layer}.{theirs}") for ours, theirs in PRE_NORM.items()),
        *of_layers(attention, full),
        *of_layers(delta, linear),
        *moe(),
        *swiglu(f"{M}.shared.mlp", f"{layer}.mlp.shared_expert"),
        Row(f"{M}.shared.gate", f"{layer}.mlp.shared_expert_gate"),
    )


def of_layers(table: Table, layers: tuple[int, ...]) -> Table:
    """A table for some layers alone, where others have another."""
    return tuple(
        replace(row, ours=tuple(part.format(i=i) for part in row.parts), theirs=row.theirs.format(i=i))
        for row in table
        for i in layers
    )


def swiglu(ours: str, theirs: str) -> Table:
    """A gated MLP in Llama's names."""
    return same(ours, theirs, gate="gate_proj", up="up_proj", proj="down_proj")


def ungated(ours: str, theirs: str) -> Table:
    """The same without a gate."""
    return same(ours, theirs, up="up_proj", proj="down_proj")


def same(ours: str, theirs: str, **names: str) -> Table:
    """Rows of tensors that are alike, as ours=theirs inside two modules."""
    return tuple(Row(f"{ours}.{mine}", f"{theirs}.{its}") for mine, its in names.items())
