"""Hyper-connections against their equations, written token by token, and against pre-norm, as which they begin."""

from __future__ import annotations

import math
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

B, T, C = 2, 5, 8
POSITIONS = torch.arange(T)[None]

pytestmark = pytest.mark.usefixtures("float64")


class Bent(nn.Module):
    """Stands for attention and MLP: a fixed function of each token, without parameters."""

    def __init__(self, by: float, absent: bool = False) -> None:
        super().__init__()
        self.by, self.absent = by, absent

    def forward(self, x: Tensor, *ignored: Any) -> Tensor:
        return self.by * (x + 1).tanh()


def block(layer: int = 0, attend: nn.Module | None = None, think: nn.Module | None = None, **options: Any) -> Any:
    """A hyper block with random parameters around two fixed functions."""
    parts = Parts(attend or Bent(2.0), think or Bent(-3.0), lambda: registry.build("norm", "rmsnorm", C))  # type: ignore[arg-type]
    shape = Shape(n_embd=C, n_head=2, block_size=T, n_layer=4, layer=layer)
    built = registry.build("block", {"name": "hyper", **options}, shape, parts)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def rms(norm: Any, x: Tensor) -> Tensor:
    return norm.weight * x / (x.square().mean() + 1e-5).sqrt()


def connected(connection: Any, streams: list[Tensor], norm: Any, part: nn.Module) -> list[Tensor]:
    """The formulas of the paper for one token: H' = A_r^T H + B^T part(norm(A_m^T H))^T."""
    n = len(streams)
    a_m = [connection.read_bias[i, 0] for i in range(n)]
    a_r = [[connection.read_bias[i, 1 + j] for j in range(n)] for i in range(n)]
    b = [connection.write_bias[i] for i in range(n)]
    if hasattr(connection, "norm"):
        for i, stream in enumerate(streams):
            h = rms(connection.norm, stream)
            bent = torch.tanh(connection.read_weight.T @ h) * connection.read_scale
            a_m[i] = a_m[i] + bent[0]
            a_r[i] = [a_r[i][j] + bent[1 + j] for j in range(n)]
            b[i] = b[i] + connection.write_scale[0] * math.tanh(connection.write_weight[:, 0] @ h)
    put = part(rms(norm, sum(a_m[i] * streams[i] for i in range(n))))  # type: ignore[arg-type]
    return [sum(a_r[i][j] * streams[i] for i in range(n)) + b[j] * put for j in range(n)]  # type: ignore[misc]


def by_the_paper(blocks: list[Any], x: Tensor, n_stream: int) -> Tensor:
    """One token (C,) through blocks: copied, connected twice a block, summed."""
    streams = [x] * n_stream
    for each in blocks:
        streams = connected(each.attention_connection, streams, each.attention_norms.before, each.attention)
        streams = connected(each.mlp_connection, streams, each.mlp_norms.before, each.mlp)
    return sum(streams)  # type: ignore[return-value]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("n_stream", [1, 2, 4])
@torch.no_grad()
def test_hyper_connections_are_those_of_the_paper(n_stream: int, dynamic: bool) -> None:
    blocks = [block(layer, n_stream=n_stream, dynamic=dynamic) for layer in range(3)]
    x, context = torch.randn(B, T, C), Context(positions=POSITIONS)
    y = x
    for each in blocks:
        y = each(y, context)
    wanted = [by_the_paper(blocks, token, n_stream) for row in x for token in row]
    close(y, torch.stack(wanted).view(B, T, C))


@torch.no_grad()
def test_a_sublayer_first_reads_the_stream_of_its_place_and_writes_to_all() -> None:
    shape = Shape(n_embd=C, n_head=2, block_size=T, n_layer=4, layer=3)
    parts = Parts(Bent(1.0), Bent(1.0), lambda: registry.build("norm", "rmsnorm", C))  # type: ignore[arg-type]
    fresh = registry.build("block", {"name": "hyper", "n_stream": 4}, shape, parts)
    connections = (fresh.attention_connection, fresh.mlp_connection)
    assert [int(c.read_bias[:, 0].argmax()) for c in connections] == [6 % 4, 7 % 4]
    for c in connections:
        close(c.read_bias[:, 0].sum(), torch.tensor(1.0))
        close(c.read_bias[:, 1:], torch.eye(4))
        close(c.write_bias, torch.ones(4))
        assert not c.read_weight.any()
        assert not c.write_weight.any()
        assert float(c.read_scale) == float(c.write_scale) == 0.01


def logits(tokens: Tensor, **options: Any) -> Tensor:
    sizes: dict[str, Any] = {"vocab_size": 29, "block_size": 16, "n_layer": 3, "n_head": 4, "n_embd": 32}
    model = GPT(ModelConfig(**sizes, **options)).double().eval()
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("n_stream", [1, 4])
def test_an_untrained_model_is_the_pre_norm_model(n_stream: int, dynamic: bool) -> None:
    """Up to what the final norm adds to the mean square, since the sum is n times the stream."""
    tokens = torch.randint(29, (2, 16))
    exact = {"norm": {"name": "rmsnorm", "eps": 1e-12}}
    spec = {"name": "hyper", "n_stream": n_stream, "dynamic": dynamic}
    close(logits(tokens, block=spec, **exact), logits(tokens, block="prenorm", **exact), 1e-6)


@torch.no_grad()
def test_streams_go_on_from_the_layer_before_alone() -> None:
    first, x, context = block(0), torch.randn(B, T, C), Context(positions=POSITIONS)
    y = first(x, context)
    close(context.shared["streams", 0, 4][1].sum(2), y)
    for later in (block(2), block(1, n_stream=2)):  # a layer of another kind is between, or the streams are others
        close(later(y, context), later(y, Context(positions=POSITIONS)))
    second = block(1)
    assert not torch.allclose(second(y, context), second(y, Context(positions=POSITIONS)))


@torch.no_grad()
def test_a_hook_that_copies_changes_nothing_and_one_that_adds_adds_to_all_streams() -> None:
    config = ModelConfig(vocab_size=29, block_size=16, n_layer=3, n_head=4, n_embd=32, block="hyper")
    model, tokens = GPT(config).eval(), torch.randint(29, (2, 16))
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    plain = model(tokens)
    hooks = [each.register_forward_hook(lambda module, given, out: out.clone()) for each in model.blocks]
    close(model(tokens), plain)
    for hook in hooks:
        hook.remove()
    first, second, x, added = block(0), block(1), torch.randn(B, T, C), torch.randn(C)
    context, shifted = Context(positions=POSITIONS), Context(positions=POSITIONS)
    y = first(x, context)
    total, streams = context.shared["streams", 0, 4]
    shifted.shared["streams", 0, 4] = (total + added, streams + added / 4)
    close(second(y + added, context), second(y + added, shifted))


@torch.no_grad()
def test_an_absent_part_leaves_no_connection() -> None:
    x = torch.randn(B, T, C)
    alone = block(think=Bent(-3.0, absent=True))
    assert not list(alone.mlp_connection.parameters())
    want = []
    for token in x.flatten(0, 1):
        streams = connected(alone.attention_connection, [token] * 4, alone.attention_norms.before, alone.attention)
        want.append(sum(streams))
    close(alone(x, Context(positions=POSITIONS)), torch.stack(want).view(B, T, C))  # type: ignore[arg-type]
    nothing = block(attend=Bent(2.0, absent=True), think=Bent(-3.0, absent=True))
    close(nothing(x, Context(positions=POSITIONS)), 4 * x)


def test_streams_are_not_rounded_under_autocast() -> None:
    each, x, context = block().float(), torch.randn(B, T, C).float(), Context(positions=POSITIONS)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = each(x, context)
    assert y.dtype == context.shared["streams", 0, 4][1].dtype == torch.float32


def test_no_streams_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_stream must be at least 1, but is 0"):
        block(n_stream=0)
