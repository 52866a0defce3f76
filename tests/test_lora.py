"""LoRA against the formula of the paper: what is frozen, what learns, and what is left when it is merged."""

from __future__ import annotations

import pytest
import torch
from tiny import state
from torch import Tensor

from gptlab import lora
from gptlab.config import LoraConfig, ModelConfig, RunConfig
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.optimizer import parameter_groups
from gptlab.step import train_step

SIZES = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": True}
TOKENS = torch.arange(16).view(2, 8) % 11


def model(**options: object) -> GPT:
    """Every parameter perturbed: zeros and ones would hide faults."""
    torch.manual_seed(1)
    gpt = GPT(ModelConfig(**{**SIZES, **options})).double()
    for parameter in gpt.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return gpt


def adapted(gpt: GPT, **options: object) -> GPT:
    lora.adapt(gpt, LoraConfig(**{"rank": 3, "alpha": 5.0, **options}))
    for name, parameter in gpt.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return gpt


def adapters(gpt: GPT) -> dict[str, lora.Adapted]:
    return {name: module for name, module in gpt.named_modules() if isinstance(module, lora.Adapted)}


def test_an_adapted_layer_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(7, 5).double()
    layer = lora.Adapted(base, rank=2, alpha=6.0)
    layer.lora_a.data, layer.lora_b.data = torch.randn(2, 7).double(), torch.randn(5, 2).double()
    x = torch.randn(3, 7).double()
    for row, got in zip(x, layer(x), strict=True):
        for i in range(5):
            frozen = sum(base.weight[i, j] * row[j] for j in range(7)) + base.bias[i]
            inner = [sum(layer.lora_a[r, j] * row[j] for j in range(7)) for r in range(2)]
            learned = sum(layer.lora_b[i, r] * inner[r] for r in range(2))
            assert torch.isclose(got[i], frozen + 6.0 / 2 * learned, atol=1e-12)


def test_tuning_begins_at_the_weights_as_they_are() -> None:
    gpt = model()
    before = gpt(TOKENS)
    names = set(gpt.tensors())
    lora.adapt(gpt, LoraConfig(rank=3, on=["q", "v", "proj"]))
    assert torch.equal(gpt(TOKENS), before)
    assert names < set(gpt.tensors())
    (a, b) = next((m.lora_a, m.lora_b) for m in adapters(gpt).values())
    assert a.std() > 0.1
    assert not b.any()


def test_what_is_drawn_depends_on_the_seed_and_the_name_alone() -> None:
    drawn: list[Tensor] = []
    for on, seed in ((["q", "v"], 0), (["v"], 0), (["v"], 1)):
        gpt = model()
        lora.adapt(gpt, LoraConfig(rank=3, on=on), seed)
        drawn.append(adapters(gpt)["blocks.1.attention.v"].lora_a)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[2], adapters(gpt)["blocks.0.attention.v"].lora_a)
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("on", [["q", "v"], ["proj"], ["mlp.proj"], ["attention", "mlp"]], ids=str)
def test_merged_is_the_same_function_without_adapters(on: list[str]) -> None:
    gpt = adapted(model(), on=on)
    found = {name.split(".", 2)[2] for name in adapters(gpt)}
    expected = {
        "q": {"attention.q", "attention.v"}, "proj": {"attention.proj", "mlp.proj"}, "mlp.proj": {"mlp.proj"},
        "attention": {*(f"attention.{x}" for x in ("q", "k", "v", "proj")), "mlp.up", "mlp.proj"},
    }  # fmt: skip
    assert found == expected[on[0]]
    before = gpt(TOKENS)
    plain = lora.merge(gpt)
    assert not adapters(plain)
    assert set(plain.tensors()) == set(model().tensors())
    assert all(p.requires_grad for p in plain.parameters())
    assert (plain(TOKENS) - before).abs().max() < 1e-12
    assert (plain(TOKENS) - model()(TOKENS)).abs().max() > 1e-3


def test_cached_decoding_has_the_adapters_too() -> None:
    gpt = adapted(model(), on=["q", "k", "v"]).eval()
    cache = gpt.new_cache(2, 8)
    pieces = [gpt(part, cache) for part in TOKENS.split([3, 1, 4], dim=1)]
    assert (torch.cat(pieces, 1) - gpt(TOKENS)).abs().max() < 1e-12


def test_only_adapters_learn_and_what_is_named_besides() -> None:
    for besides, learning in (([], set()), (["norm"], {"norm"}), (["head", "before"], {"head", "before"})):
        trained = state(model={"n_layer": 2, "norm": "layernorm"})
        lora.adapt(trained.model, LoraConfig(rank=2, train=besides))
        names = {name for name, p in trained.model.named_parameters() if p.requires_grad}
        assert {n for n in names if "lora_" not in n} == {
            n for n, _ in trained.model.named_parameters() if learning & set(n.split(".")) and "lora_" not in n
        }
        trained.optimizer = type(trained.optimizer)(parameter_groups(trained.model), lr=0.1)
        before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
        for _ in range(2):  # in the first step A has no gradient, since B is zero
            train_step(trained, (torch.arange(32).view(4, 8) % 11, (torch.arange(32).view(4, 8) + 1) % 11))
        moved = {name for name, p in trained.model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == names


def test_gradients_of_the_adapters_are_those_of_the_merged_matrix() -> None:
    gpt = adapted(model(), on=["up"])
    gpt(TOKENS).square().sum().backward()
    layer = adapters(gpt)["blocks.0.mlp.up"]
    a, b = layer.lora_a, layer.lora_b
    assert layer.weight.grad is None
    grad_a, grad_b = a.grad, b.grad
    plain = lora.merge(gpt)
    plain(TOKENS).square().sum().backward()
    full = plain.blocks[0].mlp.up.weight.grad
    assert torch.allclose(grad_b, 5.0 / 3 * full @ a.T, rtol=1e-9)
    assert torch.allclose(grad_a, 5.0 / 3 * b.T @ full, rtol=1e-9)


def test_a_layer_whose_matrix_is_read_by_others_takes_no_adapter() -> None:
    with pytest.raises(ConfigError, match="there is nothing named 'router'"):
        lora.adapt(model(mlp="moe"), LoraConfig(rank=2, on=["router"]))


@pytest.mark.parametrize(
    "options, line",
    [
        ({"on": ["qq"]}, "nothing named 'qq' to tune. Did you mean 'q'"),
        ({"train": ["hed"]}, "lora.train: there is nothing named 'hed' to tune. Did you mean 'head'"),
        ({"rank": 16}, "lora.rank must be below 16, the rank of blocks.0.attention.q, but is 16"),
        ({"rank": -1}, "lora.rank must be 0 or more"),
        ({"alpha": 0.0}, "lora.alpha must be above 0"),
        ({"on": []}, "lora.on must name a linear layer"),
        ({"rank": 0, "alpha": 8.0}, "need a lora.rank"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_one_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        lora.adapt(model(), LoraConfig(**{"rank": 2, **options}))


def test_adapters_without_weights_to_adapt_are_refused() -> None:
    with pytest.raises(ConfigError, match="init=gpt2"):
        RunConfig(lora=LoraConfig(rank=2))
