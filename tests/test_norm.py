"""Each norm against its formula written out, and against the models that use it in transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import yaml
from torch import Tensor

import gptlab.components  # noqa: F401  (registers the variants)
from gptlab import registry

B, T, C = 2, 13, 32
PRESETS = sorted((Path(__file__).resolve().parent.parent / "conf" / "model" / "norm").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("float64")


def norm(spec: Any) -> Any:
    """A norm with random parameters, zeros and ones included."""
    built = registry.build("norm", spec, C)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def inputs() -> Tensor:
    return 3 * torch.randn(B, T, C) + 1


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_is_its_formula(weight: bool, bias: bool) -> None:
    module, x = norm({"name": "layernorm", "weight": weight, "bias": bias, "eps": 0.1}), inputs()
    mean = x.sum(-1, keepdim=True) / C
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / C
    assert [name for name, _ in module.named_parameters()] == ["weight"] * weight + ["bias"] * bias
    gain, shift = module.weight if weight else 1.0, module.bias if bias else 0.0
    close(module(x), gain * (x - mean) / (variance + 0.1) ** 0.5 + shift)


@pytest.mark.parametrize("weight", ["plain", "plus_one", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_rmsnorm_is_its_formula(weight: str, bias: bool) -> None:
    module, x = norm({"name": "rmsnorm", "weight": weight, "bias": bias, "eps": 0.1}), inputs()
    gain = {"plain": lambda: module.weight, "plus_one": lambda: 1 + module.weight, "none": lambda: 1.0}[weight]()
    shift = module.bias if bias else 0.0
    close(module(x), gain * x / ((x**2).sum(-1, keepdim=True) / C + 0.1) ** 0.5 + shift)


def test_l2_and_scalenorm_are_their_formulas() -> None:
    x = inputs()
    unit = x / ((x**2).sum(-1, keepdim=True) + 0.3) ** 0.5
    close(norm({"name": "l2", "scale": 1.7, "eps": 0.3})(x), 1.7 * unit)
    module = norm({"name": "scalenorm", "eps": 0.3})
    close(module(x), module.length * unit)
    assert registry.build("norm", "scalenorm", C).length.item() == pytest.approx(math.sqrt(C))
    close(norm("l2")(x).norm(dim=-1), torch.ones(B, T), 1e-6)


def test_dyt_is_its_formula() -> None:
    module, x = norm("dyt"), inputs()
    close(module(x), module.weight * torch.tanh(module.alpha * x) + module.bias)
    assert registry.build("norm", {"name": "dyt", "alpha": 0.8}, C).alpha.item() == pytest.approx(0.8)


def test_none_is_x_itself() -> None:
    x = inputs()
    assert norm("none")(x) is x


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "scalenorm", "dyt", "l2"])
def test_what_a_norm_begins_as(name: str) -> None:
    """Gains 1, biases 0: what it does before it has learned anything."""
    x = inputs()
    wanted = {
        "layernorm": (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0),
        "rmsnorm": x / x.square().mean(-1, keepdim=True).sqrt(),
        "scalenorm": x / x.square().mean(-1, keepdim=True).sqrt(),
        "dyt": torch.tanh(0.5 * x),
        "l2": x / x.norm(dim=-1, keepdim=True),
    }[name]
    close(registry.build("norm", name, C)(x), wanted, 1e-4)


def test_a_gain_of_one_plus_nothing_is_one() -> None:
    x = inputs()
    specs = ["rmsnorm", {"name": "rmsnorm", "weight": "plus_one"}, {"name": "rmsnorm", "weight": "none"}]
    plain, *others = (registry.build("norm", spec, C)(x) for spec in specs)
    for other in others:
        assert torch.equal(plain, other)


def test_norms_are_those_of_transformers() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

    x = inputs().float()
    pairs: list[tuple[Any, nn.Module]] = [
        ({"name": "rmsnorm", "weight": "plus_one", "eps": 1e-2}, GemmaRMSNorm(C, eps=1e-2)),
        ({"name": "rmsnorm", "eps": 1e-2}, LlamaRMSNorm(C, eps=1e-2)),
        ({"name": "layernorm", "weight": False, "bias": False}, OlmoLayerNorm(C)),
    ]
    for spec, theirs in pairs:
        ours = norm(spec).float()
        theirs.float().load_state_dict(ours.state_dict())
        close(ours(x), theirs(x), 1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "scalenorm", "dyt", "l2", "none"])
def test_statistics_of_bf16_inputs_are_taken_in_float32(name: str) -> None:
    """4096 entries near 300: their sum and squares are far beyond what bf16 adds up."""
    module = registry.build("norm", name, 4096)
    x = (torch.randn(4, 4096) + 300).bfloat16()
    wanted = module(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = module.float()(x)
    assert got.dtype == torch.bfloat16
    assert (got - wanted).abs().max() <= 2**-7 * wanted.abs().max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weight", ["plain", "plus_one"])
def test_gains_are_not_rounded_to_the_type_of_the_input(weight: str) -> None:
    module = norm({"name": "rmsnorm", "weight": weight, "bias": True}).float()
    x = torch.randn(64, C).bfloat16()
    assert torch.equal(module(x), module(x.float()).bfloat16())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_builds(path: Path) -> None:
    tree = yaml.safe_load(path.read_text("utf-8"))
    (name,) = tree.pop("defaults")
    assert registry.build("norm", {"name": name, **tree}, C)(inputs()).shape == (B, T, C)
    assert path.read_text("utf-8").startswith("# ")
