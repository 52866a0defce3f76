"""Latent, differential and contextual attention against their papers, written token by token, and transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import registry
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

B, T, C, H, D = 2, 11, 24, 4, 6
SHAPE = Shape(n_embd=C, n_head=H, block_size=T, n_layer=3, layer=2, bias=True)
INTERLEAVED = {"name": "rope", "layout": "interleaved"}
LATENTS: list[dict[str, Any]] = [
    {"name": "latent"},
    {"name": "latent", "q_rank": 5, "kv_rank": 7, "nope_size": 3, "rope_size": 4, "value_size": 9},
    {"name": "latent", "nope_size": 8, "rope_size": 2, "scale": 0.7, "bias": False, "window": 4},
]
DIFFERENTIALS: list[dict[str, Any]] = [
    {"name": "differential"},
    {"name": "differential", "n_kv_head": 2, "lambda_init": 0.35, "head_size": 8, "bias": "qo"},
    {"name": "differential", "gate": "head", "window": 4},
    {"name": "differential", "gate": "element", "n_kv_head": 2},
]
ROUNDED = 1e-6  # angles of rotation are float32
SPLITS = [[1] * T, [4, 1, 6], [7, 4]]

pytestmark = pytest.mark.usefixtures("float64")


def attention(spec: Any, position: Any = "none", shape: Shape = SHAPE) -> Any:
    """An attention with random parameters, biases and gains included."""
    built = registry.build("attention", spec, shape, registry.build("position", position, shape))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.4)
    return built.eval()


def mixed(module: Any, x: Tensor, split: list[int] | None = None) -> Tensor:
    """What the module gives, at once, or fed in pieces through its memory."""
    cache = module.new_cache(len(x), x.shape[1]) if split else None
    pieces = zip(
        x.split(split or [x.shape[1]], dim=1), torch.arange(x.shape[1])[None].split(split or T, dim=1), strict=True
    )
    with torch.no_grad():
        return torch.cat([module(piece, Context(positions=at), cache) for piece, at in pieces], dim=1)


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    y = linear.weight @ x
    return y if linear.bias is None else y + linear.bias


def rms(norm: Any, x: Tensor) -> Tensor:
    return x / ((x * x).sum() / len(x) + 1e-5).sqrt() * norm.weight


def turned(x: Tensor, at: int, position: Any) -> Tensor:
    """x rotated by its position, each pair a complex number; as it is where the position does not rotate."""
    if position == "none" or position == "alibi":
        return x
    pairs = len(x) // 2
    angle = torch.tensor([at * 10000 ** (-2 * i / len(x)) for i in range(pairs)])
    real, imaginary = (x[0::2], x[1::2]) if position == INTERLEAVED else (x[:pairs], x[pairs:])
    z = torch.complex(real, imaginary) * torch.polar(torch.ones(pairs), angle)
    return torch.stack((z.real, z.imag), dim=1).flatten() if position == INTERLEAVED else torch.cat((z.real, z.imag))


def slope(head: int, position: Any) -> float:
    """ALiBi's penalty of a token of distance, 2^(-8 (head + 1) / H), or none."""
    return 2.0 ** (-8 * (head + 1) / H) if position == "alibi" else 0.0


def softmax_map(q: list[Tensor], k: list[Tensor], scale: float, window: int | None, per_token: float) -> Tensor:
    """The (T, T) attention weights of one head, row by row."""
    weights = torch.zeros(T, T)
    for i in range(T):
        first = 0 if window is None else max(0, i - window + 1)
        scores = torch.stack([scale * q[i] @ k[j] - per_token * (i - j) for j in range(first, i + 1)])
        weights[i, first : i + 1] = scores.exp() / scores.exp().sum()
    return weights


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


# latent


def latent_by_the_paper(module: Any, x: Tensor, position: Any, spec: dict[str, Any]) -> Tensor:
    """DeepSeek-V2's formulas, one sequence (T, C): the latents of each token, then head by head."""
    (nope, rope), (rank, _), (_, size) = module.q_parts, module.down_parts, module.up_parts
    out = torch.zeros(T, H, size)
    queries, latents, shared = [], [], []
    for t in range(T):
        if spec.get("q_rank"):
            queries.append(affine(module.q[2], rms(module.q[1], affine(module.q[0], x[t]))))
        else:
            queries.append(affine(module.q, x[t]))
        down = affine(module.kv_down, x[t])
        latents.append(affine(module.kv_up, rms(module.kv_norm, down[:rank])))
        shared.append(turned(down[rank:], t, position))
    for h in range(H):
        own = slice(h * (nope + size), h * (nope + size) + nope)
        q = [query[h * (nope + rope) : (h + 1) * (nope + rope)] for query in queries]
        q = [torch.cat((part[:nope], turned(part[nope:], t, position))) for t, part in enumerate(q)]
        k = [torch.cat((latent[own], key)) for latent, key in zip(latents, shared, strict=True)]
        v = torch.stack([latent[own.stop : own.stop + size] for latent in latents])
        scale = spec.get("scale", 1 / math.sqrt(nope + rope))
        out[:, h] = softmax_map(q, k, scale, spec.get("window"), slope(h, position)) @ v
    return torch.stack([affine(module.proj, row) for row in out.flatten(1)])


@pytest.mark.parametrize("spec", LATENTS, ids=str)
@pytest.mark.parametrize("position", ["rope", INTERLEAVED, "none", "alibi"], ids=str)
@torch.no_grad()
def test_latent_attention_is_that_of_the_paper(spec: Any, position: Any) -> None:
    module, x = attention(spec, position), torch.randn(B, T, C)
    wanted = torch.stack([latent_by_the_paper(module, row, position, spec) for row in x])
    close(mixed(module, x), wanted, ROUNDED if position in ("rope", INTERLEAVED) else 1e-10)


def causal(n: int) -> Tensor:
    """The additive mask that transformers' eager attention takes."""
    return torch.full((n, n), float("-inf")).triu(1)[None, None]


@pytest.mark.parametrize("q_rank", [None, 20])
@pytest.mark.parametrize("interleaved", [True, False])
@torch.no_grad()
def test_latent_attention_is_that_of_transformers(q_rank: int | None, interleaved: bool) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    torch.set_default_dtype(torch.float32)
    sizes = {"kv_rank": 12, "nope_size": 10, "rope_size": 8, "value_size": 14}
    config = DeepseekV3Config(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=q_rank, kv_lora_rank=12,
        qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, rope_interleave=interleaved,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = DeepseekV3Attention(config, layer_idx=0).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    norm = {"name": "rmsnorm", "eps": 1e-6}
    spec = {"name": "latent", "q_rank": q_rank, "bias": False, "latent_norm": norm, **sizes}
    ours = attention(spec, INTERLEAVED if interleaved else "rope")
    names = {"kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_up", "o_proj": "proj"}
    names |= {"q_proj": "q", "q_a_proj": "q.0", "q_a_layernorm": "q.1", "q_b_proj": "q.2"}
    state = {f"{names[key.removesuffix('.weight')]}.weight": value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(B, T, C)
    waves = DeepseekV3RotaryEmbedding(config)(x, torch.arange(T)[None])
    wanted = theirs(x, waves, causal(T))[0]
    assert float((mixed(ours, x) - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_latent_attention_keeps_one_latent_and_one_turned_key_a_token() -> None:
    module = attention({"name": "latent", "kv_rank": 7, "rope_size": 4}, "rope")
    cache = module.new_cache(B, T + 1)
    with torch.no_grad():
        module(torch.randn(B, T, C), Context(positions=torch.arange(T)[None]), cache)
    assert [tuple(held.shape) for held in cache.held[:2]] == [(B, 1, T, 7), (B, 1, T, 4)]
    assert module.cached == 11


def test_sizes_of_latent_attention_follow_the_shape() -> None:
    module = attention("latent", "rope")
    assert (module.q_parts, module.down_parts, module.up_parts) == ((6, 2), (6, 2), (6, 6))
    wide = attention("latent", "rope", Shape(n_embd=768, n_head=12, block_size=8))
    assert (wide.q_parts, wide.down_parts, wide.up_parts) == ((64, 32), (192, 32), (64, 64))


# differential


def gated(module: Any, out: Tensor, x: Tensor, spec: dict[str, Any]) -> Tensor:
    """(T, H/2, 2D) times the sigmoid gates of its heads or entries."""
    if "gate" not in spec:
        return out
    gates = torch.stack([affine(module.gate.linear, token) for token in x]).sigmoid()
    return out * (gates[..., None] if spec["gate"] == "head" else gates.view_as(out))


def differential_by_the_paper(module: Any, x: Tensor, position: Any, spec: dict[str, Any]) -> Tensor:
    """The formulas of the paper, one sequence (T, C). Pair i is of maps i and i + H/2, each of a key head."""
    size, n_kv = spec.get("head_size", D), spec.get("n_kv_head", H)
    start = spec.get("lambda_init", 0.8 - 0.6 * math.exp(-0.3 * SHAPE.layer))
    part = module.weight
    weight = math.exp(part.q1 @ part.k1) - math.exp(part.q2 @ part.k2) + start
    q, k, v = ([affine(linear, token) for token in x] for linear in (module.q, module.k, module.v))

    def keys_of(head: int) -> int:
        return head * n_kv // H

    def map_of(head: int) -> Tensor:
        mine, its = (slice(n * size, (n + 1) * size) for n in (head, keys_of(head)))
        turned_q = [turned(token[mine], t, position) for t, token in enumerate(q)]
        turned_k = [turned(token[its], t, position) for t, token in enumerate(k)]
        return softmax_map(turned_q, turned_k, 1 / math.sqrt(size), spec.get("window"), slope(head, position))

    out = torch.zeros(T, H // 2, 2 * size)
    for i in range(H // 2):
        halves = [slice(n * size, (n + 1) * size) for n in (keys_of(i), keys_of(i + H // 2))]
        wide = torch.stack([torch.cat([token[half] for half in halves]) for token in v])
        read = (map_of(i) - weight * map_of(i + H // 2)) @ wide
        out[:, i] = (1 - start) * torch.stack([rms(module.out_norm, row) for row in read])
    return torch.stack([affine(module.proj, row) for row in gated(module, out, x, spec).flatten(1)])


@pytest.mark.parametrize("spec", DIFFERENTIALS, ids=str)
@pytest.mark.parametrize("position", ["rope", "none", "alibi"])
@torch.no_grad()
def test_differential_attention_is_that_of_the_paper(spec: Any, position: Any) -> None:
    module, x = attention(spec, position), torch.randn(B, T, C)
    wanted = torch.stack([differential_by_the_paper(module, row, position, spec) for row in x])
    close(mixed(module, x), wanted, ROUNDED if position in ("rope", INTERLEAVED) else 1e-10)


@pytest.mark.parametrize("n_kv_head", [2, 4])
@torch.no_grad()
def test_differential_attention_is_that_of_transformers(n_kv_head: int) -> None:
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

    torch.set_default_dtype(torch.float32)
    config = DiffLlamaConfig(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=n_kv_head, rms_norm_eps=1e-5,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = DiffLlamaAttention(config, layer_idx=SHAPE.layer).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    norm = {"name": "rmsnorm", "weight": "none"}
    ours = attention({"name": "differential", "n_kv_head": n_kv_head, "bias": False, "out_norm": norm}, "rope")
    names = {"o_proj.weight": "proj.weight"} | {f"{n}_proj.weight": f"{n}.weight" for n in "qkv"}
    names |= {f"lambda_{n}": f"weight.{n}" for n in ("q1", "k1", "q2", "k2")}
    ours.load_state_dict({names[key]: value for key, value in theirs.state_dict().items()})
    x = torch.randn(B, T, C)
    waves = DiffLlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
    wanted = theirs(x, waves, causal(T))[0]
    assert float((mixed(ours, x) - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_the_second_map_begins_with_the_weight_of_its_layer() -> None:
    weights = []
    for layer in range(3):
        shape = Shape(n_embd=C, n_head=H, block_size=T, n_layer=3, layer=layer)
        module = registry.build("attention", "differential", shape, registry.build("position", "none", shape))
        weights.append(module.weight.start)
    assert weights == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])


def test_vectors_of_lambda_are_drawn_as_the_authors_do() -> None:
    wide = Shape(n_embd=2048, n_head=2, block_size=T)
    module = registry.build("attention", "differential", wide, registry.build("position", "none", wide))
    for vector in (parameter.detach() for parameter in module.weight.parameters()):
        assert float(vector.std()) == pytest.approx(0.1, rel=0.1)
        assert abs(float(vector.mean())) < 0.01


# contextual positions


def cope_by_the_paper(module: Any, x: Tensor, n_position: int) -> Tensor:
    """The formulas of the paper, one sequence (T, C)."""
    q, k, v = (torch.stack([affine(linear, token) for token in x]) for linear in (module.q, module.k, module.v))
    table, out = module.embedding.weight, torch.zeros(T, C)
    for h in range(H):
        own = slice(h * D, (h + 1) * D)
        for i in range(T):
            plain = [q[i, own] @ k[j, own] / math.sqrt(D) for j in range(i + 1)]
            gates = [1 / (1 + math.exp(-score)) for score in plain]
            scores = []
            for j in range(i + 1):
                passed = min(sum(gates[j:]), n_position - 1)
                below, above = math.floor(passed), math.ceil(passed)
                embedded = (1 - (passed - below)) * table[below] + (passed - below) * table[above]
                scores.append(plain[j] + q[i, own] @ embedded)
            weights = torch.stack(scores).exp()
            out[i, own] = (weights / weights.sum()) @ v[: i + 1, own]
    return torch.stack([affine(module.proj, row) for row in out])


@pytest.mark.parametrize("n_position", [None, 3])
@torch.no_grad()
def test_cope_is_that_of_the_paper(n_position: int | None) -> None:
    module, x = attention({"name": "cope", "n_position": n_position}), torch.randn(B, T, C)
    close(mixed(module, x), torch.stack([cope_by_the_paper(module, row, n_position or T) for row in x]))


@torch.no_grad()
def test_with_all_gates_open_cope_counts_tokens() -> None:
    module, q = attention({"name": "cope", "n_position": T + 1}), torch.randn(B, H, T, D)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0)
    got = module.logits_at(q, (distance + 1.0).expand(B, H, T, T))
    close(got, torch.einsum("bhid,ijd->bhij", q, module.embedding.weight[distance + 1]))


# what they share

ALL = [*LATENTS, *DIFFERENTIALS, {"name": "cope", "n_position": 4}]


@pytest.mark.parametrize("spec", ALL, ids=str)
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"{len(split)} pieces")
def test_any_split_through_the_memory_is_the_whole(spec: Any, split: list[int]) -> None:
    module, x = attention(spec, "none" if spec["name"] == "cope" else "rope"), torch.randn(B, T, C)
    close(mixed(module, x, split), mixed(module, x))


@pytest.mark.parametrize("name", ["latent", "differential"])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"sinks": True}, {"chunk": 3}], ids=str)
def test_a_kernel_by_name_gives_the_numbers_of_the_definition(name: str, options: dict[str, Any]) -> None:
    x, modules = torch.randn(B, T, C), {}
    for kernel in ("math", "auto", "flex", *(() if {"softcap", "sinks"} & set(options) else ("sdpa",))):
        torch.manual_seed(1)
        modules[kernel] = attention({"name": name, "kernel": kernel, **options}, "alibi")
    for module in modules.values():
        close(mixed(module, x), mixed(modules["math"], x))


@pytest.mark.parametrize(
    ("spec", "position", "told"),
    [
        ({"name": "latent", "rope_size": 5}, "rope", "RoPE turns pairs"),
        ({"name": "latent", "kv_rank": 0}, "rope", "model.attention.kv_rank must be at least 1, but is 0"),
        ({"name": "latent", "q_rank": -1}, "rope", "model.attention.q_rank must be at least 1, but is -1"),
        ({"name": "latent", "window": 0}, "rope", "window must be at least 1"),
        ({"name": "latent", "latent_norm": "rmsnrm"}, "rope", "model.attention.latent_norm. Did you mean 'rmsnorm'"),
        ({"name": "differential", "out_norm": {"eps": 1.0}}, "rope", "model.attention.out_norm must be a name"),
        (
            {"name": "latent", "kernel": "sdpa", "softcap": 2.0}, "rope",
            "kernel 'sdpa' cannot do softcap: set model.attention.kernel=auto or math or flex, or leave softcap out",
        ),
        ({"name": "differential", "n_kv_head": 1}, "rope", "must be even, but are 4 and 1"),
        ({"name": "differential", "lambda_init": 1.0}, "rope", "lambda_init must be in [0, 1), but is 1.0"),
        ({"name": "differential", "kernel": "flex", "dropout": 0.1}, "rope", "kernel 'flex' cannot do dropout"),
        ({"name": "cope", "n_position": 1}, "none", "n_position must be at least 2, but is 1"),
        ({"name": "cope", "dropout": 1.0}, "none", "dropout is a probability in [0, 1), but is 1.0"),
        ("cope", "rope", "has no use for position 'rope', which acts in rotate"),
        ("cope", "alibi", "which acts in terms"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(spec: Any, position: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        attention(spec, position)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_shapes_follow_on_the_meta_device(spec: Any) -> None:
    with torch.device("meta"):
        module = registry.build("attention", spec, SHAPE, registry.build("position", "none", SHAPE))
        assert module(torch.empty(B, T, C), Context(positions=torch.arange(T)[None])).shape == (B, T, C)
