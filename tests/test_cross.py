"""Attention to another sequence: against torch's own, in a decoder with an encoder, and refused where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import registry
from gptlab.components.block import Parts
from gptlab.components.context import Context, Encoded
from gptlab.components.shape import Shape
from gptlab.config import ModelConfig
from gptlab.errors import ConfigError
from gptlab.model import GPT

B, T, S, C, H = 3, 5, 9, 32, 4
SHAPE = Shape(n_embd=C, n_head=H, block_size=S)
AT = torch.arange(T)[None]
HIDDEN = torch.tensor([[False] * 9, [False] * 5 + [True] * 4, [True] + [False] * 7 + [True]])  # of the memory
SMALL: dict[str, Any] = {"vocab_size": 9, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 32}

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


def cross(**options: Any) -> Any:
    """Cross-attention with random parameters."""
    built = registry.build("attention", {"name": "cross", **options}, SHAPE, registry.build("position", "none", SHAPE))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def torchs(ours: Any) -> nn.MultiheadAttention:
    """torch's own, with the same weights."""
    theirs = nn.MultiheadAttention(C, H, bias=ours.q.bias is not None, batch_first=True)
    parts = (ours.q, ours.k, ours.v)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.proj.weight)
        if ours.q.bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.bias.copy_(ours.proj.bias)
    return theirs.eval()


def test_a_memory_has_a_row_for_each_text_or_one_for_all() -> None:
    ours, x, states = cross(), torch.randn(3, T, C), torch.randn(1, S, C)
    of_one = ours(x, Context(AT, memory=Encoded(states)))
    torch.testing.assert_close(ours(x, Context(AT, memory=Encoded(states.expand(3, -1, -1)))), of_one)
    with pytest.raises(ConfigError, match=f"as wide as the texts, {C}, but is {C - 1}"):
        ours(x, Context(AT, memory=Encoded(states[..., 1:])))
    with pytest.raises(ConfigError, match="a row for each of 3 texts, or one for all, but has 2"):
        ours(x, Context(AT, memory=Encoded(states.expand(2, -1, -1))))


@pytest.mark.parametrize("hidden", [None, HIDDEN], ids=["whole", "masked"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", ["math", "sdpa", "flex"])
def test_it_is_torchs_with_the_same_gradients(kernel: str, bias: bool, hidden: Tensor | None) -> None:
    ours = cross(kernel=kernel, bias=bias)
    theirs = torchs(ours)
    x, states = torch.randn(B, T, C, requires_grad=True), torch.randn(B, S, C, requires_grad=True)
    x2, states2 = (part.detach().clone().requires_grad_() for part in (x, states))
    y = ours(x, Context(AT, memory=Encoded(states, None if hidden is None else ~hidden)))
    wanted, _ = theirs(x2, states2, states2, key_padding_mask=hidden, need_weights=False)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-9)
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=0, atol=1e-9)
    torch.testing.assert_close(states.grad, states2.grad, rtol=0, atol=1e-9)
    ours_grad = torch.cat([part.weight.grad for part in (ours.q, ours.k, ours.v)])
    torch.testing.assert_close(ours_grad, theirs.in_proj_weight.grad, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.proj.weight.grad, theirs.out_proj.weight.grad, rtol=0, atol=1e-9)
    with torch.no_grad():  # FlexAttention itself, which has no backward pass on a CPU
        again = ours(x, Context(AT, memory=Encoded(states, None if hidden is None else ~hidden)))
    torch.testing.assert_close(again, wanted, rtol=0, atol=1e-9)


def test_self_against_cross_is_where_keys_and_values_are_from() -> None:
    """Cross-attention to x itself is self-attention that is not masked; so is grouped, normalized and gated."""
    options = {"n_kv_head": 2, "qk_norm": "rmsnorm", "gate": "head", "bias": True}
    mine, x = cross(**options), torch.randn(B, T, C)
    itself = registry.build(
        "attention", {"name": "softmax", "causal": False, **options}, SHAPE, registry.build("position", "none", SHAPE)
    ).eval()
    itself.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(x, Context(AT, memory=Encoded(x))), itself(x, Context(AT)), rtol=0, atol=1e-9)


def test_one_memory_may_serve_all_rows_and_hidden_tokens_do_not_matter() -> None:
    mixer, x, states = cross(), torch.randn(B, T, C), torch.randn(1, S, C)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    one = mixer(x, Context(AT, memory=Encoded(states, mask)))
    each = mixer(x, Context(AT, memory=Encoded(states.expand(B, -1, -1), mask.expand(B, -1))))
    torch.testing.assert_close(one, each, rtol=0, atol=1e-12)
    torch.testing.assert_close(one, mixer(x, Context(AT, memory=Encoded(states[:, :6]))), rtol=0, atol=1e-9)


def test_there_must_be_a_memory_and_what_is_about_one_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is none: set GPT\.memory, or choose"):
        cross()(torch.randn(B, T, C), Context(AT))
    for option, value in {"causal": "prefix", "window": 3, "chunk": 2, "value_residual": True}.items():
        with pytest.raises(ConfigError, match=f"leave {option} out"):
            cross(**{option: value})
    with pytest.raises(ConfigError, match="attention 'softmax' does not: leave cross out"):
        GPT(ModelConfig(**SMALL, block={"name": "decoder", "cross": "softmax"}))
    with pytest.raises(ConfigError, match="has no use for position 'rope'"):
        GPT(ModelConfig(**SMALL, attention="cross"))


def test_a_decoders_layer_is_three_sublayers() -> None:
    parts = Parts(
        registry.build("attention", "vanilla", SHAPE, registry.build("position", "none", SHAPE)),
        registry.build("mlp", "plain", SHAPE),
        lambda: registry.build("norm", "rmsnorm", C),
    )
    block = registry.build("block", {"name": "decoder", "scale": 0.3}, SHAPE, parts).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, context = torch.randn(B, T, C), Context(AT, memory=Encoded(torch.randn(B, S, C)))
    y = x + 0.3 * block.attention(block.attention_norms.before(x), context)
    y = y + 0.3 * block.cross(block.cross_norms.before(y), context)
    y = y + 0.3 * block.mlp(block.mlp_norms.before(y))
    torch.testing.assert_close(block(x, context), y, rtol=0, atol=1e-9)


class Translator(nn.Module):
    """An encoder and a decoder, both GPTs: all that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = GPT(ModelConfig(**SMALL, attention={"name": "softmax", "causal": False}))
        self.decoder = GPT(ModelConfig(**SMALL, block="decoder"), seed=1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the token after each of the target's."""
        self.decoder.memory = Encoded(self.encoder.hidden(source)[0])
        logits: Tensor = self.decoder(target)
        return logits


def test_a_decoder_with_a_cache_is_one_without() -> None:
    both, source, target = Translator().double().eval(), torch.randint(9, (B, 7)), torch.randint(9, (B, 10))
    for parameter in both.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        whole, cache = both(source, target), both.decoder.new_cache(B, 12)
        pieces = torch.cat([both.decoder(piece, cache) for piece in target.split([4, 1, 1, 4], dim=1)], dim=1)
        other = both(source.flip(1), target)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-9)
    assert (other - whole).abs().max() > 1e-2


def test_an_encoder_and_a_decoder_learn_to_say_a_sequence_backwards() -> None:
    torch.set_default_dtype(torch.float32)
    both, draw = Translator(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(both.parameters(), lr=5e-3)
    for _ in range(400):
        source = torch.randint(1, 9, (64, 5), generator=draw)
        target = source.flip(1)
        fed = torch.cat((torch.zeros_like(target[:, :1]), target[:, :-1]), dim=1)
        loss = nn.functional.cross_entropy(both(source, fed).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4, "chance is 2.08"
