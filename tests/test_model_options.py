"""Options of the model itself, each against its formula: the two ends, scales and bounds, the z-loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab import GPT, ModelConfig
from gptlab.errors import ConfigError

SMALL: dict[str, Any] = {"vocab_size": 11, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


def small(**changes: Any) -> GPT:
    """A float64 model with every parameter perturbed: with equal names come equal values."""
    model = GPT(ModelConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def tokens(n_rows: int = 2, n_tokens: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(11, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_logits_are_scaled_then_bounded() -> None:
    plain = small()(tokens())
    close(small(logit_scale=0.25)(tokens()), plain / 4)
    close(small(logit_softcap=0.7)(tokens()), 0.7 * torch.tanh(plain / 0.7))
    close(small(logit_scale=3.0, logit_softcap=0.7)(tokens()), 0.7 * torch.tanh(3 * plain / 0.7))


def test_a_head_may_have_a_bias() -> None:
    model = small(head_bias=True)
    close(model(tokens()), small()(tokens()) + model.head.bias)


def test_embeddings_are_scaled_before_positions_are_added_and_normalized_after() -> None:
    model = small(embedding_scale="sqrt", embedding_norm="layernorm", position="learned", n_layer=0, norm="none")
    x = model.token_embedding.weight[tokens()] * math.sqrt(16) + model.position.table.weight[:16]
    close(model.hidden(tokens())[0], torch.nn.functional.layer_norm(x, (16,), *model.embedding_norm.parameters()))
    number = small(embedding_scale=12.0, n_layer=0)
    close(number.hidden(tokens())[0], 12 * number.token_embedding.weight[tokens()])


@pytest.mark.parametrize("tied", [True, False])
def test_a_factorised_embedding_is_two_thin_matrices_at_each_end(tied: bool) -> None:
    model = small(embedding_size=6, tie_weights=tied, n_layer=0)
    h = model.token_embedding.weight[tokens()] @ model.embedding_proj.weight.T
    close(model(tokens()), h @ model.head_proj.weight.T @ model.head.weight.T)
    assert model.head.weight.shape == (11, 6)
    assert (model.head.weight is model.token_embedding.weight) == tied


def test_the_z_loss_is_the_mean_squared_log_of_the_denominator() -> None:
    model, targets = small(z_loss=0.01), tokens(seed=1)
    targets[0, 5:] = -100
    total, losses, metrics = model.loss(tokens(), targets)
    squares = model(tokens()).exp().sum(-1).log().square()
    close(losses["z_loss"], 0.01 * squares[targets >= 0].mean())
    close(total, small().loss(tokens(), targets)[0])
    assert metrics == {}
    assert small().loss(tokens(), targets)[1] == {}


def test_a_large_z_loss_draws_the_denominator_to_one() -> None:
    model, ids = GPT(ModelConfig(**SMALL, z_loss=10.0)), tokens()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        total, losses, _ = model.loss(ids, ids)
        (total / ids.numel() + losses["z_loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(ids).logsumexp(-1).abs().max() < 0.5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"logit_scale": 0.0}, "model.logit_scale must be above 0"),
        ({"logit_softcap": -1.0}, "model.logit_softcap must be above 0"),
        ({"embedding_size": 0}, "model.embedding_size must be above 0"),
        ({"embedding_scale": "root"}, "must be a number above 0 or sqrt, but is 'root'"),
        ({"embedding_scale": -2.0}, "must be a number above 0 or sqrt"),
        ({"embedding_norm": "layrnorm"}, "for model.embedding_norm. Did you mean 'layernorm'?"),
        ({"embedding_norm": {"eps": 1e-6}}, "model.embedding_norm must be a name, or a mapping with a name"),
        ({"z_loss": -1.0}, "model.z_loss must be 0 or more"),
        ({"separator": 3}, "model.document_mask, which is off"),
        ({"document_mask": True}, "give model.separator=ID"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GPT(ModelConfig(**{**SMALL, **changes}))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
