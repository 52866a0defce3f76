"""Tokens out: the filters against their definitions, caches against the whole context, one seed per text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gptlab import ModelConfig
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.sampling import Draw, check_length, generate
from gptlab.seeds import seed_of

V = 13


def gpt(position: str = "rope", attention: str = "flash", **sizes: int) -> GPT:
    """A small model whose every parameter is far from its initial value, so that its likeliest token varies."""
    config = {"vocab_size": V, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, **sizes}
    model = GPT(ModelConfig(**config, position=position, attention=attention))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=draw))
    return model.eval()


def drawn(model: GPT, prompt: Sequence[int], n: int, **options: object) -> list[list[int]]:
    return list(generate(model, prompt, n, **options))


def logits(n: int = 5) -> Tensor:
    return 3 * torch.randn(n, V, generator=torch.Generator().manual_seed(2))


def naive(row: Tensor, draw: Draw) -> Tensor:
    """The filters as they are written in the papers, for one row, with sets and loops."""
    p = (row / draw.temperature).softmax(0)
    by_p = sorted(range(V), key=lambda i: -p[i])
    kept = set(by_p[: draw.top_k or V])
    p = torch.tensor([p[i] if i in kept else 0.0 for i in range(V)])
    p = p / p.sum()
    if draw.top_p is not None:
        total, nucleus = 0.0, set()
        for i in by_p:
            if total < draw.top_p:
                nucleus.add(i)
            total += p[i].item()
        p = torch.tensor([p[i] if i in nucleus else 0.0 for i in range(V)])
        p = p / p.sum()
    if draw.min_p is not None:
        p = torch.tensor([x if x >= draw.min_p * p.max() else 0.0 for x in p])
    return p / p.sum()


DRAWS = [
    Draw(),
    Draw(temperature=0.3),
    Draw(temperature=4.0),
    Draw(top_k=1),
    Draw(top_k=4),
    Draw(top_k=100),
    Draw(top_p=0.5),
    Draw(top_p=1e-9),
    Draw(top_p=1.0),
    Draw(min_p=0.2),
    Draw(min_p=1.0),
    Draw(temperature=2.0, top_k=6, top_p=0.8, min_p=0.05),
]


@pytest.mark.parametrize("draw", DRAWS, ids=repr)
def test_probabilities_are_those_of_the_definitions(draw: Draw) -> None:
    rows = logits()
    torch.testing.assert_close(draw.probabilities(rows), torch.stack([naive(row, draw) for row in rows]))


def test_temperature_0_is_the_likeliest_token() -> None:
    p = Draw(temperature=0).probabilities(logits())
    assert torch.equal(p.argmax(-1), logits().argmax(-1))
    assert torch.equal(p.sum(-1), torch.ones(5))


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 2.0}, {"min_p": -0.1}, {"min_p": 1.1}]
)
def test_a_filter_out_of_its_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as refused:
        Draw(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("attention", ["flash", "vanilla", "mean"])
@pytest.mark.parametrize("position", ["rope", "learned", "none", "alibi"])
def test_cached_decoding_is_decoding_of_the_whole_context(attention: str, position: str) -> None:
    if attention == "mean" and position in ("rope", "alibi"):
        pytest.skip("this attention takes no such position")
    model = gpt(position, attention)
    for draw in (Draw(temperature=0), Draw(temperature=1.5)):
        context, generator = [3, 1, 4], torch.Generator().manual_seed(seed_of(6, "sample"))
        for _ in range(6):
            with torch.no_grad():
                p = draw.probabilities(model(torch.tensor([context]))[:, -1])
            context.append(int(torch.multinomial(p[0], 1, generator=generator)))
        assert [token for (token,) in drawn(model, [3, 1, 4], 6, draw=draw, seeds=[6])] == context[3:]
    assert len(set(context[3:])) > 1, "a constant answer would prove nothing"


def test_a_text_depends_on_its_own_seed_alone() -> None:
    model = gpt()
    together = list(zip(*drawn(model, [5], 12, seeds=[7, 8, 9]), strict=True))
    for seed, text in zip((7, 8, 9), together, strict=True):
        assert text == tuple(token for (token,) in drawn(model, [5], 12, seeds=[seed]))
    assert len(set(together)) == 3


def test_sampling_leaves_the_models_mode_and_the_global_generator_alone() -> None:
    model = gpt().train()
    before = torch.random.get_rng_state()
    drawn(model, [5], 3)
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    model = gpt(n_layer=0)
    with torch.no_grad():
        p = model(torch.tensor([[2]]))[0, -1].softmax(-1)
    (tokens,) = drawn(model, [2], 1, seeds=range(2000))
    found = torch.bincount(torch.tensor(tokens), minlength=V) / 2000
    assert (found - p).abs().max() < 4 * (0.25 / 2000) ** 0.5


@pytest.mark.parametrize("position", ["rope", "alibi", "none", "sinusoidal"])
def test_past_block_size_the_oldest_tokens_fall_out(position: str) -> None:
    """With one layer, what a token sees is exactly the last block_size tokens, at the positions they had."""
    model = gpt(position, n_layer=1)
    tokens = [token for (token,) in drawn(model, [1, 2], 20, draw=Draw(temperature=0))]
    assert len(tokens) == 20
    if position in ("rope", "alibi", "none"):  # relative: the window may be fed at any place
        context = [1, 2, *tokens][:-1]
        with torch.no_grad():
            again = int(model(torch.tensor([context[-8:]]))[0, -1].argmax())
        assert again == tokens[-1]


def test_a_learned_position_refuses_before_the_first_token() -> None:
    model = gpt("learned")
    assert len(drawn(model, [1, 2, 3], 6)) == 6
    with pytest.raises(ConfigError, match="ends at 8 tokens") as refused:
        next(generate(model, [1, 2, 3], 7))
    assert "at most 6 new" in str(refused.value)
    assert "\n" not in str(refused.value)
    check_length(model, 3, 6)


def test_a_prompt_longer_than_block_size_is_fed_in_pieces() -> None:
    model = gpt(n_layer=1)
    prompt = [i % V for i in range(21)]
    assert len(drawn(model, prompt, 3)) == 3


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        next(generate(gpt(), [], 3))
