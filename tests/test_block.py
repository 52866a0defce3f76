"""Blocks against their equations, with every option; parts that are none leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import ModelConfig, registry
from gptlab.components.block import Parts
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.model import GPT

B, T, C, H = 2, 13, 32, 4
SHAPE = Shape(n_embd=C, n_head=H, block_size=T, n_layer=2)
POSITIONS = torch.arange(T)[None]

pytestmark = pytest.mark.usefixtures("float64")


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def part(slot: str, spec: Any, *args: Any) -> Any:
    """A part with random parameters, zeros and ones included."""
    built = registry.build(slot, spec, *args)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


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


def built_block(spec: Any, shape: Shape = SHAPE, attend: float = 2.0, think: float = -3.0) -> Any:
    parts = Parts(Twice(attend), Twice(think), lambda: registry.build("norm", "rmsnorm", C))  # type: ignore[arg-type]
    return part("block", spec, shape, parts)


def rms(norm: Any, x: Tensor) -> Tensor:
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_an_output_norm_normalizes_what_is_added_alone() -> None:
    block, x = built_block("outnorm"), torch.randn(B, T, C)
    h = x + rms(block.attention_norms.out, 2 * x.tanh())
    close(block(x, Context(positions=POSITIONS)), h + rms(block.mlp_norms.out, -3 * h.tanh()))
    assert block.final_norm


def test_a_bare_block_is_one_part_after_the_other_and_nothing_beside() -> None:
    block, x, context = built_block("bare"), torch.randn(B, T, C), Context(positions=POSITIONS)
    large = 2.0  # sqrt(2 n_layer): parts are drawn as small as a sum of so many needs them
    h = large * 2 * rms(block.attention_norms.before, x).tanh()
    close(block(x, context), large * -3 * rms(block.mlp_norms.before, h).tanh())


@pytest.mark.parametrize("gone", ["attention", "mlp"])
def test_a_bare_block_passes_on_what_an_absent_part_would_read(gone: str) -> None:
    sizes = {"vocab_size": 7, "n_layer": 2, "n_embd": C, "n_head": H, "block": "bare", "position": "none"}
    sizes |= {"norm": "none", "init_std": 0.2}
    (block, _), x = GPT(ModelConfig(**{**sizes, gone: "none"})).double().blocks, torch.randn(B, T, C)
    left = block.mlp if gone == "attention" else block.attention
    alone = left(x) if gone == "attention" else left(x, Context(positions=POSITIONS))
    close(block(x, Context(positions=POSITIONS)), 2 * alone)
    assert torch.equal(GPT(ModelConfig(**{**sizes, "attention": "none", "mlp": "none"})).double().blocks[0](x, None), x)


def test_there_is_no_gain_where_nothing_is_added() -> None:
    with pytest.raises(ConfigError, match="block 'bare' has no option 'gain'"):
        built_block({"name": "bare", "gain": "channel"})


def test_parallel_sublayers_may_have_a_norm_each() -> None:
    block, x = built_block({"name": "parallel", "two_norms": True}), torch.randn(B, T, C)
    close(
        block(x, Context(positions=POSITIONS)),
        x + 2 * rms(block.norm, x).tanh() - 3 * rms(block.mlp_norm, x).tanh(),
    )


@pytest.mark.parametrize("name", ["prenorm", "postnorm", "sandwich", "outnorm", "parallel", "unet"])
@pytest.mark.parametrize(
    "options, factor",
    [({"scale": 0.22}, lambda gain: 0.22), ({"gain": "scalar", "scale": 3.0}, lambda gain: 3 * gain.weight),
     ({"gain": "channel"}, lambda gain: gain.weight)],
)  # fmt: skip
def test_a_gain_multiplies_what_a_sublayer_adds(name: str, options: dict[str, Any], factor: Any) -> None:
    x = torch.randn(B, T, C)
    block, plain = built_block({"name": name, **options}), built_block(name)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "_gain." not in k})
    added = plain.attend(x, Context(positions=POSITIONS)), plain.reflect(x, Context(positions=POSITIONS))
    close(block.attend(x, Context(positions=POSITIONS)), factor(block.attention_gain) * added[0])
    close(block.reflect(x, Context(positions=POSITIONS)), factor(block.mlp_gain) * added[1])


@pytest.mark.parametrize("gain, start", [("scalar", 0.0), ("channel", 0.1)])
def test_a_gain_starts_as_its_paper_says(gain: str, start: float) -> None:
    sizes = {"vocab_size": 7, "n_layer": 1, "n_embd": C, "n_head": H}
    (block,) = GPT(ModelConfig(**sizes, block={"name": "prenorm", "gain": gain})).blocks
    assert torch.equal(block.mlp_gain.weight, torch.full((1 if gain == "scalar" else C,), start))
    (block,) = GPT(ModelConfig(**sizes, block={"name": "prenorm", "gain": gain, "gain_init": 0.7})).blocks
    assert float(block.attention_gain.weight.mean()) == pytest.approx(0.7)


def test_the_start_of_no_gain_is_refused() -> None:
    with pytest.raises(ConfigError, match="set gain=channel"):
        built_block({"name": "prenorm", "gain_init": 0.5})


def test_a_unet_adds_what_the_mirror_layer_put_out() -> None:
    x, context = torch.randn(B, T, C), Context(positions=POSITIONS)
    blocks = [built_block("unet", Shape(n_embd=C, n_head=H, block_size=T, n_layer=3, layer=i)) for i in range(3)]
    assert [block.skip is not None for block in blocks] == [False, False, True]  # the middle one is its own mirror
    one = blocks[0](x, context)
    two = blocks[1](one, context)
    plain = built_block("prenorm")
    plain.load_state_dict({k: v for k, v in blocks[2].state_dict().items() if k != "skip"})
    close(blocks[2](two, context), plain(two + blocks[2].skip * one, context))


def test_a_unet_needs_two_layers_and_a_mirror() -> None:
    sizes = {"vocab_size": 7, "n_embd": C, "n_head": H}
    with pytest.raises(ConfigError, match="n_layer must be at least 2, but is 1: take prenorm"):
        GPT(ModelConfig(**sizes, n_layer=1, block="unet"))
    for layer in (0, -1):
        with pytest.raises(ConfigError, match=r"to its mirror, layer [03], but that is no unet"):
            GPT(ModelConfig(**sizes, n_layer=4, layers=[{"at": str(layer), "block": {"name": "unet"}}]))
    ends = [{"at": at, "block": {"name": "unet"}} for at in ("0", "-1")]
    assert GPT(ModelConfig(**sizes, n_layer=4, layers=ends)).blocks[3].skip is not None


@pytest.mark.parametrize("block", ["prenorm", "postnorm", "sandwich", "outnorm", "parallel", "unet", "bare"])
def test_parts_that_are_none_leave_no_parameters_behind(block: str) -> None:
    sizes = {"vocab_size": 7, "n_layer": 2, "n_embd": C, "n_head": H, "position": "none", "block": block}
    bare = GPT(ModelConfig(**sizes, attention="none", mlp="none"))
    assert [name for name, _ in bare.named_parameters() if name.startswith("blocks") and "skip" not in name] == []
    for slot in ("attention", "mlp"):
        without = GPT(ModelConfig(**{**sizes, slot: "none"}))
        assert [name for name, _ in without.named_parameters() if f".{slot}" in name] == []


@pytest.mark.parametrize("attend, think", [(1.0, 0.0), (0.0, 1.0)])
def test_residual_dropout_acts_once_on_what_a_sublayer_adds(attend: float, think: float) -> None:
    shape = Shape(n_embd=C, n_head=H, block_size=T, dropout=0.5)
    parts = Parts(Twice(attend), Twice(think), lambda: nn.Identity())  # type: ignore[arg-type]
    block = registry.build("block", "prenorm", shape, parts).train()
    x = torch.randn(B, T, C)
    added = block(x, Context(positions=POSITIONS)) - x
    dropped = added.abs() < 1e-12
    assert 0.35 < dropped.double().mean() < 0.65
    close(added[~dropped], 2 * x.tanh()[~dropped])
