"""Each position encoding against the paper's formula in float64, or the functions of transformers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import registry
from gptlab.components.context import Context
from gptlab.components.position.alibi import slopes
from gptlab.components.position.t5 import buckets
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

B, T, C, H, D = 2, 13, 32, 4, 8
SHAPE = Shape(n_embd=C, n_head=H, block_size=T)
POSITIONS = torch.arange(T)[None]

pytestmark = pytest.mark.usefixtures("float64")


def position(spec: Any, shape: Shape = SHAPE) -> Any:
    """A position encoding with random parameters, zeros and ones included."""
    built = registry.build("position", spec, shape)
    for name, parameter in built.named_parameters():
        nn.init.normal_(parameter, mean=math.log(7) if name == "log_threshold" else 0.0, std=0.5)
    return built.eval()


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


# rotations


def turned(x: Tensor, frequencies: Tensor, layout: str = "half", scale: Any = 1.0, at: Tensor = POSITIONS) -> Tensor:
    """Pairs read as complex numbers, times scale * exp(i position frequency); the rest of each head as it is."""
    size = 2 * len(frequencies)
    front = x[..., :size]
    pairs = torch.complex(*(front.chunk(2, -1) if layout == "half" else (front[..., ::2], front[..., 1::2])))
    done = pairs * scale * torch.exp(1j * at[:, None, :, None] * frequencies)
    parts = (done.real, done.imag)
    joined = torch.cat(parts, -1) if layout == "half" else torch.stack(parts, -1).flatten(-2)
    return torch.cat((joined, x[..., size:]), -1)


def plain(size: int, theta: float = 10000.0) -> Tensor:
    return torch.tensor([theta ** (-2 * p / size) for p in range(size // 2)])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_rope_is_a_complex_multiplication(layout: str, fraction: float, factor: float) -> None:
    spec = {"name": "rope", "layout": layout, "fraction": fraction, "theta": 500.0, "factor": factor}
    q, k = torch.randn(B, H, T, D), torch.randn(B, 2, T, D)
    for got, x in zip(position(spec).rotate(q, k, POSITIONS), (q, k), strict=True):
        close(got, turned(x, plain(int(D * fraction), 500.0) / factor, layout), 1e-5)  # angles are float32


@pytest.mark.parametrize("name", ["rope", "xpos"])
def test_rotated_scores_depend_on_distance_alone(name: str) -> None:
    q, k = torch.randn(1, 1, 1, D).expand(1, 1, T, D), torch.randn(1, 1, 1, D).expand(1, 1, T, D)
    a, b = position(name).rotate(q, k, POSITIONS)
    scores = (a @ b.transpose(-1, -2))[0, 0]
    for distance in range(T):
        diagonal = scores.diagonal(-distance)
        close(diagonal, diagonal[:1].expand_as(diagonal), 1e-5)


@pytest.mark.parametrize("name", ["rope", "xpos"])
def test_each_row_is_rotated_by_its_own_positions(name: str) -> None:
    rotary, q = position(name), torch.randn(2, H, 3, D)
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    for both, alone in zip(
        rotary.rotate(q, q, positions),
        zip(*(rotary.rotate(q[row], q[row], positions[row]) for row in (slice(0, 1), slice(1, 2))), strict=True),
        strict=True,
    ):
        close(both, torch.cat(alone))


def test_one_rope_serves_heads_of_several_sizes_and_a_width_that_heads_do_not_divide() -> None:
    rope = position({"name": "rope", "fraction": 0.5}, Shape(n_embd=30, n_head=4, block_size=T))
    for size in (4, 8, 20):
        rope.fit(size)
        q = torch.randn(B, H, T, size)
        close(rope.rotate(q, q, POSITIONS)[0], turned(q, plain(size // 2)), 1e-5)


@pytest.mark.parametrize("fraction", [0.1, 3 / 8, 0.99])
def test_heads_of_which_no_even_number_turns_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="RoPE turns pairs"):
        position({"name": "rope", "fraction": fraction}).fit(D)


# scalings of RoPE, against transformers

THEIRS = {"rope": "linear", "ntk": "dynamic", "yarn": "yarn", "longrope": "longrope", "llama3": "llama3"}


def drawn(name: str, case: int) -> tuple[dict[str, Any], dict[str, Any], int, int, int]:
    """Random settings: ours, theirs, head size, block_size, and the length trained on."""
    rng = random.Random(f"{name} {case}")
    head_size, original = rng.choice([8, 16, 64, 128]), 2 ** rng.randint(6, 13)
    block_size = int(original * rng.choice([0.5, 1, 2.5, 8]))
    fraction, theta = rng.choice([1.0, 0.5]), 10 ** rng.uniform(2, 6)
    n_pairs = int(head_size * fraction) // 2
    own: dict[str, Any] = {"factor": rng.uniform(1, 16)}
    if name == "yarn":
        own |= {"beta_fast": rng.uniform(8, 64), "beta_slow": rng.uniform(0.5, 4), "truncate": rng.random() < 0.5}
        own |= rng.choice([{}, {"attention_factor": 1.3}, {"mscale": 0.7, "mscale_all_dim": 1.1}])
    elif name == "longrope":
        own = {key: [rng.uniform(1, 9) for _ in range(n_pairs)] for key in ("short_factor", "long_factor")}
    elif name == "llama3":
        own |= {"low_freq_factor": rng.uniform(0.5, 2), "high_freq_factor": rng.uniform(3, 9)}
    ours = {"name": name, "theta": theta, "fraction": fraction, **own} | (
        {} if name == "rope" else {"original": original}
    )
    theirs = {"rope_type": THEIRS[name], "rope_theta": theta, "partial_rotary_factor": fraction, **own}
    return ours, theirs | {"original_max_position_embeddings": original}, head_size, block_size, original


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("name", THEIRS)
def test_a_scaling_turns_as_that_of_transformers_does(name: str, case: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours, theirs, head_size, block_size, original = drawn(name, case)
    config = LlamaConfig(
        hidden_size=2 * head_size, num_attention_heads=2, head_dim=head_size, rope_parameters=theirs,
        max_position_embeddings=original if name == "ntk" else block_size,
    )  # fmt: skip
    wanted, scale = ROPE_INIT_FUNCTIONS[THEIRS[name]](config, torch.device("cpu"), seq_len=block_size)
    rotary = position(ours, Shape(n_embd=32, n_head=4, block_size=block_size))
    rotary.fit(head_size)
    got = rotary.frequencies(rotary.n_turned(head_size), torch.device("cpu"))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    assert rotary.magnitude == pytest.approx(scale, rel=1e-6)
    q = torch.randn(1, 1, T, head_size)
    close(rotary.rotate(q, q, POSITIONS)[0], turned(q, wanted.double(), scale=scale), 2e-5)


def test_yarn_splits_deepseeks_magnitude_between_what_turns_and_all_scores() -> None:
    """With all of a head turning, magnitude squared times score_factor is that of mscale, wherever it is applied."""
    of_deepseek = {"name": "yarn", "original": 4096, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    split, whole = position(of_deepseek), position({**of_deepseek, "mscale_all_dim": 0.0})
    assert split.magnitude == 1
    assert split.score_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert whole.magnitude**2 * whole.score_factor == pytest.approx(split.score_factor)
    one, other = (registry.build("attention", "vanilla", SHAPE, each).eval() for each in (split, whole))
    other.load_state_dict(one.state_dict())
    h, context = torch.randn(B, T, C), Context(positions=POSITIONS)
    close(one(h, context).detach(), other(h, context).detach(), 1e-6)
    assert one.plan.scale == pytest.approx(split.score_factor / math.sqrt(D))


@pytest.mark.parametrize(("original", "divisor"), [(10**9, 1.0), (1, 4.0)])
def test_a_ramp_of_yarn_that_ends_outside_the_pairs_keeps_all_or_slows_all(original: int, divisor: float) -> None:
    """All pairs turn often in a length as long, none in one as short; the fastest of all is left as it is."""
    yarn = position({"name": "yarn", "original": original, "factor": 4.0, "theta": 10.0})
    got = yarn.frequencies(D, torch.device("cpu")).double()
    close(got[1:], plain(D, 10.0)[1:] / divisor, 1e-6)
    close(got[:1], torch.ones(1))


def test_at_the_original_length_ntk_and_longrope_are_rope() -> None:
    q = torch.randn(1, 1, T, D)
    rope = position("rope").rotate(q, q, POSITIONS)[0]
    for spec in ({"name": "ntk", "factor": 4.0}, {"name": "longrope", "long_factor": [2.0] * (D // 2)}):
        close(position({**spec, "original": T}).rotate(q, q, POSITIONS)[0], rope)


def test_longrope_without_lists_is_position_interpolation_but_for_its_magnitude() -> None:
    q = torch.randn(1, 1, T, D)
    longrope = position({"name": "longrope", "original": 4})
    linear = position({"name": "rope", "factor": T / 4}).rotate(q, q, POSITIONS)[0]
    close(longrope.rotate(q, q, POSITIONS)[0], linear * math.sqrt(1 + math.log(T / 4) / math.log(4)), 1e-6)


# xPos


def test_xpos_is_its_formula() -> None:
    """q_n . k_m = sum over pairs of Re(q conj(k) exp(i (n - m) frequency)) zeta^((n - m) / scale_base)."""
    xpos = position({"name": "xpos", "scale_base": 3.0, "layout": "interleaved"})
    q, k = torch.randn(T, D), torch.randn(T, D)
    a, b = (x[0, 0] for x in xpos.rotate(q[None, None], k[None, None], POSITIONS + 40))
    for n in range(T):
        for m in range(n + 1):
            score = 0.0
            for pair in range(D // 2):
                product = complex(*q[n, 2 * pair : 2 * pair + 2]) * complex(*k[m, 2 * pair : 2 * pair + 2]).conjugate()
                angle, zeta = (n - m) * 10000 ** (-2 * pair / D), (2 * pair / D + 0.4) / 1.4
                score += (product * complex(math.cos(angle), math.sin(angle))).real * zeta ** ((n - m) / 3.0)
            assert float(a[n] @ b[m]) == pytest.approx(score, abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_stays_in_range_and_relative_at_long_lengths(dtype: torch.dtype) -> None:
    shape = Shape(n_embd=C, n_head=H, block_size=32768)
    xpos, ones = position("xpos", shape), torch.ones(1, 1, 4, D, dtype=dtype)
    for start in (0, 16000, 32760, 50000, 10**6):
        at = start + torch.tensor([[0, 1, 5, 7]])
        a, b = xpos.rotate(ones, ones, at)
        assert a.isfinite().all()
        assert b.isfinite().all()
        assert (a.float() @ b.float().transpose(-1, -2)).isfinite().all()
    far = torch.tensor([[100, 9000, 20000, 32767]])
    scale = xpos.scales(far, D)[0, 0].double()
    zeta = (torch.arange(0, D, 2) / D + 0.4) / 1.4
    for i, j in ((1, 0), (2, 1), (3, 2), (3, 0)):
        wanted = zeta ** (float(far[0, i] - far[0, j]) / 512)
        torch.testing.assert_close(scale[i] / scale[j], wanted, rtol=1e-4, atol=0)


# terms


def dense(encoding: Any, q_pos: Tensor = POSITIONS, k_pos: Tensor = POSITIONS) -> Tensor:
    """What is added to the scores, (B, H, T, S)."""
    (term,) = encoding.terms()
    return term(torch.arange(H)[None, :, None, None], q_pos[:, None, :, None], k_pos[:, None, None, :]).detach()


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def by_alibi(encoding: Any) -> Callable[[int, int, int], float]:
    return lambda h, i, j: -(2 ** (-8 * (h + 1) / H)) * (i - j)


def by_log(encoding: Any) -> Callable[[int, int, int], float]:
    r1, r2 = ([softplus(x) for x in raw.tolist()] for raw in (encoding.r1, encoding.r2))
    return lambda h, i, j: -r1[h] * math.log(1 + r2[h] * (i - j))


def by_power(encoding: Any) -> Callable[[int, int, int], float]:
    r1, r2 = [softplus(x) for x in encoding.r1.tolist()], [2 / (1 + math.exp(-x)) for x in encoding.r2.tolist()]
    return lambda h, i, j: -r1[h] * (i - j) ** r2[h]


def by_fire(encoding: Any) -> Callable[[int, int, int], float]:
    c, threshold = math.exp(encoding.log_c.item()), math.exp(encoding.log_threshold.item())
    assert 4 < threshold < 11  # so that both sides of the maximum are met
    slopes, biases = encoding.inner.weight[:, 0].tolist(), encoding.inner.bias.tolist()
    outer = encoding.outer.weight.tolist()

    def score(h: int, i: int, j: int) -> float:
        x = math.log(c * (i - j) + 1) / math.log(c * max(threshold, i) + 1)
        hidden = [max(0.0, slope * x + bias) for slope, bias in zip(slopes, biases, strict=True)]
        return sum(weight * y for weight, y in zip(outer[h], hidden, strict=True))

    return score


TERMS = [
    ({"name": "alibi"}, by_alibi),
    ({"name": "kerple"}, by_log),
    ({"name": "kerple", "kernel": "power"}, by_power),
    ({"name": "fire"}, by_fire),
]


@pytest.mark.parametrize(("spec", "formula"), TERMS)
def test_a_term_is_the_formula_of_its_paper(spec: Any, formula: Any) -> None:
    encoding = position(spec)
    score, q_pos, k_pos = formula(encoding), torch.tensor([[20, 4, 11]]), torch.arange(21)[None]
    got = dense(encoding, q_pos, k_pos)
    assert got.shape == (1, H, 3, 21)
    for h in range(H):
        for row, i in enumerate(q_pos[0].tolist()):
            for j in range(i + 1):
                assert float(got[0, h, row, j]) == pytest.approx(score(h, i, j), abs=1e-10)


@pytest.mark.parametrize(("spec", "formula"), [*TERMS, ({"name": "t5"}, None)])
@pytest.mark.parametrize("kernel", ["vanilla", "flash"])
def test_attention_adds_the_term_to_its_scores(spec: Any, formula: Any, kernel: str) -> None:
    encoding, x = position(spec), torch.randn(B, T, C)
    module = registry.build("attention", kernel, SHAPE, encoding).eval()
    q, k, v = (linear(x).unflatten(-1, (H, D)).transpose(1, 2) for linear in (module.q, module.k, module.v))
    scores = q @ k.mT / math.sqrt(D) + dense(encoding)
    weights = torch.softmax(scores.masked_fill(torch.ones(T, T).triu(1) > 0, -math.inf), -1)
    wanted = module.proj((weights @ v).transpose(1, 2).flatten(2))
    close(module(x, Context(positions=POSITIONS)).detach(), wanted.detach())


def test_a_term_is_added_to_scores_that_are_capped_already() -> None:
    encoding, x = position("alibi"), torch.randn(B, T, C)
    module = registry.build("attention", {"name": "vanilla", "softcap": 0.5}, SHAPE, encoding).eval()
    q, k, v = (linear(x).unflatten(-1, (H, D)).transpose(1, 2) for linear in (module.q, module.k, module.v))
    scores = 0.5 * torch.tanh(q @ k.mT / math.sqrt(D) / 0.5) + dense(encoding)
    weights = torch.softmax(scores.masked_fill(torch.ones(T, T).triu(1) > 0, -math.inf), -1)
    wanted = module.proj((weights @ v).transpose(1, 2).flatten(2))
    close(module(x, Context(positions=POSITIONS)).detach(), wanted.detach())


@pytest.mark.parametrize("spec", ["alibi", "t5", "kerple", {"name": "kerple", "kernel": "power"}])
def test_a_pointwise_term_is_the_same_with_scalars(spec: Any) -> None:
    encoding = position(spec)
    (term,) = encoding.terms()
    scalar = torch.vmap(torch.vmap(torch.vmap(term, (None, None, 0)), (None, 0, None)), (0, None, None))
    assert encoding.pointwise
    close(scalar(torch.arange(H), POSITIONS[0], POSITIONS[0]).detach(), dense(encoding)[0])


def test_fire_computes_with_vectors_and_says_so() -> None:
    assert not position("fire").pointwise


@pytest.mark.parametrize("spec", ["t5", "kerple", {"name": "kerple", "kernel": "power"}, "fire"])
def test_keys_that_are_hidden_leave_values_and_gradients_finite(spec: Any) -> None:
    encoding = position(spec)
    (term,) = encoding.terms()
    at = torch.cat((POSITIONS, POSITIONS + 5000), 1)
    bias = term(torch.arange(H)[None, :, None, None], at[:, None, :, None], at[:, None, None, :])
    assert bias.isfinite().all()
    bias.sum().backward()
    for name, parameter in encoding.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert slopes(16) == pytest.approx([2 ** (-0.5 * i) for i in range(1, 17)])
    assert slopes(12) == pytest.approx(slopes(8) + [2 ** (-0.5 * i) for i in (1, 3, 5, 7)])
    assert slopes(1) == [2**-8]


@pytest.mark.parametrize("n_head", [1, 4, 6, 12, 16])
@pytest.mark.parametrize("max_bias", [8, 16])
def test_alibi_slopes_are_those_of_mpt(n_head: int, max_bias: int) -> None:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    theirs = build_mpt_alibi_tensor(n_head, 2, max_bias)[:, 0, 0]  # one token back
    assert slopes(n_head, max_bias) == pytest.approx((-theirs).tolist())


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (2, 2), (3, 9), (8, 16), (33, 100), (16, 10)])
def test_t5_is_that_of_transformers(n_buckets: int, max_distance: int) -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(max_distance + 1)
    theirs = T5Attention._relative_position_bucket(-distance, False, n_buckets, max_distance)
    assert buckets(n_buckets, max_distance).tolist() == theirs.tolist()

    config = T5Config(
        d_model=C, num_heads=H, is_decoder=True, relative_attention_num_buckets=n_buckets,
        relative_attention_max_distance=max_distance,
    )  # fmt: skip
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    encoding = position({"name": "t5", "n_buckets": n_buckets, "max_distance": max_distance})
    attention.relative_attention_bias.weight.data.copy_(encoding.table.weight)
    q_pos, k_pos = torch.arange(200, 207)[None], torch.arange(207)[None]
    wanted = attention.compute_bias(7, 207, past_seen_tokens=200).detach()
    close(dense(encoding, q_pos, k_pos), wanted, 0.0)


def test_learned_terms_begin_as_their_papers_say() -> None:
    many = Shape(n_embd=64, n_head=4000, block_size=T)
    for kernel, top1, top2 in (("log", 2, 1), ("power", 1, 2)):
        kerple = registry.build("position", {"name": "kerple", "kernel": kernel}, many)
        raw1, raw2 = kerple.r1.detach(), kerple.r2.detach()
        r2 = 2 * torch.sigmoid(raw2) if kernel == "power" else nn.functional.softplus(raw2)
        for r, top in ((nn.functional.softplus(raw1), top1), (r2, top2)):
            assert 0 < r.min() < 0.03
            assert 0.97 * top < r.max() < top
            assert float(r.mean()) == pytest.approx(top / 2, rel=0.1)
    fire = registry.build("position", {"name": "fire", "threshold": 64.0}, SHAPE)
    assert fire.log_c.exp().item() == pytest.approx(0.1)
    assert fire.log_threshold.exp().item() == pytest.approx(64)
    t5 = registry.build("position", "t5", many)
    t5.reset_parameters()
    assert t5.table.weight.std().item() == pytest.approx(1 / 8, rel=0.02)


# embeddings


def test_sinusoidal_is_the_formula_of_the_paper() -> None:
    wave = torch.tensor(
        [[(math.sin, math.cos)[c % 2](p / 10000 ** ((c - c % 2) / C)) for c in range(C)] for p in range(T)]
    )
    x = torch.randn(B, T, C)
    close(position("sinusoidal").embed(x, POSITIONS), math.sqrt(C) * x + wave, 1e-5)


def test_sinusoidal_may_leave_the_embedding_to_the_model() -> None:
    x = torch.randn(B, T, C)
    wave = position("sinusoidal").embed(torch.zeros_like(x), POSITIONS)
    close(position({"name": "sinusoidal", "scale": 1.0}).embed(x, POSITIONS), x + wave)


def test_learned_adds_the_row_of_each_position() -> None:
    module, x = position("learned"), torch.randn(B, 3, C)
    close(module.embed(x, torch.tensor([[4, 0, 2]])), x + module.table.weight[[4, 0, 2]])


# all of them


@pytest.mark.parametrize(
    "spec",
    [
        *("rope", "xpos", "alibi", "t5", "kerple", "fire"),
        *({"name": name, "original": 5} for name in ("ntk", "llama3", "longrope")),
        {"name": "longrope", "original": 5, "long_factor": [2.0] * (D // 2)},
        {"name": "yarn", "original": 5, "factor": 2.0},
    ],
)
def test_a_position_computes_on_the_meta_device(spec: Any) -> None:
    with torch.device("meta"):
        encoding, q = registry.build("position", spec, SHAPE), torch.randn(B, H, T, D)
        at = torch.arange(T)[None]
        assert encoding.rotate(q, q, at)[0].is_meta
        for term in encoding.terms():
            bias = term(torch.arange(H)[None, :, None, None], at[:, None, :, None], at[:, None, None, :])
            assert bias.is_meta
            assert bias.shape == (1, H, T, T)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "rope", "theta": 1.0}, "theta must be above 1, but is 1.0"),
        ({"name": "rope", "theta": math.nan}, "theta must be above 1"),
        ({"name": "rope", "fraction": 0.0}, "fraction is a share in (0, 1], but is 0.0"),
        ({"name": "rope", "fraction": 1.1}, "fraction is a share"),
        ({"name": "rope", "factor": 0.5}, "factor must be at least 1, but is 0.5"),
        ({"name": "rope", "factor": math.nan}, "factor must be at least 1"),
        ({"name": "ntk"}, "give position.original="),
        ({"name": "ntk", "original": 0}, "original must be at least 1"),
        ({"name": "ntk", "original": 8, "fraction": 0.25}, "2 of 8 entries are one pair"),
        ({"name": "yarn", "original": 8}, "give position.factor="),
        ({"name": "yarn"}, "give position.factor=... and position.original=..."),
        ({"name": "yarn", "original": 8, "factor": 0.9}, "factor must be at least 1"),
        ({"name": "yarn", "original": 8, "factor": 2.0, "beta_fast": 1.0}, "beta_fast > beta_slow > 0"),
        ({"name": "yarn", "original": 8, "factor": 2.0, "attention_factor": 0.0}, "attention_factor is above 0"),
        (
            {"name": "yarn", "original": 8, "factor": 2.0, "attention_factor": 1.2, "mscale": 0.7},
            "in place of mscale",
        ),
        ({"name": "yarn", "original": 8, "factor": 2.0, "mscale": -1.0}, "mscale must be at least 0"),
        ({"name": "longrope"}, "give position.original="),
        ({"name": "longrope", "original": 1}, "original must be at least 2"),
        ({"name": "longrope", "original": 8, "long_factor": [1.0] * 3}, "4 turn, and 3 are given"),
        ({"name": "longrope", "original": 8, "short_factor": []}, "4 turn, and 0 are given"),
        ({"name": "longrope", "original": 8, "short_factor": [1.0, 0.0, 1.0, 1.0]}, "short_factor must be at least"),
        ({"name": "llama3"}, "give position.original="),
        ({"name": "llama3", "original": 8, "low_freq_factor": 4.0}, "high_freq_factor > low_freq_factor > 0"),
        ({"name": "xpos", "scale_base": 0.1}, "scale_base must be at least block_size / 64"),
        ({"name": "alibi", "max_bias": 0.0}, "max_bias must be above 0"),
        ({"name": "t5", "n_buckets": 1}, "n_buckets of at least 2"),
        ({"name": "t5", "n_buckets": 32, "max_distance": 16}, "max_distance above half of them"),
        ({"name": "kerple", "kernel": "exp"}, "one of log, power"),
        ({"name": "fire", "hidden": 0}, "hidden and threshold of at least 1"),
        ({"name": "sinusoidal", "theta": 0.5}, "theta must be above 1"),
        ({"name": "sinusoidal", "scale": 0.0}, "scale must be above 0, but is 0.0"),
    ],
)
def test_a_position_that_cannot_be_is_refused_in_one_line(spec: Any, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        position(spec).fit(D)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
