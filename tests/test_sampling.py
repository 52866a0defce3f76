"""Tokens out: the filters against their definitions, caches against the whole context, one seed per text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from gptlab import ModelConfig, registry, sampling
from gptlab.components import context as context_module
from gptlab.components.attention import Attention
from gptlab.components.context import Context
from gptlab.errors import ConfigError, TrainingError
from gptlab.hardware import has_compiler
from gptlab.model import GPT
from gptlab.sampling import Draw, check_length, generate
from gptlab.seeds import seed_of

V = 13


def gpt(position: str = "rope", attention: str | dict[str, object] = "flash", **sizes: object) -> GPT:
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


def test_nothing_is_drawn_from_a_model_that_has_diverged() -> None:
    model = gpt()
    model.head.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="are not finite, so no text can be drawn"):
        drawn(model, [1, 2], 1)


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


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2]]
VARIANTS = [
    *registry.names("attention"),
    {"name": "softmax", "window": 6},
    {"name": "softmax", "n_kv_head": 1, "sinks": True},
    {"name": "vanilla", "value_residual": True},
]


class Remembering(Attention):
    """The sum of what came before, fed again at every call."""

    honours = frozenset()

    def forward(self, x: Tensor, context: Context, cache: object = None) -> Tensor:
        return x.cumsum(1)


def texts(model: GPT, prompts: Sequence[int] | Sequence[Sequence[int]], n: int, **options: object) -> list[list[int]]:
    """One list of tokens a continuation."""
    return [list(text) for text in zip(*generate(model, prompts, n, draw=Draw(), **options), strict=True)]


@pytest.mark.parametrize("attention", VARIANTS, ids=str)
@pytest.mark.parametrize("steps", ["plain", "of fixed shapes"])
def test_prompts_of_several_lengths_are_continued_as_each_alone(
    attention: str | dict[str, object], steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past block_size, where memories move; steps of fixed shapes are what a compiler is given."""
    monkeypatch.setattr(context_module, "SLACK", 5)
    model = tiny.with_memory(gpt("none", attention).double())
    alone = [texts(model, prompt, 30, seeds=[seed])[0] for seed, prompt in enumerate(PROMPTS)]
    monkeypatch.setattr(sampling, "compiled_logits", lambda device_type: sampling.next_logits)
    notes: list[str] = []
    options = {} if steps == "plain" else {"compiled": notes.append}
    assert texts(model, PROMPTS, 30, seeds=range(4), **options) == alone
    assert texts(model, PROMPTS[2], 30, seeds=[2], **options) == [alone[2]]
    assert not notes
    assert any(len(set(text)) > 3 for text in alone), "a constant answer would prove nothing"


@pytest.mark.parametrize("position", ["rope", "learned", "alibi", "sinusoidal", "t5", "fire"])
def test_padding_takes_no_position(position: str) -> None:
    model = gpt(position, "softmax").double()
    n = 4 if position == "learned" else 20
    alone = [texts(model, prompt, n, seeds=[7])[0] for prompt in PROMPTS]
    assert texts(model, PROMPTS, n, seeds=[7]) == alone


def test_padding_is_no_document_of_a_model_that_keeps_them_apart() -> None:
    model = gpt("rope", "softmax", document_mask=True, separator=0).double()
    prompts = [[3, 0, 4], [0], [5, 6, 0, 8, 0]]
    alone = [texts(model, prompt, 90, seeds=[1])[0] for prompt in prompts]
    assert any(0 in text for text in alone)
    assert texts(model, prompts, 90, seeds=[1]) == alone


def test_a_step_is_compiled_once_for_texts_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(sampling.next_logits, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(sampling, "compiled_logits", lambda device_type: compiled)
    for attention in ("softmax", "mamba2", "linear"):
        torch.compiler.reset()
        model = gpt("none", attention)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for prompt, n in (([1, 2, 3], 9), ([4], 30), (PROMPTS[2], 20)):
                assert texts(model, prompt, n, compiled=pytest.fail) == texts(model, prompt, n)
    torch.compiler.reset()


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_a_compiled_step_draws_the_same_tokens() -> None:
    model = gpt("rope", "softmax")
    assert texts(model, [1, 2], 20, compiled=pytest.fail) == texts(model, [1, 2], 20)
    torch.compiler.reset()


def test_what_cannot_be_compiled_or_filled_up_says_so() -> None:
    registry.register("attention", "remembering")(Remembering)
    model = gpt("none", "remembering")
    notes: list[str] = []
    assert texts(model, [1, 2], 5, compiled=notes.append) == texts(model, [1, 2], 5)
    assert notes == ["The memory of attention 'remembering' grows with the text: its steps are not compiled."]
    with pytest.raises(ConfigError, match="'remembering' cannot keep padding out"):
        texts(model, PROMPTS, 5)
    assert len(texts(model, [[1, 2], [3, 4]], 5)) == 2


def test_a_compiler_that_fails_is_told_of_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*ignored: object) -> Tensor:
        raise TorchDynamoException("no such luck\nat length")

    model, notes = gpt(), list[str]()
    monkeypatch.setattr(sampling, "compiled_logits", lambda device_type: broken)
    monkeypatch.setattr(sampling, "has_compiler", lambda device: True)
    assert texts(model, [1, 2], 20, compiled=notes.append) == texts(model, [1, 2], 20)
    assert notes == ["torch.compile failed (no such luck): steps go on without it."]
    monkeypatch.setattr(sampling, "has_compiler", lambda device: False)
    assert texts(model, [1, 2], 20, compiled=notes.append) == texts(model, [1, 2], 20)
    assert "No compiler was found" in notes[1]


def test_prompts_and_seeds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ConfigError, match="are 4 and 2"):
        texts(gpt(), PROMPTS, 3, seeds=[1, 2])
    with pytest.raises(ConfigError, match="at least one token"):
        texts(gpt(), [[1], []], 3)


def test_of_a_prompt_only_the_last_token_is_scored() -> None:
    model, fed = gpt(), []
    model.head.register_forward_hook(lambda module, given, out: fed.append(given[0].shape[1]))
    texts(model, PROMPTS, 3)
    assert fed == [1, 1, 1]


def test_matrices_laid_out_for_decoding_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LARGE", 16 * 16)
    model, same = gpt(tie_weights=True), gpt(tie_weights=True)
    sampling.lay_out(model)
    assert model.blocks[0].mlp.proj.weight.stride() == (1, 16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert model.head.weight is model.token_embedding.weight
    assert texts(model, [1, 2], 20) == texts(same, [1, 2], 20)
