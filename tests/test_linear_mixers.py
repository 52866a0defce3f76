"""Mixers whose past is of fixed size, against their papers' formulas written as loops, one token and head at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab import registry
from gptlab.components.attention.recurrence import Carry, recall
from gptlab.components.attention.state_space import CHUNK
from gptlab.components.attention.taps import Taps
from gptlab.components.context import Context
from gptlab.components.precision import without_autocast
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

B, C, H, D = 2, 24, 3, 8
T = 2 * CHUNK + 21  # three chunks, the last of them not full
SHAPE = Shape(n_embd=C, n_head=H, block_size=T, bias=True)
VARIANTS: list[Any] = [
    "linear",
    {"name": "linear", "feature": "relu"},
    "retention",
    {"name": "retention", "expand": 2},
    {"name": "conv", "kernel_size": 3, "dilation": 4},
    {"name": "window_mlp", "window": 4},
    "mean",
]
SPLITS = [[T], [1] * T, [CHUNK] * 2 + [21], [7, 1, 1, CHUNK + 5, T - CHUNK - 14], [T - 9, 9]]

pytestmark = pytest.mark.usefixtures("float64")


def attention(spec: Any, position: str = "none", shape: Shape = SHAPE) -> Any:
    """An attention with random parameters, biases and gains included."""
    built = registry.build("attention", spec, shape, registry.build("position", position, shape))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.4)
    return built.eval()


def positions_in(documents: Tensor) -> Tensor:
    """Positions that restart at each document."""
    at = torch.zeros_like(documents)
    for t in range(1, documents.shape[1]):
        at[:, t] = torch.where(documents[:, t] == documents[:, t - 1], at[:, t - 1] + 1, 0)
    return at


def mixed(module: Any, x: Tensor, documents: Tensor | None = None, split: list[int] | None = None) -> Tensor:
    """What the module gives, uncached, or fed in pieces through its memory."""
    at = torch.arange(x.shape[1])[None] if documents is None else positions_in(documents)
    cache = module.new_cache(len(x), x.shape[1]) if split else None
    outs, start = [], 0
    with torch.no_grad():
        for size in split or [x.shape[1]]:
            piece = slice(start, start + size)
            own = None if documents is None else documents[:, piece]
            outs.append(module(x[:, piece], Context(positions=at[:, piece], documents=own), cache))
            start += size
    return torch.cat(outs, dim=1)


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    return (x @ linear.weight.T + linear.bias).detach()


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


# against the papers


def phi(x: Tensor, feature: str) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp()) if feature == "elu" else x.clamp(min=0) + 1e-3


@pytest.mark.parametrize("feature", ["elu", "relu"])
@pytest.mark.parametrize("position", ["none", "rope"])
def test_linear_attention_is_the_normalized_sum_of_the_paper(feature: str, position: str) -> None:
    """Equation 9 of Katharopoulos et al. 2020; with RoPE equation 19 of Su et al. 2021, which turns the numerator."""
    module, x = attention({"name": "linear", "feature": feature}, position), torch.randn(B, T, C)
    q, k, v = (affine(part, x).unflatten(-1, (H, D)) for part in (module.q, module.k, module.v))
    q, k = phi(q, feature), phi(k, feature)
    turned = module.position.rotate(*(z.transpose(1, 2) for z in (q, k)), torch.arange(T)[None])
    turned_q, turned_k = (z.transpose(1, 2) for z in turned)
    y = torch.zeros(B, T, H, D)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                weights = torch.stack([q[b, i, h] @ k[b, j, h] for j in range(i + 1)])
                signed = torch.stack([turned_q[b, i, h] @ turned_k[b, j, h] for j in range(i + 1)])
                y[b, i, h] = sum(signed[j] * v[b, j, h] for j in range(i + 1)) / (weights.sum() + 1e-6)
    close(mixed(module, x), affine(module.proj, y.flatten(2)))


def group_norm(y: Tensor, norm: nn.GroupNorm) -> Tensor:
    """y (..., H, E): each head by its own mean and deviation, then a gain and a bias for each entry."""
    mean = y.sum(-1, keepdim=True) / y.shape[-1]
    variance = ((y - mean) ** 2).sum(-1, keepdim=True) / y.shape[-1]
    return (((y - mean) / (variance + norm.eps).sqrt()).flatten(-2) * norm.weight + norm.bias).detach()


def retained(module: Any, y: Tensor, x: Tensor) -> Tensor:
    """Equation 8 of Sun et al. 2023: norm, swish gate, projection of the heads y (B, T, H, E)."""
    gate = affine(module.gate, x)
    return affine(module.proj, gate / (1 + torch.exp(-gate)) * group_norm(y, module.norm))


def retention_parts(module: Any, x: Tensor, expand: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of each token and head, q over sqrt(D)."""
    q, k = (affine(part, x).unflatten(-1, (H, D)) for part in (module.q, module.k))
    return q / math.sqrt(D), k, affine(module.v, x).unflatten(-1, (H, expand * D))


@pytest.mark.parametrize("expand", [1, 2])
def test_retention_is_the_parallel_form_of_the_paper_with_its_three_scalings(expand: int) -> None:
    module, x = attention({"name": "retention", "expand": expand}), torch.randn(B, T, C)
    q, k, v = retention_parts(module, x, expand)
    y = torch.zeros(B, T, H, expand * D)
    for h in range(H):
        gamma = 1 - 2.0 ** (-5 - h)
        decays = torch.tensor([[gamma ** (n - m) if n >= m else 0.0 for m in range(T)] for n in range(T)])
        decays = decays / decays.sum(1, keepdim=True).sqrt()
        for b in range(B):
            scores = (q[b, :, h] @ k[b, :, h].T) * decays
            scores = scores / scores.sum(1, keepdim=True).abs().clamp(min=1)
            y[b, :, h] = scores @ v[b, :, h]
    close(mixed(module, x), retained(module, y, x))


def test_the_scalings_of_retention_leave_the_result_of_the_plain_recurrence() -> None:
    """Sun et al. 2023, section 2.2: the norm of each head undoes them. S_n = gamma S_{n-1} + k_n v_n, o_n = q_n S_n."""
    module, x = attention("retention"), torch.randn(B, T, C)
    module.norm.eps = 1e-14
    q, k, v = retention_parts(module, x)
    y = torch.zeros(B, T, H, D)
    for b in range(B):
        for h in range(H):
            state = torch.zeros(D, D)
            for n in range(T):
                state = (1 - 2.0 ** (-5 - h)) * state + torch.outer(k[b, n, h], v[b, n, h])
                y[b, n, h] = q[b, n, h] @ state
    close(mixed(module, x), retained(module, y, x), 1e-6)


def test_retention_turned_by_rope_is_retention_of_turned_queries_and_keys() -> None:
    module, x = attention("retention", "rope"), torch.randn(B, T, C)
    q, k, v = (z.transpose(1, 2) for z in retention_parts(module, x))
    q, k = module.position.rotate(q, k, torch.arange(T)[None])
    gap = torch.arange(T)[:, None] - torch.arange(T)
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(H)])[:, None, None]
    decays = gamma ** gap.clamp(min=0) * (gap >= 0)
    scores = (q @ k.mT) * decays / decays.sum(-1, keepdim=True).sqrt()
    y = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1) @ v
    close(mixed(module, x), retained(module, y.transpose(1, 2), x))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(2, 1), (3, 4), (4, 2)])
def test_conv_is_the_sum_over_taps_of_wavenet(gated: bool, kernel_size: int, dilation: int) -> None:
    module = attention({"name": "conv", "kernel_size": kernel_size, "dilation": dilation, "gated": gated})
    x = torch.randn(B, 30, C)
    taps = module.filters.weight.detach().unflatten(1, (kernel_size, C))  # oldest first
    y = module.filters.bias.detach().expand(B, 30, -1).clone()
    for t in range(30):
        for age in range(kernel_size):
            if t - age * dilation >= 0:
                y[:, t] += x[:, t - age * dilation] @ taps[:, kernel_size - 1 - age].T
    y = torch.tanh(y[..., :C]) / (1 + torch.exp(-y[..., C:])) if gated else y.clamp(min=0)
    close(mixed(module, x), affine(module.proj, y))


def test_conv_is_torchs_convolution() -> None:
    module, x = attention({"name": "conv", "kernel_size": 3, "dilation": 5, "gated": False}), torch.randn(B, 40, C)
    kernel = module.filters.weight.detach().unflatten(1, (3, C)).transpose(1, 2)
    theirs = F.conv1d(F.pad(x.mT, (10, 0)), kernel, module.filters.bias.detach(), dilation=5).mT
    close(mixed(module, x), affine(module.proj, theirs.relu()))


@pytest.mark.parametrize(("window", "hidden"), [(3, None), (1, 7), (5, 40)])
def test_an_mlp_over_a_window_is_that_of_bengio(window: int, hidden: int | None) -> None:
    module, x = attention({"name": "window_mlp", "window": window, "hidden": hidden}), torch.randn(B, 30, C)
    wanted = torch.zeros(B, 30, C)
    for t in range(30):
        seen = [x[:, s] if s >= 0 else torch.zeros(B, C) for s in range(t - window + 1, t + 1)]  # the token itself last
        units = torch.tanh(torch.cat(seen, dim=1) @ module.up.weight.T + module.up.bias)
        wanted[:, t] = units @ module.proj.weight.T + module.proj.bias
    close(mixed(module, x), wanted.detach())
    assert module.up.out_features == (hidden or 4 * C)


def test_the_dilation_grows_with_the_layer_and_starts_again_where_it_no_longer_fits() -> None:
    def dilations(kernel_size: int, block_size: int) -> list[int]:
        shapes = [Shape(n_embd=C, n_head=H, block_size=block_size, n_layer=6, layer=layer) for layer in range(6)]
        return [attention({"name": "conv", "kernel_size": kernel_size}, shape=shape).dilation for shape in shapes]

    assert dilations(2, 16) == [1, 2, 4, 8, 1, 2]
    assert dilations(2, 17) == [1, 2, 4, 8, 16, 1]
    assert dilations(3, 9) == [1, 3, 1, 3, 1, 3]
    assert dilations(3, 7) == [1, 3, 1, 3, 1, 3]
    assert dilations(3, 6) == [1] * 6


# what they share


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"{len(split)} pieces")
def test_any_split_through_the_memory_is_the_whole(spec: Any, split: list[int]) -> None:
    position = "rope" if registry.get("attention", registry.name_of("attention", spec)).honours else "none"
    module, x = attention(spec, position), torch.randn(B, T, C)
    close(mixed(module, x, split=split), mixed(module, x))


ENDS = [[1, 20, CHUNK, CHUNK + 1, 130], [CHUNK - 1, 2 * CHUNK, T - 1]]  # where documents end, row by row


def packed() -> Tensor:
    """Document of each token: several, of length 1 too, with borders on and off those of the chunks."""
    return torch.stack([torch.bucketize(torch.arange(T), torch.tensor(ends), right=True) for ends in ENDS])


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_packed_documents_are_documents_apart(spec: Any) -> None:
    position = "rope" if registry.get("attention", registry.name_of("attention", spec)).honours else "none"
    module, x, documents = attention(spec, position), torch.randn(B, T, C), packed()
    assert module.separates_documents
    apart = torch.zeros_like(x)
    for row, ends in enumerate(ENDS):
        for start, stop in zip([0, *ends], [*ends, T], strict=True):
            apart[row : row + 1, start:stop] = mixed(module, x[row : row + 1, start:stop])
    close(mixed(module, x, documents), apart)
    for split in SPLITS:
        close(mixed(module, x, documents, split), apart)


def by_definition(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, documents: Tensor) -> Tensor:
    """The matrix of all pairs: decay^(t - s) where s <= t is of the same document."""
    gap = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    seen = (gap >= 0) & (documents[:, None, :, None] == documents[:, None, None, :])
    return (q @ k.mT * decay[:, None, None] ** gap.clamp(min=0) * seen) @ v


def test_the_chunkwise_sum_has_the_value_and_gradients_of_the_definition() -> None:
    q, k = torch.randn(2, B, H, T, D, requires_grad=True).unbind(0)
    v, decay, weights = torch.randn(B, H, T, 5, requires_grad=True), torch.tensor([0.5, 0.99, 1.0]), torch.randn(5)
    leaves = (q, k, v)
    wanted = by_definition(*leaves, decay, packed())
    got = recall(*leaves, decay.log(), packed(), Carry(B, H, D, 5, q))
    close(got, wanted)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, wanted)), strict=True):
        close(a, b, 1e-9)


def count(memory: Any) -> int:
    """Numbers that a memory holds."""
    if isinstance(memory, Tensor):
        return memory.numel()
    return sum(map(count, vars(memory).values())) if hasattr(memory, "__dict__") else 0


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_the_memory_does_not_grow(spec: Any) -> None:
    module, sizes = attention(spec), []
    cache, at = module.new_cache(B, T), torch.arange(T)[None]
    for start, stop in ((0, 1), (1, 3), (3, T)):
        with torch.no_grad():
            module(torch.randn(B, stop - start, C), Context(positions=at[:, start:stop]), cache)
        sizes.append(count(cache))
    assert module.cached == 0
    assert sizes[0] == sizes[1] == sizes[2] > 0


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_a_long_text_in_float32_stays_near_float64(spec: Any) -> None:
    torch.set_default_dtype(torch.float32)
    shape = Shape(n_embd=C, n_head=H, block_size=4096)
    module, x = attention(spec, shape=shape), torch.randn(1, 4096, C)
    got = mixed(module, x)
    assert got.dtype == torch.float32
    close(got.double(), mixed(module.double(), x.double()), 1e-3)


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_states_are_float32_at_least_and_results_have_the_type_of_the_model(spec: Any) -> None:
    module = attention(spec).to(torch.bfloat16)
    x = torch.randn(B, T, C).to(torch.bfloat16)
    assert mixed(module, x).dtype == torch.bfloat16
    cache = module.new_cache(B, T)
    with torch.no_grad():
        module(x, Context(positions=torch.arange(T)[None]), cache)
    sums = [getattr(cache, "state", None), getattr(cache, "total", None)]
    sums += [getattr(getattr(cache, side, None), "state", None) for side in ("above", "below")]
    kept = [held.dtype for held in sums if held is not None]
    assert kept == [torch.float32] * len(kept)
    assert kept or isinstance(module, Taps)  # which remembers inputs as they came


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_bf16_decoding_token_by_token_does_not_drift(spec: Any) -> None:
    """Through 1024 steps under autocast the last outputs are as near to float64 as those of one parallel call."""
    torch.set_default_dtype(torch.float32)
    shape = Shape(n_embd=C, n_head=H, block_size=1024)
    module, x = attention(spec, shape=shape), torch.randn(1, 1024, C)
    with torch.autocast("cpu", torch.bfloat16):
        step_by_step, at_once = mixed(module, x, split=[1] * 1024), mixed(module, x)
    exact = mixed(module.double(), x.double())
    errors = [float((y - exact)[:, -64:].square().mean().sqrt()) for y in (step_by_step, at_once)]
    assert errors[0] < 2 * errors[1] + 1e-3


def test_a_state_is_not_rounded_under_autocast() -> None:
    q, k, v = torch.randn(3, B, H, T, 8).float()
    arguments = (q, k, v, torch.zeros(H).float(), None)
    with torch.autocast("cpu", torch.bfloat16):
        y = recall(*arguments, Carry(B, H, 8, 8, q))
    assert torch.equal(y, recall(*arguments, Carry(B, H, 8, 8, q)))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta"])
def test_autocast_is_switched_off_on_the_device_in_use(device: str) -> None:
    off = without_autocast(torch.device(device))
    assert getattr(off, "device", None) == (None if device == "meta" else device)
    with off:
        pass


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_shapes_follow_on_the_meta_device(spec: Any) -> None:
    with torch.device("meta"):
        module = registry.build("attention", spec, SHAPE, registry.build("position", "none", SHAPE))
        x = torch.empty(B, T, C)
        assert module(x, Context(positions=torch.arange(T)[None])).shape == (B, T, C)


@pytest.mark.parametrize(
    ("spec", "position", "told"),
    [
        ("linear", "alibi", "has no use for position 'alibi', which acts in terms"),
        ("retention", "alibi", "acts in terms"),
        ("conv", "rope", "acts in rotate"),
        ("mean", "rope", "acts in rotate"),
        ({"name": "retention", "expand": 0}, "none", "expand must be at least 1, but is 0"),
        ({"name": "conv", "kernel_size": 1}, "none", "kernel_size must be at least 2, but is 1"),
        ({"name": "conv", "dilation": 0}, "none", "dilation must be at least 1, but is 0"),
        ({"name": "conv", "kernel_size": 3, "dilation": 75}, "none", "spans 151 tokens, and block_size is 149"),
        ({"name": "conv", "kernel_size": 150}, "none", "must fit into block_size"),
        ({"name": "window_mlp", "window": 0}, "none", "window must be from 1 to block_size = 149, but is 0"),
        ({"name": "window_mlp", "window": 150}, "none", "but is 150"),
        ({"name": "window_mlp", "hidden": 0}, "none", "hidden must be at least 1, but is 0"),
        ("window_mlp", "alibi", "acts in terms"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec: Any, position: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        attention(spec, position)
    assert "\n" not in str(refused.value)
