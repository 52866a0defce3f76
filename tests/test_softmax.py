"""Softmax attention against a loop written from the formulas, with every option, on every kernel that can."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import registry
from gptlab.components import context
from gptlab.components.attention.choice import choose, fastest
from gptlab.components.attention.kernels import FLEX, MATH, SDPA
from gptlab.components.attention.plan import Plan
from gptlab.components.context import Context, KVCache, Places
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

B, T, C, H, D = 2, 13, 32, 4, 8
SHAPE = Shape(n_embd=C, n_head=H, block_size=T)
AT = Places(torch.arange(T)[None])
KERNELS = {"vanilla": MATH, "flash": SDPA, "flex": FLEX}

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


def attention(spec: Any, position: Any = "none", shape: Shape = SHAPE) -> Any:
    """An attention with random parameters, zeros and ones included."""
    built = registry.build("attention", spec, shape, registry.build("position", position, shape))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def mixed(module: Any, x: Tensor, **context: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(x, Context(positions=torch.arange(x.shape[1])[None], **context))
    return out


def close(a: Tensor, b: Tensor, within: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def sees(i: int, j: int, window: int = 10**6, chunk: int = 10**6, documents: list[int] | None = None) -> bool:
    together = documents is None or documents[i] == documents[j]
    return j <= i and i - j < window and i // chunk == j // chunk and together


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / math.sqrt(sum(e**2 for e in x.tolist()) / len(x) + 1e-5)


def normalized(heads: list[Tensor], norm: Any, over: str) -> list[Tensor]:
    """qk_norm=rmsnorm of one token's heads, in its three readings."""
    if over == "projection":
        joined = rms(torch.cat(heads), norm.norm.weight)
        return list(joined.split(len(heads[0])))
    weights = [each.weight for each in norm.norms] if over == "heads" else [norm.weight] * len(heads)
    return [rms(head, weight) for head, weight in zip(heads, weights, strict=True)]


def by_loop(module: Any, x: Tensor, first: Tensor | None = None, **o: Any) -> Tensor:
    """Softmax attention as its papers say it: one sequence, one head, one query, one key at a time."""
    size, limits = o.get("head_size", D), {key: o[key] for key in ("window", "chunk", "documents") if key in o}
    rows = []
    for b in range(x.shape[0]):
        q, k, v = (list(linear(x[b]).detach()) for linear in (module.q, module.k, module.v))
        if "clip" in o:
            q, k, v = ([t.clamp(-o["clip"], o["clip"]) for t in ts] for ts in (q, k, v))
        q, k, v = ([list(t.split(size)) for t in ts] for ts in (q, k, v))
        if "qk_norm" in o:
            q = [normalized(t, module.q_norm, o.get("qk_norm_over", "head")) for t in q]
            k = [normalized(t, module.k_norm, o.get("qk_norm_over", "head")) for t in k]
        if first is not None:
            mix = module.values.mix
            v = [[mix[0] * head + mix[1] * first[b, g, t] for g, head in enumerate(v[t])] for t in range(len(v))]
        rows.append(torch.stack([_token(module, x[b, i], i, q, k, v, limits, o) for i in range(x.shape[1])]))
    return torch.stack(rows).detach()


def _token(module: Any, x: Tensor, i: int, q: Any, k: Any, v: Any, limits: Any, o: dict[str, Any]) -> Tensor:
    heads = []
    for h in range(H):
        g = h * module.n_kv_head // H
        seen = [j for j in range(i + 1) if sees(i, j, **limits)]
        scores = [(q[i][h] @ k[j][g]).item() * o.get("scale", len(q[i][h]) ** -0.5) for j in seen]
        if "softcap" in o:
            scores = [o["softcap"] * math.tanh(score / o["softcap"]) for score in scores]
        weights = [math.exp(score) for score in scores]
        total = sum(weights) + (math.exp(module.sinks[h].item()) if o.get("sinks") else 0.0)
        heads.append(sum(w / total * v[j][g] for w, j in zip(weights, seen, strict=True)))
    y = torch.cat(heads)
    if o.get("gate", "none") != "none":
        open_ = torch.sigmoid(module.gate.linear(x))
        y = y * (open_ if o["gate"] == "element" else open_.repeat_interleave(len(heads[0])))
    return module.proj(y)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "head_size": 12},
    *({"window": window} for window in (1, 2, 5, T - 1, T, 100)),
    *({"chunk": chunk} for chunk in (1, 4, T, 100)),
    {"window": 3, "chunk": 5},
    {"scale": 0.7},
    {"softcap": 0.7},
    {"qk_norm": "rmsnorm"},
    {"qk_norm": "rmsnorm", "qk_norm_over": "heads", "n_kv_head": 2},
    {"qk_norm": "rmsnorm", "qk_norm_over": "projection", "n_kv_head": 2},
    {"clip": 0.4},
    {"sinks": True},
    {"sinks": True, "window": 2, "softcap": 1.5},
    {"gate": "head"},
    {"gate": "element"},
    {"bias": True},
    *({"bias": letter} for letter in "qkvo"),
    {"gate": "head", "bias": "vg"},
    {"n_kv_head": 2, "head_size": 6, "window": 4, "softcap": 2.0, "qk_norm": "rmsnorm", "sinks": True,
     "gate": "element", "clip": 1.5, "bias": "qog", "scale": 0.4},
]  # fmt: skip
CASES = [
    pytest.param(name, options, id=f"{name}-{'-'.join(options) or 'plain'}-{i}")
    for i, options in enumerate(OPTIONS)
    for name in ("vanilla", "flash", "flex")
    if not (name == "flash" and options.keys() & {"softcap", "sinks"})
]


@pytest.mark.parametrize("name, options", CASES)
def test_attention_is_the_loop_over_what_a_token_sees(name: str, options: dict[str, Any]) -> None:
    module, x = attention({"name": name, **options}), torch.randn(B, T, C)
    close(mixed(module, x), by_loop(module, x, **options))


@pytest.mark.parametrize("name", KERNELS)
def test_a_token_sees_its_own_document_alone(name: str) -> None:
    module, x = attention({"name": name, "window": 4}), torch.randn(1, T, C)
    documents = [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]
    close(mixed(module, x, documents=torch.tensor([documents])), by_loop(module, x, window=4, documents=documents))


def test_values_of_the_first_layer_are_mixed_in() -> None:
    spec, x = {"name": "vanilla", "value_residual": True, "n_kv_head": 2}, torch.randn(B, T, C)
    one, other = attention(spec), attention(spec)
    context = Context(positions=AT.positions)
    with torch.no_grad():
        outputs = [module(x, context) for module in (one, other)]
        first = one.v(x).unflatten(-1, (2, D)).transpose(1, 2)
    for module, got in zip((one, other), outputs, strict=True):
        close(got, by_loop(module, x, first=first))


def test_values_begin_as_the_mean_of_their_own_and_the_first() -> None:
    position = registry.build("position", "none", SHAPE)
    module = registry.build("attention", {"name": "vanilla", "value_residual": True}, SHAPE, position)
    assert module.values.mix.tolist() == [0.5, 0.5]


def test_norms_after_rotation_see_rotated_heads() -> None:
    spec, x = {"name": "vanilla", "qk_norm": "rmsnorm", "qk_norm_after": True}, torch.randn(B, T, C)
    module = attention(spec, "rope")
    heads = [linear(x).detach().unflatten(-1, (H, D)).transpose(1, 2) for linear in (module.q, module.k)]
    turned = module.position.rotate(*heads, AT.positions)
    q, k = (norm(each) for norm, each in zip((module.q_norm, module.k_norm), turned, strict=True))
    v = module.v(x).unflatten(-1, (H, D)).transpose(1, 2)
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    close(mixed(module, x), module.proj(y.transpose(1, 2).flatten(2)).detach())


def test_vanilla_is_torchs_multihead_attention() -> None:
    module, x = attention({"name": "vanilla", "bias": True}), torch.randn(B, T, C)
    theirs = nn.MultiheadAttention(C, H, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (module.q, module.k, module.v)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (module.q, module.k, module.v)]))
        theirs.out_proj.load_state_dict(module.proj.state_dict())
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        wanted = theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]
    close(mixed(module, x), wanted)


@pytest.mark.parametrize("name", ["vanilla", "flash", "flex"])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_grouped_heads_are_repeated_heads(name: str, n_kv_head: int) -> None:
    module, x = attention({"name": name, "n_kv_head": n_kv_head}), torch.randn(B, T, C)
    full = attention("vanilla")
    with torch.no_grad():
        for linear, wide in ((module.k, full.k), (module.v, full.v)):
            heads = linear.weight.unflatten(0, (n_kv_head, D))
            wide.weight.copy_(heads.repeat_interleave(H // n_kv_head, 0).flatten(0, 1))
        full.q.load_state_dict(module.q.state_dict())
        full.proj.load_state_dict(module.proj.state_dict())
    close(mixed(module, x), mixed(full, x))


def test_qk_norm_makes_scores_blind_to_the_size_of_queries_and_keys() -> None:
    module, x = attention({"name": "vanilla", "qk_norm": "rmsnorm"}), torch.randn(B, T, C)
    before = mixed(module, x)
    module.q.weight.data *= 1000
    module.k.weight.data *= 1000
    close(mixed(module, x), before, 1e-3)
    assert module.q_norm.weight.shape == (D,)


@pytest.mark.parametrize("kernel", [MATH, SDPA])
def test_attention_dropout_drops_and_rescales_weights(kernel: Any) -> None:
    q, k = torch.zeros(64, 1, 8, 4), torch.zeros(64, 1, 8, 4)
    v = torch.ones(64, 1, 8, 4)
    y = kernel.run(q, k, v, Plan(scale=1.0), Places(torch.arange(8)[None]), Places(torch.arange(8)[None]), 0.5)
    assert y.std() > 0.1
    assert y.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("kernel", [MATH, SDPA, FLEX])
def test_rows_may_stand_at_positions_of_their_own(kernel: Any) -> None:
    """Each row of a batch sees by its own positions, as in serving several texts at once."""
    q, k, v = torch.randn(2, H, 3, D), torch.randn(2, H, 6, D), torch.randn(2, H, 6, D)
    k_pos = torch.stack((torch.arange(6), torch.arange(6) + 4))
    q_pos, plan = k_pos[:, 3:], Plan(scale=0.3, window=2)
    together = kernel.run(q, k, v, plan, Places(q_pos), Places(k_pos))
    for row in (0, 1):
        one = slice(row, row + 1)
        close(together[one], MATH.run(q[one], k[one], v[one], plan, Places(q_pos[one]), Places(k_pos[one])))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kernel", [SDPA, FLEX])
def test_blocks_that_one_row_hides_are_seen_by_another(kernel: Any, device: str) -> None:
    """FlexAttention on CUDA leaves out whole blocks of 128 keys, which must be those of each row."""
    dtype, within = (torch.float64, 1e-9) if device == "cpu" else (torch.float32, 2e-2)  # TensorFloat-32 products
    q, k, v = (torch.randn(2, 1, 300, 16, dtype=dtype, device=device) for _ in range(3))
    every = torch.arange(300, device=device)
    positions = torch.stack((every, every % 150))
    plan = Plan(scale=0.3, window=20)
    for documents in (None, torch.stack((0 * every, every // 150))):  # without, the second row's texts see each other
        at = Places(positions, documents)
        close(kernel.run(q, k, v, plan, at, at), MATH.run(q, k, v, plan, at, at), within)


@pytest.mark.gpu
@pytest.mark.parametrize("n_tokens", [128, 200])
@pytest.mark.parametrize("kernel", [SDPA, FLEX])
def test_fused_kernels_agree_with_the_definition_on_cuda(kernel: Any, n_tokens: int) -> None:
    """Forward and backward, with a window and a term, at lengths that FlexAttention must pad too."""
    alibi = registry.build("position", "alibi", SHAPE).to("cuda", torch.float32)
    plan, at = Plan(scale=0.25, window=50, terms=alibi.terms()), Places(torch.arange(n_tokens, device="cuda")[None])
    results = []
    for each in (MATH, kernel):
        generator = torch.Generator("cuda").manual_seed(0)
        inputs = torch.randn(3, B, H, n_tokens, 16, generator=generator, device="cuda", dtype=torch.float32)
        q, k, v = inputs.requires_grad_().unbind(0)
        out = each.run(q, k, v, plan, at, at)
        (gradient,) = torch.autograd.grad(out.sin().sum(), inputs)
        results.append((out.detach(), gradient))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)  # TensorFloat-32 products


def test_the_softmax_of_a_half_precision_model_is_taken_in_float32() -> None:
    q, k, v = (torch.randn(1, 1, 64, 64).to(torch.bfloat16) for _ in range(3))
    at, plan = Places(torch.arange(64)[None]), Plan(scale=0.7, softcap=30.0)
    scores = 30 * torch.tanh(0.7 * (q @ k.mT).double() / 30)  # only the products are rounded
    exact = torch.softmax(scores.masked_fill(torch.ones(64, 64).triu(1) > 0, -math.inf), -1) @ v.double()
    got = MATH.run(q, k, v, plan, at, at)
    assert got.dtype == torch.bfloat16
    assert (got - exact).abs().max() < 2e-2


def test_a_cache_holds_what_the_next_token_may_see_and_the_positions() -> None:
    cache, k = KVCache(max_len=4), torch.randn(1, 1, 7, D)
    for start, stop in ((0, 3), (3, 7)):
        seen, _, at = cache.append(k[:, :, start:stop], k[:, :, start:stop], Places(torch.arange(start, stop)[None]))
    assert at.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(seen, k)
    assert cache.held[2].tolist() == [[4, 5, 6]]  # and the next token, itself, is the fourth


@pytest.mark.parametrize("slack", [0, 1, 3, 64])
@pytest.mark.parametrize("max_len", [1, 2, 5])
def test_a_cache_of_fixed_size_shows_the_newest_tokens_in_order(
    slack: int, max_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "SLACK", slack)
    cache, k = KVCache(max_len), torch.randn(2, 1, 40, D)
    feed, start = [3, 1, 1, 9, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1], 0
    for i, n in enumerate(feed):
        new = slice(start, start + n)
        if i >= 6:  # one at a time, in slots that are chosen before
            cache.make_room()
        seen, _, at = cache.append(k[:, :, new], -k[:, :, new], Places(torch.arange(start, start + n)[None]))
        live = slice(None) if at.live is None else at.live
        wanted = list(range(max(0, start - max_len + 1), start + n))
        assert at.positions[:, live].tolist() == [wanted]
        assert torch.equal(seen[:, :, live], k[:, :, wanted])
        assert i < 7 or seen.shape[2] == max_len + slack
        start += n


@pytest.mark.parametrize(
    ("spec", "position", "told"),
    [
        ({"name": "vanilla", "n_kv_head": 3}, "none", "3 does not divide 4"),
        ({"name": "vanilla", "n_kv_head": 0}, "none", "0 does not divide 4"),
        ({"name": "vanilla", "head_size": 0}, "none", "head_size must be at least 1"),
        ({"name": "vanilla", "window": 0}, "none", "window must be at least 1"),
        ({"name": "vanilla", "chunk": -1}, "none", "chunk must be at least 1"),
        ({"name": "vanilla", "softcap": -1.0}, "none", "softcap must be above 0"),
        ({"name": "vanilla", "scale": 0.0}, "none", "scale must be above 0"),
        ({"name": "vanilla", "clip": 0.0}, "none", "clip must be above 0"),
        ({"name": "vanilla", "dropout": 1.0}, "none", "is a probability"),
        ({"name": "vanilla", "bias": "qx"}, "none", "letters of q k v o"),
        ({"name": "vanilla", "bias": "g"}, "none", "g where there is a gate"),
        ({"name": "vanilla", "qk_norm_over": "heads"}, "none", "set qk_norm=rmsnorm"),
        ({"name": "vanilla", "qk_norm": "rmsnorm", "qk_norm_after": True}, "none", "rotates nothing"),
        ({"name": "vanilla", "head_size": 5}, "rope", "even number"),
        ({"name": "flash", "softcap": 30.0}, "none", "model/attention=flex or vanilla"),
        ({"name": "flash", "sinks": True}, "none", "leave sinks out"),
        ({"name": "softmax", "softcap": 3.0, "kernel": "sdpa"}, "none", "cannot do softcap"),
        ({"name": "flex", "dropout": 0.1}, "none", "model/attention=flash or vanilla"),
        ({"name": "vanilla", "qk_norm": "rmsnrm"}, "none", "for model.attention.qk_norm. Did you mean 'rmsnorm'"),
        ({"name": "mean"}, "rope", "has no use for position 'rope', which acts in rotate"),
        ({"name": "none"}, "alibi", "acts in terms"),
    ],
)
def test_an_attention_that_cannot_be_is_refused_in_one_line(spec: Any, position: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        attention(spec, position)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_auto_takes_the_first_kernel_by_speed_that_can() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    plain, capped, windowed = Plan(scale=1.0), Plan(scale=1.0, softcap=2.0), Plan(scale=1.0, window=4)
    assert fastest(plain, cpu, torch.float32, 128, 64)[0] is SDPA
    assert fastest(plain, cpu, torch.bfloat16, 128, 64)[0] is MATH
    assert fastest(plain, cpu, torch.bfloat16, 4096, 64)[0] is SDPA
    assert fastest(capped, cpu, torch.float32, 128, 64) == (MATH, "sdpa cannot do softcap")
    assert fastest(windowed, cuda, torch.bfloat16, 4096, 64)[0] is FLEX
    assert choose("auto", capped).name == "auto"
