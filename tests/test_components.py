"""Each component against an independent reference: a formula, a loop, another library, or the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import ModelConfig, registry
from gptlab.components.attention.kernels import FLEX, MATH, SDPA
from gptlab.components.attention.plan import Plan
from gptlab.components.block import Parts
from gptlab.components.context import Context, KVCache
from gptlab.components.position.alibi import slopes
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.model import GPT

B, T, C, H, D = 2, 13, 32, 4, 8
SHAPE = Shape(n_embd=C, n_head=H, block_size=T)
POSITIONS = torch.arange(T)[None]


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def part(slot: str, spec: Any, *args: Any) -> Any:
    """A part with random parameters, zeros and ones included."""
    built = registry.build(slot, spec, *(args or (SHAPE,)))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def attention(spec: Any, position: Any = "none", shape: Shape = SHAPE) -> Any:
    return part("attention", spec, shape, registry.build("position", position, shape))


def mixed(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(x, Context(positions=torch.arange(x.shape[1])[None]))
    return out


def by_loop(module: Any, x: Tensor, score: Callable[[Tensor, int, int, int], Tensor], window: int = 10**6) -> Tensor:
    """Softmax attention one query and one head at a time, keys chosen by a Python condition."""
    q, k, v = (linear(x).detach().unflatten(-1, (-1, D)) for linear in (module.q, module.k, module.v))
    share = module.n_head // module.n_kv_head
    y = torch.zeros(x.shape[0], x.shape[1], H, D)
    for b in range(x.shape[0]):
        for h in range(H):
            for i in range(x.shape[1]):
                seen = [j for j in range(x.shape[1]) if i - window < j <= i]
                scores = [score(q[b, i, h] @ k[b, j, h // share] / math.sqrt(D), h, i, j) for j in seen]
                weights = torch.softmax(torch.stack(scores), 0)
                y[b, i, h] = sum(w * v[b, j, h // share] for w, j in zip(weights, seen, strict=True))
    out: Tensor = module.proj(y.flatten(2)).detach()
    return out


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


# positions


def rotated(x: Tensor, layout: str, fraction: float = 1.0, theta: float = 10000.0) -> Tensor:
    """RoPE as multiplication by exp(i m theta^(-2p/R)) of pairs read as complex numbers."""
    size = int(D * fraction)
    half = x[..., :size]
    pairs = torch.complex(*(half.chunk(2, -1) if layout == "half" else (half[..., ::2], half[..., 1::2])))
    turn = torch.tensor([[m * theta ** (-2 * p / size) for p in range(size // 2)] for m in range(T)])
    turned = pairs * torch.exp(1j * turn)
    parts = (turned.real, turned.imag)
    joined = torch.cat(parts, -1) if layout == "half" else torch.stack(parts, -1).flatten(-2)
    return torch.cat((joined, x[..., size:]), -1)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rope_is_a_complex_multiplication(layout: str, fraction: float) -> None:
    rope = part("position", {"name": "rope", "layout": layout, "fraction": fraction, "theta": 500.0})
    q, k = torch.randn(B, H, T, D), torch.randn(B, 2, T, D)
    for got, x in zip(rope.rotate(q, k, POSITIONS), (q, k), strict=True):
        close(got, rotated(x, layout, fraction, 500.0), 1e-5)  # angles are float32


def test_rope_scores_depend_on_distance_alone() -> None:
    rope = part("position", "rope")
    q, k = torch.randn(1, 1, 1, D).expand(1, 1, T, D), torch.randn(1, 1, 1, D).expand(1, 1, T, D)
    a, b = rope.rotate(q, k, POSITIONS)
    scores = (a @ b.transpose(-1, -2))[0, 0]
    for distance in range(T):
        diagonal = scores.diagonal(-distance)
        close(diagonal, diagonal[:1].expand_as(diagonal), 1e-5)


def test_rope_turns_each_row_by_its_own_positions() -> None:
    rope, q = part("position", "rope"), torch.randn(2, H, 3, D)
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    together = rope.rotate(q, q, positions)[0]
    for row in (0, 1):
        close(together[row : row + 1], rope.rotate(q[row : row + 1], q[row : row + 1], positions[row : row + 1])[0])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.1, 3 / 8])
def test_rope_refuses_a_share_that_is_no_even_number_of_entries(fraction: float) -> None:
    with pytest.raises(ConfigError, match="RoPE turns pairs"):
        part("position", {"name": "rope", "fraction": fraction})


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert slopes(16) == pytest.approx([2 ** (-0.5 * i) for i in range(1, 17)])
    assert slopes(12) == pytest.approx(slopes(8) + [2 ** (-0.5 * i) for i in (1, 3, 5, 7)])
    assert slopes(1) == [2**-8]


def test_alibi_is_a_penalty_in_proportion_to_distance() -> None:
    module, x = attention("vanilla", "alibi"), torch.randn(B, T, C)
    slope = [2 ** (-8 * (h + 1) / H) for h in range(H)]
    close(mixed(module, x), by_loop(module, x, lambda s, h, i, j: s - slope[h] * (i - j)), 1e-7)


def test_sinusoidal_is_the_formula_of_the_paper() -> None:
    wave = torch.tensor(
        [[(math.sin, math.cos)[c % 2](p / 10000 ** ((c - c % 2) / C)) for c in range(C)] for p in range(T)]
    )
    x = torch.randn(B, T, C)
    close(part("position", "sinusoidal").embed(x, POSITIONS), math.sqrt(C) * x + wave, 1e-5)


def test_learned_adds_the_row_of_each_position() -> None:
    module, x = part("position", "learned"), torch.randn(B, 3, C)
    close(module.embed(x, torch.tensor([[4, 0, 2]])), x + module.table.weight[[4, 0, 2]])


# norms and MLPs


def test_layernorm_and_rmsnorm_are_their_formulas() -> None:
    x = 3 * torch.randn(B, T, C) + 1
    layer, rms = part("norm", {"name": "layernorm", "eps": 0.1}, C), part("norm", {"name": "rmsnorm", "eps": 0.1}, C)
    mean = x.sum(-1, keepdim=True) / C
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / C
    close(layer(x), layer.weight * (x - mean) / (variance + 0.1) ** 0.5 + layer.bias)
    close(rms(x), rms.weight * x / ((x**2).sum(-1, keepdim=True) / C + 0.1) ** 0.5)
    assert part("norm", {"name": "layernorm", "bias": False}, C).bias is None


def exact_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("spec", "activation"),
    [
        ({"name": "gelu"}, exact_gelu),
        ({"name": "gelu", "approximate": "tanh"}, tanh_gelu),
        ({"name": "relu2"}, lambda x: torch.where(x > 0, x * x, 0 * x)),
    ],
)
def test_a_plain_mlp_is_its_formula(spec: Any, activation: Callable[[Tensor], Tensor]) -> None:
    mlp, x = part("mlp", {**spec, "bias": True}), torch.randn(B, T, C)
    up = x @ mlp.up.weight.T + mlp.up.bias
    assert up.shape[-1] == 4 * C
    close(mlp(x), activation(up) @ mlp.proj.weight.T + mlp.proj.bias)


def test_swiglu_is_its_formula_and_costs_what_a_plain_mlp_does() -> None:
    mlp, x = part("mlp", "swiglu"), torch.randn(B, T, C)
    gate, up = x @ mlp.gate.weight.T, x @ mlp.up.weight.T
    close(mlp(x), (gate / (1 + torch.exp(-gate)) * up) @ mlp.proj.weight.T)
    wide = Shape(n_embd=768, n_head=4, block_size=T)
    counts = [sum(p.numel() for p in part("mlp", name, wide).parameters()) for name in ("swiglu", "gelu")]
    assert counts[0] == counts[1]


# attention


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
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [1, 2, 5, T, 100])
def test_a_window_is_the_loop_over_the_newest_tokens(name: str, window: int) -> None:
    module, x = attention({"name": name, "window": window}), torch.randn(B, T, C)
    close(mixed(module, x), by_loop(module, x, lambda s, h, i, j: s, window))


def test_softcap_bounds_the_scores_before_the_position_terms() -> None:
    module, x = attention({"name": "vanilla", "softcap": 0.7}, "alibi"), torch.randn(B, T, C)
    capped = by_loop(module, x, lambda s, h, i, j: 0.7 * torch.tanh(s / 0.7) - slopes(H)[h] * (i - j))
    close(mixed(module, x), capped, 1e-7)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
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
    y = kernel.run(q, k, v, Plan(scale=1.0), POSITIONS[:, :8], POSITIONS[:, :8], 0.5)
    assert y.std() > 0.1
    assert y.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", [MATH, SDPA, FLEX])
def test_rows_may_stand_at_positions_of_their_own(kernel: Any) -> None:
    """Each row of a batch sees by its own positions, as in serving several texts at once."""
    q, k, v = torch.randn(2, H, 3, D), torch.randn(2, H, 6, D), torch.randn(2, H, 6, D)
    k_pos = torch.stack((torch.arange(6), torch.arange(6) + 4))
    q_pos, plan = k_pos[:, 3:], Plan(scale=0.3, window=2)
    together = kernel.run(q, k, v, plan, q_pos, k_pos, 0.0)
    for row in (0, 1):
        one = slice(row, row + 1)
        close(together[one], MATH.run(q[one], k[one], v[one], plan, q_pos[one], k_pos[one], 0.0))


@pytest.mark.gpu
@pytest.mark.parametrize("n_tokens", [128, 200])
@pytest.mark.parametrize("kernel", [SDPA, FLEX])
def test_fused_kernels_agree_with_the_definition_on_cuda(kernel: Any, n_tokens: int) -> None:
    """Forward and backward, with a window and a term, at lengths that FlexAttention must pad too."""
    alibi = part("position", "alibi").to("cuda", torch.float32)
    plan, at = Plan(scale=0.25, window=50, terms=alibi.terms()), torch.arange(n_tokens, device="cuda")[None]
    results = []
    for each in (MATH, kernel):
        generator = torch.Generator("cuda").manual_seed(0)
        inputs = torch.randn(3, B, H, n_tokens, 16, generator=generator, device="cuda", dtype=torch.float32)
        q, k, v = inputs.requires_grad_().unbind(0)
        out = each.run(q, k, v, plan, at, at, 0.0)
        (gradient,) = torch.autograd.grad(out.sin().sum(), inputs)
        results.append((out.detach(), gradient))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)  # TensorFloat-32 products


def test_the_mean_is_a_loop_is_a_matrix_is_a_softmax_of_zeros() -> None:
    module, x = attention("mean"), torch.randn(B, T, C)
    v = (x @ module.v.weight.T).detach()
    loop = torch.stack([v[:, : i + 1].mean(1) for i in range(T)], 1)
    matrix = torch.ones(T, T).tril()
    softmax = torch.softmax(torch.zeros(T, T).masked_fill(matrix == 0, float("-inf")), -1)
    for averages in (loop, (matrix / matrix.sum(1, keepdim=True)) @ v, softmax @ v):
        close(mixed(module, x), (averages @ module.proj.weight.T).detach())


def test_the_softmax_of_a_half_precision_model_is_taken_in_float32() -> None:
    q, k, v = (torch.randn(1, 1, 64, 64).to(torch.bfloat16) for _ in range(3))
    at = torch.arange(64)[None]
    exact = MATH.run(q.double(), k.double(), v.double(), Plan(scale=0.125), at, at, 0.0)
    got = MATH.run(q, k, v, Plan(scale=0.125), at, at, 0.0)
    assert got.dtype == torch.bfloat16
    assert (got - exact).abs().max() < 3e-2


def test_a_cache_holds_what_the_next_token_may_see_and_the_positions() -> None:
    cache, k = KVCache(max_len=4), torch.randn(1, 1, 7, D)
    for start, stop in ((0, 3), (3, 7)):
        seen, _, at = cache.append(k[:, :, start:stop], k[:, :, start:stop], torch.arange(start, stop)[None])
    assert at.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(seen, k)
    assert cache.held is not None
    assert cache.held[2].tolist() == [[4, 5, 6]]  # and the next token, itself, is the fourth


@pytest.mark.parametrize(
    ("spec", "position", "told"),
    [
        ({"name": "vanilla", "n_kv_head": 3}, "none", "3 does not divide 4"),
        ({"name": "vanilla", "window": 0}, "none", "window must be at least 1"),
        ({"name": "vanilla", "softcap": -1.0}, "none", "softcap must be above 0"),
        ({"name": "vanilla", "dropout": 1.0}, "none", "is a probability"),
        ({"name": "flash", "softcap": 30.0}, "none", "model/attention=flex or vanilla"),
        ({"name": "flex", "dropout": 0.1}, "none", "model/attention=flash or vanilla"),
        ({"name": "vanilla", "qk_norm": "rmsnrm"}, "none", "Did you mean 'rmsnorm'"),
        ({"name": "mean"}, "rope", "has no use for position 'rope', which acts in rotate"),
        ({"name": "none"}, "alibi", "acts in terms"),
    ],
)
def test_an_attention_that_cannot_be_is_refused_in_one_line(spec: Any, position: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        attention(spec, position)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# blocks


class Twice(nn.Module):
    """Stands for attention and MLP: a fixed function without parameters."""

    absent = False

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor, *ignored: Any) -> Tensor:
        return self.by * x.tanh()


def test_blocks_are_their_equations() -> None:
    x = torch.randn(B, T, C)
    attend, think = Twice(2.0), Twice(-3.0)
    parts = Parts(attend, think, lambda: registry.build("norm", "rmsnorm", C))  # type: ignore[arg-type]
    built = {name: part("block", name, SHAPE, parts) for name in ("prenorm", "postnorm", "sandwich", "parallel")}
    context = Context(positions=POSITIONS)

    def norm(module: Any, x: Tensor) -> Tensor:
        return module.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    pre, post, sandwich, parallel = built.values()
    h = x + attend(norm(pre.attention_norms.before, x))
    close(pre(x, context), h + think(norm(pre.mlp_norms.before, h)))
    h = norm(post.attention_norms.after, x + attend(x))
    close(post(x, context), norm(post.mlp_norms.after, h + think(h)))
    h = x + norm(sandwich.attention_norms.out, attend(norm(sandwich.attention_norms.before, x)))
    close(sandwich(x, context), h + norm(sandwich.mlp_norms.out, think(norm(sandwich.mlp_norms.before, h))))
    close(parallel(x, context), x + attend(norm(parallel.norm, x)) + think(norm(parallel.norm, x)))
    assert [sum(p.numel() for p in block.parameters()) // C for block in built.values()] == [2, 2, 4, 1]


@pytest.mark.parametrize("block", ["prenorm", "postnorm", "sandwich", "parallel"])
def test_parts_that_are_none_leave_no_parameters_behind(block: str) -> None:
    sizes = {"vocab_size": 7, "n_layer": 2, "n_embd": C, "n_head": H, "position": "none", "block": block}
    bare = GPT(ModelConfig(**sizes, attention="none", mlp="none"))
    assert [name for name, _ in bare.named_parameters() if name.startswith("blocks")] == []
    for slot in ("attention", "mlp"):
        without = GPT(ModelConfig(**{**sizes, slot: "none"}))
        assert [name for name, _ in without.named_parameters() if f".{slot}" in name] == []


def test_residual_dropout_acts_on_what_a_sublayer_adds() -> None:
    shape = Shape(n_embd=C, n_head=H, block_size=T, dropout=0.5)
    parts = Parts(Twice(1.0), Twice(0.0), lambda: nn.Identity())  # type: ignore[arg-type]
    block = registry.build("block", "prenorm", shape, parts).train()
    x = torch.randn(B, T, C)
    added = block(x, Context(positions=POSITIONS)) - x
    dropped = added.abs() < 1e-12
    assert 0.35 < dropped.double().mean() < 0.65
    close(added[~dropped], 2 * x.tanh()[~dropped])
