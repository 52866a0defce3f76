"""Gated DeltaNet and Mamba-2 against the papers' recurrences, token by token, and against transformers."""

from __future__ import annotations

import copy
import math
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab import ModelConfig, registry
from gptlab.components.attention.gated_delta import delta_rule, fla_rule
from gptlab.components.attention.short_conv import ShortConv
from gptlab.components.attention.state_space import CHUNK, TimeStep, ssd
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.model import GPT

B, C, H = 2, 32, 4
T = 2 * CHUNK + 22  # two chunks and a part of one
SHAPE = Shape(n_embd=C, n_head=H, block_size=T)
MIXERS = [
    {"name": "gated_delta"},
    {"name": "gated_delta", "n_key_head": 2, "n_value_head": 6, "key_size": 5, "value_size": 7, "bias": True},
    {"name": "gated_delta", "conv_size": 0, "gate": False},
    {"name": "mamba2", "state_size": 9},
    {"name": "mamba2", "state_size": 5, "n_group": 2, "head_size": 4, "expand": 1.5, "conv_size": 3, "bias": True},
    {"name": "mamba2", "state_size": 5, "conv_size": 0},
]

pytestmark = pytest.mark.usefixtures("float64")


def mixer(spec: Any, dtype: torch.dtype = torch.float64) -> Any:
    """A mixer with every parameter random, those that begin as zeros and ones too."""
    built = registry.build("attention", spec, SHAPE, registry.build("position", "none", SHAPE))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.to(dtype).eval()


def context(n_tokens: int, documents: Tensor | None = None) -> Context:
    return Context(positions=torch.arange(n_tokens)[None], documents=documents)


def run(module: Any, x: Tensor, documents: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return module(x, context(x.shape[1], documents))


def run_split(module: Any, x: Tensor, sizes: list[int], documents: Tensor | None = None) -> Tensor:
    """The same, fed in pieces to one memory."""
    memory, pieces, start = module.new_cache(len(x), x.shape[1]), [], 0
    for size in sizes:
        here = slice(start, start + size)
        told = context(size, None if documents is None else documents[:, here])
        with torch.no_grad():
            pieces.append(module(x[:, here], told, memory))
        start += size
    return torch.cat(pieces, dim=1)


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


# the formulas of the papers, a token and a head at a time


def delta_by_loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Yang et al. 2024, equation 10, transposed: S is (K, D). All tensors (T, size), one head."""
    read = []
    for t in range(len(q)):
        forget = torch.eye(k.shape[1]) - beta[t] * torch.outer(k[t], k[t])
        state = torch.exp(g[t]) * forget @ state + beta[t] * torch.outer(k[t], v[t])
        read.append(state.T @ q[t])
    return torch.stack(read), state


def ssd_by_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Dao & Gu 2024, equations 1 and 2 with scalar A."""
    read = []
    for t in range(len(q)):
        state = torch.exp(g[t]) * state + torch.outer(k[t], v[t])
        read.append(state.T @ q[t])
    return torch.stack(read), state


def convolved(conv: Any, x: Tensor) -> Tensor:
    """Silu of torch's own depthwise convolution after zeros."""
    if not isinstance(conv, ShortConv):
        return F.silu(x)
    size = conv.weight.shape[-1]
    padded = F.pad(x.transpose(1, 2), (size - 1, 0))
    return F.silu(F.conv1d(padded, conv.weight, conv.bias, groups=x.shape[-1]).transpose(1, 2))


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def gated_delta_by_loop(m: Any, x: Tensor) -> Tensor:
    n_value_head, sizes = m.n_key_head * m.n_shared, m.sizes
    q, k, v = convolved(m.conv, torch.cat((m.q(x), m.k(x), m.v(x)), -1)).split(sizes, -1)
    q, k = (part.unflatten(-1, (m.n_key_head, -1)) for part in (q, k))
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    v, beta = v.unflatten(-1, (n_value_head, -1)), 1 / (1 + torch.exp(-m.b(x)))
    g = -torch.exp(m.step.A_log) * torch.log1p(torch.exp(m.a(x) + m.step.dt_bias))
    y = torch.empty_like(v)
    for b in range(len(x)):
        for h in range(n_value_head):
            of = h // m.n_shared
            nothing = torch.zeros(m.key_size, m.value_size)
            read, _ = delta_by_loop(q[b, :, of], k[b, :, of], v[b, :, h], beta[b, :, h], g[b, :, h], nothing)
            y[b, :, h] = read / math.sqrt(m.key_size)
    y = (rms(y, m.norm.eps) * m.norm.weight).flatten(2)
    return m.proj(y if m.z is None else y * F.silu(m.z(x)))


def mamba2_by_loop(m: Any, x: Tensor) -> Tensor:
    n_head, n_group = len(m.D), m.n_group
    z, xbc, dt = m.in_proj(x).split((m.sizes[0], sum(m.sizes), n_head), -1)
    u, k, q = convolved(m.conv, xbc).split(m.sizes, -1)
    u, k, q = u.unflatten(-1, (n_head, -1)), k.unflatten(-1, (n_group, -1)), q.unflatten(-1, (n_group, -1))
    dt = torch.log1p(torch.exp(dt + m.step.dt_bias))
    y = torch.empty_like(u)
    for b in range(len(x)):
        for h in range(n_head):
            of, step = h * n_group // n_head, dt[b, :, h]
            nothing = torch.zeros(m.state_size, u.shape[-1])
            v, g = step[:, None] * u[b, :, h], -torch.exp(m.step.A_log[h]) * step
            y[b, :, h] = ssd_by_loop(q[b, :, of], k[b, :, of], v, g, nothing)[0] + m.D[h] * u[b, :, h]
    gated = (y.flatten(2) * F.silu(z)).unflatten(-1, (n_group, -1))
    return m.proj(rms(gated, m.norm.eps).flatten(-2) * m.norm.weight)


BY_LOOP = {"gated_delta": gated_delta_by_loop, "mamba2": mamba2_by_loop}


@pytest.mark.parametrize("spec", MIXERS, ids=str)
def test_a_mixer_is_the_recurrence_of_its_paper(spec: Any) -> None:
    module, x = mixer(spec), torch.randn(B, T, C)
    with torch.no_grad():
        close(run(module, x), BY_LOOP[spec["name"]](module, x))


def random_rule(n_tokens: int, decay: float) -> dict[str, Tensor]:
    """What a rule is given for 2 key heads with 3 value heads each, as leaves, and a state that is not 0."""
    k = F.normalize(torch.randn(B, 2, 1, n_tokens, 5), dim=-1)
    given = {
        "q": torch.randn(B, 2, 1, n_tokens, 5),
        "k": k,
        "v": torch.randn(B, 2, 3, n_tokens, 4),
        "beta": torch.rand(B, 2, 3, n_tokens, 1),
        "log_decay": -decay * torch.rand(B, 2, 3, n_tokens, 1),
        "state": torch.randn(B, 2, 3, 5, 4),
    }
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


@pytest.mark.parametrize("decay", [0.05, 40.0])  # 40: e^-1300 within a chunk, which no quotient of decays survives
@pytest.mark.parametrize("n_tokens", [1, 7, CHUNK, CHUNK + 1, T])
@pytest.mark.parametrize("rule", ["delta", "ssd"])
def test_chunks_give_the_outputs_states_and_gradients_of_the_loop(rule: str, n_tokens: int, decay: float) -> None:
    given = random_rule(n_tokens, decay)
    if rule == "ssd":
        del given["beta"]
    y, state = (delta_rule if rule == "delta" else ssd)(**given, documents=None)
    wanted, last = torch.empty_like(y), torch.empty_like(state)
    for b, g, r in ((b, g, r) for b in range(B) for g in range(2) for r in range(3)):
        q, k = given["q"][b, g, 0], given["k"][b, g, 0]
        v, fade, before = given["v"][b, g, r], given["log_decay"][b, g, r, :, 0], given["state"][b, g, r]
        if rule == "delta":
            wanted[b, g, r], last[b, g, r] = delta_by_loop(q, k, v, given["beta"][b, g, r, :, 0], fade, before)
        else:
            wanted[b, g, r], last[b, g, r] = ssd_by_loop(q, k, v, fade, before)
    close(y, wanted)
    close(state, last)
    weights, more = torch.randn_like(y), torch.randn_like(state)
    ours, theirs = (
        torch.autograd.grad((a * weights).sum() + (s * more).sum(), list(given.values()))
        for a, s in ((y, state), (wanted, last))
    )
    for one, other in zip(ours, theirs, strict=True):
        close(one, other, 1e-9)


# memory and documents


@pytest.mark.parametrize("sizes", [[1] * T, [70, 1, 1, 5, T - 77], [CHUNK, T - CHUNK], [T - 1, 1]], ids=len)
@pytest.mark.parametrize("spec", MIXERS, ids=str)
def test_any_split_of_a_sequence_gives_the_same(spec: Any, sizes: list[int]) -> None:
    module, x = mixer(spec), torch.randn(B, T, C)
    close(run_split(module, x, sizes), run(module, x))


@pytest.mark.parametrize("spec", MIXERS, ids=str)
def test_packed_documents_are_as_separate_ones(spec: Any) -> None:
    module, x = mixer(spec), torch.randn(B, T, C)
    lengths = [[1, 2, 61, CHUNK, 10, T - 138], [CHUNK, 1, 63, 0, 0, T - 128]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(6), torch.tensor(row)) for row in lengths])
    packed = run(module, x, documents)
    for b, row in enumerate(lengths):
        pieces = [run(module, piece[None])[0] for piece in x[b].split(row) if len(piece)]
        close(packed[b], torch.cat(pieces))
    for sizes in ([1] * T, [2, 1, 61, 3, T - 67], [CHUNK, T - CHUNK]):
        close(run_split(module, x, sizes, documents), packed)


def test_one_document_is_as_none_at_all() -> None:
    for spec in MIXERS:
        module, x = mixer(spec), torch.randn(B, T, C)
        close(run(module, x, torch.full((B, T), 3)), run(module, x))


@pytest.mark.parametrize("spec", MIXERS, ids=str)
def test_the_memory_does_not_grow(spec: Any) -> None:
    module, x = mixer(spec), torch.randn(B, T, C)
    memory = module.new_cache(B, T)
    before = memory.window.shape, memory.state.shape
    module(x, context(T), memory)
    assert (memory.window.shape, memory.state.shape) == before


# numbers


@pytest.mark.parametrize("name", ["gated_delta", "mamba2"])
def test_thousands_of_tokens_stay_finite_in_float32(name: str) -> None:
    module = mixer(name, torch.float32)
    exact = copy.deepcopy(module).double()
    for bias in (-8.0, 3.0):  # a state that hardly fades, one that fades at once
        with torch.no_grad():
            for each in (module, exact):
                each.step.dt_bias.fill_(bias)
        x = torch.randn(1, 4096, C, dtype=torch.float32, requires_grad=True)
        y = module(x, context(4096))
        y.square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert relative(y.detach().double(), run(exact, x.detach().double())) < 1e-3


@pytest.mark.parametrize("name", ["gated_delta", "mamba2"])
def test_a_model_in_bf16_keeps_its_state_in_float32(name: str) -> None:
    module, x = mixer(name, torch.bfloat16), torch.randn(B, T, C, dtype=torch.bfloat16)
    memory = module.new_cache(B, T)
    with torch.no_grad():
        y = module(x, context(T), memory)
    assert y.dtype == torch.bfloat16
    assert memory.state.dtype == torch.float32
    wanted = run(copy.deepcopy(module).double(), x.double())
    assert (y.double() - wanted).square().mean().sqrt() < 0.05 * wanted.square().mean().sqrt()


def test_steps_and_decays_begin_where_the_papers_say() -> None:
    step = TimeStep(10_000)
    dt, log_decay = (part.detach() for part in step(torch.zeros(1, 1, 10_000)))
    assert 0.001 <= dt.min() < 0.0011 < 0.09 < dt.max() <= 0.1
    assert dt.log().mean() == pytest.approx(math.log(0.01), abs=0.05)  # log-uniform
    rate = -log_decay / dt
    assert 1 <= rate.min() < 1.1 < 15.9 < rate.max() <= 16
    assert rate.mean() == pytest.approx(8.5, abs=0.2)
    conv = ShortConv(10_000, 4, bias=True)
    assert 0.49 < conv.weight.abs().max() <= 0.5
    assert conv.bias is not None
    assert conv.bias.abs().max() == 0


def test_the_initial_values_of_a_layer_are_its_own() -> None:
    sizes = {"vocab_size": 7, "n_layer": 2, "n_embd": C, "n_head": H, "position": "none", "attention": "mamba2"}
    one, other = GPT(ModelConfig(**sizes), seed=0), GPT(ModelConfig(**sizes), seed=1)
    steps = [block.attention.step.A_log for model in (one, other) for block in model.blocks]  # type: ignore[union-attr]
    assert len({tuple(step.tolist()) for step in steps}) == 4


# transformers


def loaded(theirs: Any, weights: dict[str, Tensor]) -> Any:
    theirs.load_state_dict(weights)  # every weight of theirs is one of ours, and none is left over
    return theirs.eval()


def test_mamba2_is_that_of_transformers() -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.set_default_dtype(torch.float32)
    spec = {"name": "mamba2", "state_size": 6, "n_group": 2, "head_size": 8, "bias": True}
    ours, x = mixer(spec, torch.float32), torch.randn(B, T, C)
    config = Mamba2Config(
        hidden_size=C, num_heads=8, head_dim=8, state_size=6, n_groups=2, num_hidden_layers=1, use_bias=True,
        chunk_size=32,
    )  # fmt: skip
    renamed = {"step.A_log": "A_log", "step.dt_bias": "dt_bias", "proj.weight": "out_proj.weight"} | {
        "proj.bias": "out_proj.bias", "conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias"
    }  # fmt: skip
    weights = {renamed.get(name, name): tensor for name, tensor in ours.state_dict().items()}
    with torch.no_grad():
        wanted = loaded(Mamba2Mixer(config, layer_idx=0), weights)(x)
    assert relative(run(ours, x), wanted) < 2e-5


def interleaved(n_group: int, *weights: Tensor) -> Tensor:
    """Rows of several projections, laid out by key head as transformers has them: all of head 0, all of head 1, ..."""
    return torch.cat([weight.unflatten(0, (n_group, -1)) for weight in weights], dim=1).flatten(0, 1)


def test_gated_delta_is_that_of_qwen3_next() -> None:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    torch.set_default_dtype(torch.float32)
    spec = {"name": "gated_delta", "n_key_head": 2, "n_value_head": 6, "key_size": 8, "value_size": 12, "eps": 1e-6}
    ours, x = mixer(spec, torch.float32), torch.randn(B, T, C)
    config = Qwen3NextConfig(
        hidden_size=C, num_hidden_layers=1, linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=8,
        linear_value_head_dim=12, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, layer_types=["linear_attention"],
    )  # fmt: skip
    own = ours.state_dict()
    qkvz = interleaved(2, *(own[f"{name}.weight"] for name in "qkvz"))
    weights = {
        "in_proj_qkvz.weight": qkvz,
        "in_proj_ba.weight": interleaved(2, own["b.weight"], own["a.weight"]),
        "conv1d.weight": own["conv.weight"],
        "A_log": own["step.A_log"],
        "dt_bias": own["step.dt_bias"],
        "norm.weight": own["norm.weight"],
        "out_proj.weight": own["proj.weight"],
    }
    with torch.no_grad():
        wanted = loaded(Qwen3NextGatedDeltaNet(config, layer_idx=0), weights)(x)
    assert relative(run(ours, x), wanted) < 2e-5


# fla


def fla_by_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """What flash-linear-attention 0.6 documents: (B, T, H, size), HV value heads share H, g and beta (B, T, HV)."""
    assert options["output_final_state"]
    state, share = options["initial_state"], v.shape[2] // k.shape[2]  # (B, HV, K, V)
    y, last = torch.empty_like(v), torch.empty_like(state)
    for b, h in ((b, h) for b in range(B) for h in range(v.shape[2])):
        of = h // share
        inputs = q[b, :, of], k[b, :, of], v[b, :, h], beta[b, :, h], g[b, :, h], state[b, h]
        y[b, :, h], last[b, h] = delta_by_loop(*inputs)
    return options["scale"] * y, last


def test_flas_kernels_are_given_what_they_document(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("fla.ops.gated_delta_rule")
    stand_in.chunk_gated_delta_rule = fla_by_loop  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    given = random_rule(T, 1.0)
    with torch.no_grad():
        for one, other in zip(*(rule(**given, documents=None) for rule in (fla_rule, delta_rule)), strict=True):
            close(one, other)


# what is refused


@pytest.mark.parametrize(
    ("spec", "position", "told"),
    [
        ({"name": "gated_delta"}, "rope", "has no use for position 'rope', which acts in rotate"),
        ({"name": "mamba2"}, "alibi", "acts in terms"),
        ({"name": "gated_delta", "n_key_head": 3, "n_value_head": 4}, "none", "3 does not divide 4"),
        ({"name": "gated_delta", "key_size": 0}, "none", "at least 1"),
        ({"name": "gated_delta", "conv_size": -1}, "none", "conv_size must be at least 0"),
        ({"name": "mamba2", "head_size": 5}, "none", "5 does not divide 64"),
        ({"name": "mamba2", "n_group": 3}, "none", "n_group must divide the 8 heads"),
        ({"name": "mamba2", "state_size": 0}, "none", "state_size must be at least 1"),
    ],
)
def test_a_mixer_that_cannot_be_is_refused_in_one_line(spec: Any, position: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        registry.build("attention", spec, SHAPE, registry.build("position", position, SHAPE))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_fla_is_refused_without_cuda_and_auto_does_without_it() -> None:
    with pytest.raises(ConfigError, match="kernel=fla needs"):
        mixer({"name": "gated_delta", "kernel": "fla"})
    assert not mixer("gated_delta").fused
