"""Each MLP against its formula written out, and against other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn as nn
import yaml
from torch import Tensor

import gptlab.components  # noqa: F401  (registers the variants)
from gptlab import registry
from gptlab.components.context import Context
from gptlab.components.mlp.activations import ACTIVATIONS, Activation
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

B, T, C = 2, 13, 32
SHAPE = Shape(n_embd=C, n_head=4, block_size=T)
PRESETS = sorted((Path(__file__).resolve().parent.parent / "conf" / "model" / "mlp").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("float64")


def mlp_of(spec: Any, shape: Shape = SHAPE) -> Any:
    """An MLP with random parameters, zeros and ones included."""
    built = registry.build("mlp", spec, shape)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: torch.where(x > 0, x, 0 * x),
    "relu2": lambda x: torch.where(x > 0, x * x, 0 * x),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "sigmoid": sigmoid,
    "xielu": lambda x: x / 2 + 0.8 * torch.where(x > 0, x * x, torch.exp(x) - 1 - x),
    "identity": lambda x: x,
}


def test_every_activation_has_its_name_and_its_formula() -> None:
    (literal, _) = get_args(Activation)
    assert set(get_args(literal)) == set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name: str) -> None:
    x = 3 * torch.randn(1000)
    close(ACTIVATIONS[name]()(x), FORMULAS[name](x), 1e-6 if name == "xielu" else 1e-12)  # its factors begin in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xielu_is_that_of_transformers(dtype: torch.dtype) -> None:
    from transformers.activations import XIELUActivation

    ours, theirs = ACTIVATIONS["xielu"]().to(dtype), XIELUActivation(dtype=dtype)
    x = (10 * torch.randn(5, 200)).to(dtype)
    for alpha_p, alpha_n in ((None, None), (1.3, -2.0), (-0.4, 0.9)):
        for module in (ours, theirs):
            if alpha_p is not None:
                nn.init.constant_(module.alpha_p, alpha_p)
                nn.init.constant_(module.alpha_n, alpha_n)
        wanted = theirs._xielu_python(x)
        assert (ours(x) - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()


def test_the_gradient_of_xielu_is_finite_where_the_exponential_is_not() -> None:
    x = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], requires_grad=True)
    ACTIVATIONS["xielu"]()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[2] == pytest.approx(0.5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_a_plain_mlp_is_its_formula(activation: str, bias: bool) -> None:
    mlp, x = mlp_of({"name": "plain", "activation": activation, "bias": bias}), torch.randn(B, T, C)
    up = x @ mlp.up.weight.T + (mlp.up.bias if bias else 0)
    assert up.shape[-1] == 4 * C
    hidden = mlp.activation(up) if activation == "xielu" else FORMULAS[activation](up)
    close(mlp(x), hidden @ mlp.proj.weight.T + (mlp.proj.bias if bias else 0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "identity"])
def test_a_gated_mlp_is_its_formula(activation: str, bias: bool) -> None:
    mlp, x = mlp_of({"name": "glu", "activation": activation, "bias": bias}), torch.randn(B, T, C)
    gate, up = (x @ linear.weight.T + (linear.bias if bias else 0) for linear in (mlp.gate, mlp.up))
    close(mlp(x), (FORMULAS[activation](gate) * up) @ mlp.proj.weight.T + (mlp.proj.bias if bias else 0))


def test_the_gate_of_gpt_oss_is_its_formula_one_number_at_a_time() -> None:
    spec = {"name": "glu", "activation": "quick_gelu", "limit": 1.5, "offset": 1.0}
    mlp, x = mlp_of(spec), torch.randn(1, 3, C)
    gates, ups = (x[0] @ mlp.gate.weight.T).tolist(), (x[0] @ mlp.up.weight.T).tolist()
    hidden = torch.tensor(
        [
            [
                min(g, 1.5) / (1 + math.exp(-1.702 * min(g, 1.5))) * (max(-1.5, min(u, 1.5)) + 1)
                for g, u in zip(*rows, strict=True)
            ]
            for rows in zip(gates, ups, strict=True)
        ]
    )
    assert max(map(max, gates)) > 1.5 > -1.5 > min(map(min, ups))
    close(mlp(x)[0], hidden @ mlp.proj.weight.T)


def test_a_gated_mlp_costs_what_a_plain_one_does() -> None:
    wide = Shape(n_embd=768, n_head=4, block_size=T)
    counts = [sum(p.numel() for p in mlp_of(name, wide).parameters()) for name in ("glu", "plain")]
    assert counts[0] == counts[1]


def test_hidden_sizes_are_rounded_to_the_nearest_multiple_of_eight() -> None:
    up = mlp_of({"name": "glu", "expand": 8 / 3}).up  # 85.3 for a width of 32
    assert up.out_features == 88


def test_the_bias_of_an_mlp_is_the_models_unless_it_says_otherwise() -> None:
    biased = Shape(n_embd=C, n_head=4, block_size=T, bias=True)
    for name in ("plain", "glu", "moe"):
        for given, shape, found in ((None, biased, True), (None, SHAPE, False), (False, biased, False)):
            mlp = registry.build("mlp", {"name": name, "bias": given}, shape)
            assert any("bias" in key for key, _ in mlp.named_parameters()) is found


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_that_leaves_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit must be above 0"):
        mlp_of({"name": "glu", "limit": limit})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_builds_and_cites_its_source(path: Path) -> None:
    tree = yaml.safe_load(path.read_text("utf-8"))
    (name,) = tree.pop("defaults")
    mlp, x = mlp_of({"name": name, **tree}), torch.randn(B, T, C)
    context = [Context(positions=torch.arange(T)[None])] if getattr(mlp, "takes_context", False) else []
    assert mlp(x, *context).shape == (B, T, C)
    assert any(year in path.read_text("utf-8").partition("\n")[0] for year in map(str, range(1990, 2030)))


@pytest.mark.parametrize("n_piece", [2, 3])
def test_maxout_is_the_largest_of_its_pieces(n_piece: int) -> None:
    mlp, x = mlp_of({"name": "maxout", "n_piece": n_piece, "bias": True}), torch.randn(B, T, C)
    hidden = mlp.proj.in_features
    pieces = [
        x @ mlp.up.weight[i * hidden : (i + 1) * hidden].T + mlp.up.bias[i * hidden : (i + 1) * hidden]
        for i in range(n_piece)
    ]
    largest = torch.stack(pieces).max(0).values
    close(mlp(x), largest @ mlp.proj.weight.T + mlp.proj.bias)


def test_one_line_is_no_activation() -> None:
    with pytest.raises(ConfigError, match="n_piece must be at least 2"):
        mlp_of({"name": "maxout", "n_piece": 1})
