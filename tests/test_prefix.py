"""Attention that sees later tokens: all of them, or those of a source. Against loops, padded, cached, and refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn as nn
from torch import Tensor

from gptlab import registry
from gptlab.components.attention.kernels import FLEX, MATH, SDPA, Kernel
from gptlab.components.attention.plan import Plan
from gptlab.components.context import Context, Places
from gptlab.components.shape import Shape
from gptlab.config import ModelConfig
from gptlab.errors import ConfigError
from gptlab.evaluation import evaluate
from gptlab.inside import maps
from gptlab.model import GPT
from gptlab.sampling import Draw, generate

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

T, H, D, END = 11, 4, 8, 0
SOURCES = [0, 1, 4, 7, T]  # lengths, a row each: none, its end alone, some, more, all
KERNELS = (MATH, SDPA, FLEX)
SMALL: dict[str, Any] = {"vocab_size": 13, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
PREFIX = {"name": "softmax", "causal": "prefix"}


def gpt(**changes: Any) -> GPT:
    """A model with random parameters, in float64."""
    config = ModelConfig(**{**SMALL, "attention": PREFIX, "source_end": END, **changes})
    model = GPT(config).double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def rows(*lengths: int, n: int = T) -> Tensor:
    """Random rows whose sources have these lengths, the end included."""
    tokens = torch.randint(1, 13, (len(lengths), n), generator=torch.Generator().manual_seed(1))
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1 : length] = END
    return tokens


def by_loop(q: Tensor, k: Tensor, v: Tensor, causal: Any, window: int, chunk: int, source: int) -> Tensor:
    """One row and head: softmax over what Raffel et al. (2020, figure 4) let a token see."""
    out = []
    for i in range(len(q)):
        ordered = {True: lambda j, i=i: j <= i, False: lambda j: True}
        see = ordered.get(causal, lambda j, i=i: j <= i or max(i, j) < source)
        seen = [j for j in range(len(k)) if see(j) and abs(i - j) < window and i // chunk == j // chunk]
        weights = [math.exp(float(q[i] @ k[j]) * 0.4) for j in seen]
        out.append(sum(w / sum(weights) * v[j] for w, j in zip(weights, seen, strict=True)))
    return torch.stack(out)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("limits", [{}, {"window": 3}, {"chunk": 4}, {"window": 5, "chunk": 6}], ids=str)
@pytest.mark.parametrize("causal", [True, False, "prefix"])
def test_a_kernel_is_the_loop_over_what_a_token_sees(causal: Any, limits: dict[str, int], kernel: Kernel) -> None:
    q, k, v = (torch.randn(len(SOURCES), 2, T, D) for _ in range(3))
    at = Places(torch.arange(T)[None], prefix=torch.tensor(SOURCES)[:, None])
    y = kernel.run(q, k, v, Plan(scale=0.4, causal=causal, **limits), at, at)
    window, chunk = limits.get("window", 99), limits.get("chunk", 99)
    for b, source in enumerate(SOURCES):
        for h in range(2):
            wanted = by_loop(q[b, h], k[b, h], v[b, h], causal, window, chunk, source)
            torch.testing.assert_close(y[b, h], wanted, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["latent", "differential"])
def test_what_has_a_plan_sees_its_source_both_ways(name: str) -> None:
    shape = Shape(n_embd=32, n_head=H, block_size=T)
    position = registry.build("position", "rope", shape)
    mixer = registry.build("attention", {"name": name, "causal": "prefix"}, shape, position)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, T, 32, requires_grad=True)
    y = mixer.eval()(x, Context(torch.arange(T)[None], prefix=torch.tensor([[4]])))
    for i in range(T):
        (felt,) = torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)
        assert (felt[0].abs().sum(-1) > 0).tolist() == [j <= max(i, 3) for j in range(T)]


@pytest.mark.parametrize("feed", [[T], [7, 4], [7, 1, 1, 2]], ids=str)
def test_the_first_end_ends_the_source(feed: list[int]) -> None:
    model, tokens = gpt(), rows(4, 7, 1, 0)
    tokens[0, 8] = END  # of no source: it is in the target
    cache = model.new_cache(4, T)
    contexts = [model.place(piece, cache) for piece in tokens.split(feed, dim=1)]
    assert [c.prefix.flatten().tolist() for c in contexts if c.prefix is not None] == [[4, 7, 1, 0]] * len(feed)


def test_padding_is_no_source_even_where_it_looks_like_an_end() -> None:
    model, tokens = gpt(), rows(4, 7)
    padded = torch.cat((torch.full((2, 3), END), tokens), dim=1)
    cache = model.new_cache(2, 16)
    cache.pad(torch.tensor([[3], [3]]))
    placed = model.place(padded, cache)
    assert placed.prefix is not None
    assert placed.prefix.flatten().tolist() == [4, 7]


@pytest.mark.parametrize("attention", ["vanilla", "flash", "flex", "latent", "differential"])
def test_rows_padded_and_fed_in_pieces_are_rows_alone(attention: str) -> None:
    model = gpt(attention={"name": attention, "causal": "prefix"})
    sources, more = (2, 7, 4), (0, 1, 3)
    prompts = [row[: n + m].tolist() for row, n, m in zip(rows(*sources), sources, more, strict=True)]
    together = list(generate(model, prompts, 5, draw=Draw(temperature=0)))
    for i, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert [step[i] for step in together] == ids[len(prompt) :]


def test_a_source_is_seen_both_ways_and_a_target_is_not() -> None:
    model, tokens = gpt(), rows(5)
    with torch.no_grad():
        before = model(tokens)
        for t in range(T):
            changed = tokens.clone()
            changed[0, t] = 12 if tokens[0, t] != 12 else 11
            moved = (model(changed) - before).abs().amax(-1)[0] > 1e-9
            if t < 4:  # token 4 is the end: without it there is no source
                assert moved.all()
            elif t > 4:
                assert moved.tolist() == [j >= t for j in range(T)]


def test_a_layer_may_be_causal_among_others() -> None:
    layers = [{"at": 1, "attention": {"causal": True}}]
    model = gpt(layers=layers)
    assert [attention.causal for attention in model.attentions] == ["prefix", True]
    assert not torch.allclose(model(rows(5)), gpt()(rows(5)))


def test_the_loss_is_one_graph_whatever_the_lengths_of_sources() -> None:
    model = gpt().float()
    torch.compiler.reset()
    step = torch.compile(model.loss, fullgraph=True, backend="eager")
    wanted = model.loss(rows(4, 7), rows(4, 7))[0]
    torch.testing.assert_close(step(rows(4, 7), rows(4, 7))[0], wanted)
    with torch.compiler.set_stance("fail_on_recompile"):
        step(rows(2, 0), rows(2, 0))


def test_an_encoder_is_one_line_and_knows_no_order_of_its_own() -> None:
    """causal=false and no position: what each token becomes does not depend on where it stands."""
    encoder = gpt(attention={"name": "softmax", "causal": False}, position="none", source_end=None)
    tokens, order = rows(0, 0), torch.randperm(T, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.hidden(tokens[:, order])[0], encoder.hidden(tokens)[0][:, order])
    with pytest.raises(ConfigError, match="without a cache"):
        encoder.new_cache(2, T)


REFUSED = [
    ({"source_end": None}, "needs the id that ends a source"),
    ({"attention": "softmax"}, "no layer has that: leave source_end out"),
    ({"document_mask": True, "separator": 3}, "leave document_mask out"),
    ({"position": "alibi"}, "not how far ahead"),
    ({"attention": {"name": "softmax", "causal": "prefxi"}}, "must be true or false or one of prefix"),
]


@pytest.mark.parametrize("changes, told", REFUSED)
def test_what_means_nothing_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        gpt(**changes)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_has_no_source_is_neither_continued_nor_scored() -> None:
    with pytest.raises(ConfigError, match="must hold all of one and the id that ends it, 0"):
        next(generate(gpt(), [3, 4], 2))
    with pytest.raises(ConfigError, match=r"causal=prefix lets it see"):
        evaluate(gpt(), rows(4)[0].numpy(), batch_size=1)


@pytest.mark.parametrize(
    "words, told",
    [
        (["model.attention.causal=prefix"], "but a text has none: choose data=pairs, or leave causal out"),
        (["model.attention.causal=false"], "which model.attention.causal=false lets it see: leave causal out"),
        (["model/attention=cross", "position=none"], "A run has no encoder"),
        (["model/block=decoder"], "A run has no encoder"),
    ],
)
def test_a_run_on_text_of_what_sees_the_next_token_is_refused(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    ended = tiny.run(*words, "run_dir=r")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert told in ended.err
    assert not Path("r").exists()


def test_a_map_shows_the_source_both_ways() -> None:
    for _, weights, by_softmax in maps.maps(gpt(), rows(4, 7)):
        assert by_softmax
        for row, source in zip(weights, (4, 7), strict=True):
            seen = [[j <= max(i, source - 1) if i < source else j <= i for j in range(T)] for i in range(T)]
            assert ((row > 0) == torch.tensor(seen)).all()
