"""Chunks give the loss and the gradients of the plain formula, and hold one chunk of logits at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab import GPT, ModelConfig, loss, model

SIZES = {"vocab_size": 37, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_weights": True},
    "biased": {"head_bias": True},
    "bounded": {"logit_softcap": 3.0, "logit_scale": 0.5},
    "narrow": {"embedding_size": 8, "tie_weights": True},
}


def _gradients(gpt: GPT, rows: int) -> tuple[Tensor, list[Tensor]]:
    tokens = torch.randint(37, (3, 17), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[0, 5:9] = -100
    total = 0.25 * gpt.loss(tokens[:, :-1], targets)[0]
    return total, list(torch.autograd.grad(total, [p for p in gpt.parameters() if p.requires_grad]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n_rows", [1, 7, 47])
@pytest.mark.parametrize("head", HEADS)
def test_chunks_are_the_whole(head: str, n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = GPT(ModelConfig(**SIZES, **HEADS[head], init_std=0.5))
    total, gradients = _gradients(gpt, n_rows)
    monkeypatch.setattr(model, "LARGEST", 37 * n_rows)
    in_chunks, of_chunks = _gradients(gpt, n_rows)
    torch.testing.assert_close(in_chunks, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(of_chunks, gradients, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(_only_loss(gpt), 4 * total, rtol=1e-12, atol=0)


def _only_loss(gpt: GPT) -> Tensor:
    tokens = torch.randint(37, (3, 17), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[0, 5:9] = -100
    return gpt.loss(tokens[:, :-1], targets)[0]


def test_frozen_parameters_of_the_head_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = GPT(ModelConfig(**SIZES))
    gpt.head.weight.requires_grad_(False)
    plain = _gradients(gpt, 5)
    monkeypatch.setattr(model, "LARGEST", 37 * 5)
    torch.testing.assert_close(_gradients(gpt, 5), plain)
    assert gpt.head.weight.grad is None


def test_no_more_logits_than_a_chunk_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = loss.cross_entropy
    monkeypatch.setattr(loss, "cross_entropy", lambda x, y: seen.append(x.shape) or plain(x, y))
    monkeypatch.setattr(model, "LARGEST", 37 * 20)
    _gradients(GPT(ModelConfig(**SIZES)), 20)
    assert seen == [(20, 37), (20, 37), (8, 37)]


def test_in_bf16_the_chunks_are_as_near_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = GPT(ModelConfig(**SIZES, init_std=0.3))
    exact, _ = _gradients(gpt, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, _ = _gradients(gpt, 9)
        monkeypatch.setattr(model, "LARGEST", 37 * 9)
        chunks, of_chunks = _gradients(gpt, 9)
    assert abs(chunks - exact) <= 2 * abs(whole - exact) + 1e-3 * exact
    assert all(gradient.dtype == torch.float32 for gradient in of_chunks)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bias", [False, True])
def test_a_padded_head_is_the_head(bias: bool) -> None:
    head = torch.nn.Linear(8, 37, bias=bias)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(loss.padded(head, x)[..., :37], head(x), rtol=1e-12, atol=0)
    of_padded, of_head = (
        torch.autograd.grad(scores.square().sum(), list(head.parameters()))
        for scores in (loss.padded(head, x), head(x))
    )
    torch.testing.assert_close(of_padded, of_head)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("compiling", [False, True])
def test_columns_of_no_token_take_no_part_in_the_loss(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    scores, targets = torch.randn(5, 37, requires_grad=True), torch.randint(37, (5,))
    wide = torch.cat((scores, torch.full((5, 27), 9.0)), dim=1)
    results = []
    for logits in (scores, loss.of_tokens(wide, 37)):
        total = loss.cross_entropy(logits, targets)
        results.append((total.detach(), *torch.autograd.grad(total, scores, retain_graph=True)))
    torch.testing.assert_close(results[1], results[0])
