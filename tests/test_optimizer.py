"""Every optimizer against its paper written naively, against torch's, and held to what the trainer relies on."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from gptlab import ModelConfig, registry
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.optimizer import memory, parameter_groups
from gptlab.optimizer.muon import orthogonal

NAMES = ["adafactor", "adamw", "lion", "muon", "sgd"]
Options = dict[str, Any]


class Toy(nn.Module):
    """A parameter of every role and shape."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6, bias=False)
        self.experts = nn.Parameter(torch.empty(3, 6, 5))
        self.gain = nn.Parameter(torch.empty(6))
        self.head = nn.Linear(6, 7, bias=False)
        draw = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype)

    def draw_gradients(self, step: int, factor: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(step + 1)
        for p in self.parameters():
            p.grad = factor * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype)


def build(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return registry.build("optimizer", {"name": name, **options}, parameter_groups(model))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(name: str, steps: int = 5, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Tensor]:
    model = Toy(dtype)
    optimizer = build(name, model, **options)
    for step in range(steps):
        model.draw_gradients(step)
        optimizer.step()
    return values(model)


def gradients(steps: int) -> Iterator[dict[str, Tensor]]:
    model = Toy()
    for step in range(steps):
        model.draw_gradients(step)
        yield {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# The papers, entry by entry where that can be. Each: weights, gradients of all steps, decay -> weights.


def adamw_by_hand(w: Tensor, grads: list[Tensor], decay: float, lr: float = 0.01, eps: float = 1e-3) -> Tensor:
    out = w.flatten().tolist()
    for i, x in enumerate(out):
        m = v = 0.0
        for t, g in enumerate((g.flatten()[i].item() for g in grads), start=1):
            m, v = 0.8 * m + 0.2 * g, 0.7 * v + 0.3 * g * g
            x -= lr * (m / (1 - 0.8**t) / (math.sqrt(v / (1 - 0.7**t)) + eps) + decay * x)
        out[i] = x
    return torch.tensor(out, dtype=w.dtype).view_as(w)


def lion_by_hand(w: Tensor, grads: list[Tensor], decay: float) -> Tensor:
    out = w.flatten().tolist()
    for i, x in enumerate(out):
        m = 0.0
        for g in (g.flatten()[i].item() for g in grads):
            c = 0.7 * m + 0.3 * g
            x -= 0.01 * (math.copysign(1.0, c) + decay * x)
            m = 0.6 * m + 0.4 * g
        out[i] = x
    return torch.tensor(out, dtype=w.dtype).view_as(w)


def sgd_by_hand(w: Tensor, grads: list[Tensor], decay: float, nesterov: bool = False) -> Tensor:
    out = w.flatten().tolist()
    for i, x in enumerate(out):
        v = 0.0
        for g in (g.flatten()[i].item() for g in grads):
            v = 0.8 * v + g
            x = x - 0.01 * decay * x - 0.01 * (g + 0.8 * v if nesterov else v)
        out[i] = x
    return torch.tensor(out, dtype=w.dtype).view_as(w)


def adafactor_by_hand(w: Tensor, grads: list[Tensor], decay: float) -> Tensor:
    """Algorithm 5 with sums, as in the paper; a stack is a batch of matrices, but has one root mean square."""
    w = w.clone()
    stack = w.view(-1, *w.shape[-2:]) if w.ndim > 1 else w
    n, m = stack.shape[-2:] if w.ndim > 1 else (0, 0)
    r, c, v = torch.zeros(len(stack), n), torch.zeros(len(stack), m), torch.zeros_like(w)
    r, c = r.double(), c.double()
    for t, g in enumerate(grads, start=1):
        beta, square = 1 - t**-0.7, (g.square() + 1e-2).view_as(stack)
        if w.ndim > 1:
            v = torch.zeros_like(stack)
            for k in range(len(stack)):
                for i in range(n):
                    r[k, i] = beta * r[k, i] + (1 - beta) * sum(square[k, i, j] for j in range(m))
                for j in range(m):
                    c[k, j] = beta * c[k, j] + (1 - beta) * sum(square[k, i, j] for i in range(n))
                v[k] = r[k, :, None] * c[k, None, :] / r[k].sum()
        else:
            v = beta * v + (1 - beta) * square
        u = g / v.sqrt().view_as(g)
        u = u / max(1.0, u.square().mean().sqrt().item() / 0.5)
        w *= 1 - 0.01 * decay
        # alpha is of the weights before the step, decay included: undo it.
        w -= 0.01 * max(0.9, (w / (1 - 0.01 * decay)).square().mean().sqrt().item()) * u
    return w


def muon_by_hand(w: Tensor, grads: list[Tensor], decay: float, nesterov: bool = True, match: bool = True) -> Tensor:
    """The quintic acts on singular values alone, so it is taken of them."""
    m, (rows, columns) = torch.zeros_like(w), w.shape[-2:]
    for g in grads:
        m = 0.8 * m + 0.2 * g
        u, s, vh = torch.linalg.svd(0.2 * g + 0.8 * m if nesterov else m, full_matrices=False)
        s = s / s.square().sum(-1, keepdim=True).sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        scale = 0.2 * max(rows, columns) ** 0.5 if match else max(1.0, rows / columns) ** 0.5
        w = w - 0.01 * decay * w - 0.01 * scale * (u * s[..., None, :]) @ vh
    return w


ADAM = {"beta1": 0.8, "beta2": 0.7, "eps": 1e-3}
PAPERS: dict[str, tuple[str, Options, Callable[..., Tensor]]] = {
    "adamw": ("adamw", ADAM, adamw_by_hand),
    "lion": ("lion", {"beta1": 0.7, "beta2": 0.6}, lion_by_hand),
    "sgd": ("sgd", {"momentum": 0.8}, sgd_by_hand),
    "sgd-nesterov": (
        "sgd",
        {"momentum": 0.8, "nesterov": True},
        lambda w, grads, decay: sgd_by_hand(w, grads, decay, nesterov=True),
    ),
    "adafactor": ("adafactor", {"power": 0.7, "eps": 1e-2, "clip": 0.5, "least": 0.9}, adafactor_by_hand),
}


@pytest.mark.parametrize("name, options, paper", PAPERS.values(), ids=PAPERS)
def test_five_steps_are_the_papers(name: str, options: Options, paper: Callable[..., Tensor]) -> None:
    found = trained(name, lr=0.01, weight_decay=0.5, **options)
    grads = list(gradients(5))
    for key, w in Toy().named_parameters():
        expected = paper(w.detach(), [g[key] for g in grads], 0.5 if key.endswith("weight") or w.ndim == 3 else 0.0)
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("match", [True, False])
def test_muon_is_the_papers_on_hidden_matrices_and_adamw_on_the_rest(nesterov: bool, match: bool) -> None:
    options = {"momentum": 0.8, "nesterov": nesterov, "match_rms": match, "adamw_lr": 0.03}
    found = trained("muon", lr=0.01, weight_decay=0.5, **options, **ADAM)
    grads = list(gradients(5))
    for key, w in Toy().named_parameters():
        past, decay = [g[key] for g in grads], 0.5 if w.ndim > 1 else 0.0
        if key in ("up.weight", "down.weight", "experts"):
            expected, near = muon_by_hand(w.detach(), past, decay, nesterov, match), 1e-3  # of 0.06: it is bfloat16
        else:
            expected, near = adamw_by_hand(w.detach(), past, decay, lr=0.03), 1e-12
        torch.testing.assert_close(found[key], expected, rtol=0, atol=near, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (4, 6, 9), (2, 3, 9, 6)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_an_orthogonal_step_has_singular_values_near_1(shape: tuple[int, ...], size: float) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * size
    found = orthogonal(matrices, steps=9)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    if size > 1e-7:  # below it a matrix counts as noise and is not blown up
        assert 0.6 < values.min() < values.max() < 1.3
    assert torch.isfinite(found).all()
    assert not orthogonal(torch.zeros(3, 4), steps=5).any()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("match", [True, False])
def test_muon_is_torchs_muon_and_torchs_adamw(nesterov: bool, match: bool) -> None:
    options = {"lr": 0.02, "adamw_lr": 0.01, "nesterov": nesterov, "match_rms": match, "weight_decay": 0.1}
    found = trained("muon", dtype=torch.float32, **options)
    model = Toy(torch.float32)
    adjust = "match_rms_adamw" if match else "original"
    hidden = [model.up.weight, model.down.weight]
    ours = {"matrix": torch.optim.Muon(hidden, lr=0.02, nesterov=nesterov, adjust_lr_fn=adjust)}
    for group in parameter_groups(model):
        decay = 0.0 if group["role"] == "vector" else 0.1
        if group["role"] != "matrix":
            ours[group["role"]] = torch.optim.AdamW(group["params"], lr=0.01, betas=(0.9, 0.95), weight_decay=decay)
    for step in range(5):
        model.draw_gradients(step)
        for optimizer in ours.values():
            optimizer.step()
    for key, expected in values(model).items():
        if key != "experts":  # which torch's refuses
            near = 2e-4 if key in ("up.weight", "down.weight") else 2e-6  # one rounding to bfloat16, of steps of 0.03
            torch.testing.assert_close(found[key], expected, rtol=0, atol=near, msg=lambda m, key=key: f"{key}: {m}")


def test_a_stack_of_matrices_is_stepped_matrix_by_matrix() -> None:
    stacked = trained("muon", dtype=torch.float32)["experts"]
    model = Toy(torch.float32)
    model.slices = nn.ParameterList(model.experts.detach().clone().unbind())
    optimizer = build("muon", model)
    for step in range(5):
        model.draw_gradients(step)
        for single, together in zip(model.slices, model.experts.grad, strict=True):
            single.grad = together.clone()
        optimizer.step()
    torch.testing.assert_close(torch.stack(list(model.slices)).detach(), stacked, rtol=0, atol=1e-6)


TORCHS: dict[str, tuple[str, Options, Callable[[Any], torch.optim.Optimizer]]] = {
    "adamw": ("adamw", {}, lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)),
    "sgd": ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "sgd-nesterov": ("sgd", {"nesterov": True}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
    "adafactor": ("adafactor", {}, lambda p: torch.optim.Adafactor(p, lr=0.01)),
}


@pytest.mark.parametrize("name, options, torchs", TORCHS.values(), ids=TORCHS)
def test_without_decay_torchs_own_goes_the_same_way(
    name: str, options: Options, torchs: Callable[[Any], torch.optim.Optimizer]
) -> None:
    found, model = trained(name, lr=0.01, weight_decay=0.0, **options), Toy()
    optimizer = torchs(list(model.parameters()))
    for step in range(5):
        model.draw_gradients(step)
        optimizer.step()
    for key, expected in values(model).items():
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-12)


def test_adamw_is_torchs_bit_for_bit() -> None:
    model = Toy(torch.float32)
    roles = {group["role"]: group["params"] for group in parameter_groups(model)}
    groups = [{"params": p, "weight_decay": 0.0 if role == "vector" else 0.1} for role, p in roles.items()]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95), fused=True)
    for step in range(5):
        model.draw_gradients(step)
        optimizer.step()
    found = trained("adamw", dtype=torch.float32)
    assert all(torch.equal(found[key], expected) for key, expected in values(model).items())


# Roles


def roles(model: nn.Module) -> dict[str, list[str]]:
    names = {p: name for name, p in model.named_parameters()}
    return {group["role"]: [names[p] for p in group["params"]] for group in parameter_groups(model)}


@pytest.mark.parametrize("tied", [False, True])
def test_a_gpts_parameters_have_one_role_each(tied: bool) -> None:
    model = GPT(
        ModelConfig(
            vocab_size=9,
            n_layer=1,
            n_head=2,
            n_embd=8,
            bias=True,
            norm="layernorm",
            tie_weights=tied,
            position="learned",
        )
    )
    found = roles(model)
    assert found["embedding"] == ["token_embedding.weight", "position.table.weight"]
    assert found.get("head", []) == ([] if tied else ["head.weight"])
    assert all(model.get_parameter(name).ndim == 1 for name in found["vector"])
    assert all(name.startswith("blocks.") and model.get_parameter(name).ndim == 2 for name in found["matrix"])
    assert sorted(name for names in found.values() for name in names) == sorted(
        name for name, _ in model.named_parameters()
    )


def test_only_what_multiplies_as_a_matrix_is_one() -> None:
    model = nn.Module()
    shapes = {"experts": (3, 4, 5), "expert_bias": (3, 5), "filter": (6, 1, 3), "gain": (6,), "scale": ()}
    for name, shape in shapes.items():
        model.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    assert roles(model) == {"matrix": ["experts"], "vector": ["expert_bias", "filter", "gain", "scale"]}


@pytest.mark.parametrize(
    ("options", "small"),
    [
        ({"mlp": {"name": "moe", "n_expert": 4}}, ["mlp.router.linear.weight"]),
        ({"block": "hyper"}, ["attention_connection.read_weight", "mlp_connection.write_weight"]),
        ({"position": "fire"}, ["position.inner.weight", "position.outer.weight"]),
        ({"attention": {"name": "vanilla", "gate": "head"}}, ["attention.gate.linear.weight"]),
        ({"attention": "gated_delta", "position": "none"}, ["attention.a.weight", "attention.b.weight"]),
    ],
)
def test_a_module_says_what_is_no_hidden_matrix(options: dict[str, Any], small: list[str]) -> None:
    found = roles(GPT(ModelConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=16, **options)))
    for name in small:
        assert [there for there in found["vector"] if there.endswith(name)], (name, found)
    each = {"name": "vanilla", "gate": "element"}  # maps to all channels
    found = roles(GPT(ModelConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=16, attention=each)))
    assert "blocks.0.attention.gate.linear.weight" in found["matrix"]


def test_frozen_parameters_are_left_out_and_a_role_without_any_is_no_group() -> None:
    model = Toy()
    model.head.requires_grad_(False)
    assert list(roles(model)) == ["matrix", "embedding", "vector"]
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_roles_decay_and_learn_as_they_are_told(name: str) -> None:
    plain = build(name, Toy()).param_groups
    told = build(name, Toy(), decay=["vector", "head"], rates={"embedding": 2, "vector": 0.5}, weight_decay=0.3)
    decays, factors = {}, {}
    for group, before in zip(told.param_groups, plain, strict=True):
        decays[group["role"]], factors[group["role"]] = group["weight_decay"], group["lr_scale"] / before["lr_scale"]
        assert group["lr"] == told.defaults["lr"] * group["lr_scale"]
    assert decays == {"matrix": 0, "embedding": 0, "head": 0.3, "vector": 0.3}
    assert factors == {"matrix": 1, "embedding": 2, "head": 1, "vector": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_by_default_all_but_vectors_decay(name: str) -> None:
    groups = build(name, Toy(), weight_decay=0.3).param_groups
    assert {g["role"]: g["weight_decay"] for g in groups} == {"matrix": 0.3, "embedding": 0.3, "head": 0.3, "vector": 0}


# Options

SHARED: dict[str, Any] = {"lr": 0.005, "weight_decay": 0.7, "decay": ["head"], "rates": {"head": 0.5}}
ADAMS = {"beta1": 0.5, "beta2": 0.5, "eps": 0.1}
CHANGED: dict[str, Options] = {
    "adamw": {**SHARED, **ADAMS},
    "lion": {**SHARED, "beta1": 0.5, "beta2": 0.5},
    "sgd": {**SHARED, "momentum": 0.5, "nesterov": True},
    "adafactor": {**SHARED, "power": 0.5, "clip": 0.5, "eps": 0.1, "least": 5.0},
    "muon": {
        **SHARED, **ADAMS, "momentum": 0.5, "nesterov": False, "ns_steps": 3, "match_rms": True, "adamw_lr": 0.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name, option", [(name, option) for name, given in CHANGED.items() for option in given])
def test_every_option_changes_what_is_learned(name: str, option: str) -> None:
    base = {"weight_decay": 0.2}
    one, other = trained(name, 3, **base), trained(name, 3, **{**base, option: CHANGED[name][option]})
    assert any(not torch.allclose(one[key], other[key], rtol=0, atol=1e-9) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_left_out_above(name: str) -> None:
    assert set(registry.names("optimizer")) == set(NAMES)
    assert set(CHANGED[name]) == set(registry.options(registry.get("optimizer", name)))


NUMBERS = {"lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "power", "clip", "least", "adamw_lr"}


@pytest.mark.parametrize("name, option", [(n, option) for n in NAMES for option in CHANGED[n] if option in NUMBERS])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_option_out_of_its_range_is_refused_by_name(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{option} must be .*, but is {value}\.$"):
        build(name, Toy(), **{option: value})


REFUSED: list[tuple[str, Options, str]] = [
    ("sgd", {"momentum": 0.0, "nesterov": True}, "optimizer.nesterov"),
    ("muon", {"momentum": 0.0}, "optimizer.nesterov"),
    ("muon", {"ns_steps": 0}, "optimizer.ns_steps must be above 0"),
    ("adamw", {"decay": ["matrix", "embeding"]}, "'embeding' is none. Did you mean 'embedding'?"),
    ("adamw", {"rates": {"norms": 2}}, "optimizer.rates is about roles, but 'norms' is none."),
    ("adamw", {"rates": {"head": -2}}, "optimizer.rates.head must be at least 0"),
    ("adamw", {"rates": {"head": "fast"}}, "optimizer.rates.head must be a number, but 'fast' is not."),
]


@pytest.mark.parametrize("name, options, told", REFUSED)
def test_what_means_nothing_is_refused_in_one_line(name: str, options: Options, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(name, Toy(), **options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# What the trainer relies on


def scaled_step(scaler: GradScaler, optimizer: torch.optim.Optimizer, unscale: bool) -> None:
    scaler.scale(torch.ones(()))
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update(scaler.get_scale())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unscale", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_memory_alone(name: str, unscale: bool, value: float) -> None:
    skipping, sound = Toy(torch.float32), Toy(torch.float32)
    one, other = build(name, skipping), build(name, sound)
    scaler = GradScaler("cpu", init_scale=8.0)
    for step in range(6):
        skipping.draw_gradients(step, factor=8.0)
        if step in (0, 3):
            skipping.up.weight.grad[1, 2] = value
        else:
            sound.draw_gradients(step)
            other.step()
        scaled_step(scaler, one, unscale)
        for key, expected in values(sound).items():
            assert torch.equal(skipping.get_parameter(key), expected), f"{key} at step {step}"
    torch.testing.assert_close(one.state_dict()["state"], other.state_dict()["state"], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_not_wait_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy(torch.float32)
    optimizer = build(name, model)
    scaler = GradScaler("cpu", init_scale=1.0)
    model.draw_gradients(0)
    scaler.scale(torch.ones(()))

    def waits(tensor: Tensor, *args: Any) -> Any:
        raise AssertionError("the host waited for the device")

    for read in ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, read, waits)
    scaler.step(optimizer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("door", ["checkpoint", "state_dict"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str, door: str) -> None:
    unbroken, resumed = Toy(torch.float32), Toy(torch.float32)
    one, other = build(name, unbroken), build(name, resumed, lr=0.5)
    for step in range(3):
        unbroken.draw_gradients(step)
        one.step()
    resumed.load_state_dict(unbroken.state_dict())
    if door == "checkpoint":
        tensors, meta = memory.tensors_of(one, {p: key for key, p in unbroken.named_parameters()})
        names = {p: key for key, p in resumed.named_parameters()}
        memory.restore(other, names, tensors, json.loads(json.dumps(meta)))
    else:
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in range(3, 6):
        for model, optimizer in ((unbroken, one), (resumed, other)):
            model.draw_gradients(step)
            optimizer.step()
    assert all(torch.equal(tensor, values(resumed)[key]) for key, tensor in values(unbroken).items())
    torch.testing.assert_close(one.state_dict()["state"], other.state_dict()["state"], rtol=0, atol=0)
    assert one.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_with_its_defaults(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=draw)
    y = (x @ torch.randn(8, 4, generator=draw)).tanh()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = build(name, model)
    losses = []
    for _ in range(300):
        loss = (model(x) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_gradient_is_left_alone(name: str) -> None:
    model = Toy()
    optimizer, before = build(name, model), values(model)
    model.draw_gradients(0)
    model.down.weight.grad = None
    optimizer.step()
    assert torch.equal(model.down.weight, before["down.weight"])
    assert model.down.weight not in optimizer.state
    assert not torch.equal(model.up.weight, before["up.weight"])


def test_adafactor_remembers_a_row_and_a_column_and_survives_rows_without_gradient() -> None:
    model = Toy(torch.float32)
    optimizer = build("adafactor", model)
    for step in range(3):
        model.draw_gradients(step)
        model.embed.weight.grad[2:5] = 0
        optimizer.step()
    shapes = {key: tuple(value.shape) for key, value in optimizer.state[model.experts].items()}
    assert shapes == {"steps": (), "row": (3, 6, 1), "column": (3, 1, 5)}
    assert torch.isfinite(model.embed.weight).all()
    assert torch.equal(model.embed.weight[2:5], Toy(torch.float32).embed.weight[2:5])
