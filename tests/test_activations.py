"""Every point of every variant can be recorded and replaced; listening changes no bit, and leaves nothing behind."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gptlab import ModelConfig, components, register, registry  # noqa: F401  (components registers the variants)
from gptlab.activations import OF_SOFTMAX, edit, names, record
from gptlab.components.attention import Attention
from gptlab.components.block.prenorm import PreNorm
from gptlab.conformance.cases import SLOTS, Case, cases_for
from gptlab.errors import ConfigError
from gptlab.model import GPT

SIZES: dict[str, Any] = {"vocab_size": 11, "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16}
EVERY = [(slot, name) for slot in SLOTS for name in registry.names(slot)]


@functools.cache
def first_case(slot: str, name: str) -> Case:
    """A tiny model around a variant, as the laws have it."""
    return cases_for(slot, name)[0]


def model_of(**settings: Any) -> GPT:
    """A small model in eval mode whose parameters are all random."""
    model = GPT(ModelConfig(**{**SIZES, **settings}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ids(n_tokens: int = 16, n_rows: int = 2) -> Tensor:
    return torch.randint(11, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


def traces(model: GPT) -> list[Any]:
    """What listening could leave: hooks, and attributes of modules."""
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), {k: id(v) for k, v in vars(m).items()})
        for m in model.modules()
    ]


class ByHand(Attention):
    """A plugin's attention, its softmax written out."""

    def __init__(self, shape: Any, position: Any) -> None:
        super().__init__(shape, position)
        self.n_head = shape.n_head
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor, context: Any, cache: Any = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


class Fused(ByHand):
    """A plugin's attention by torch's fused function."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Single(ByHand):
    """A plugin's attention of one head, without a dimension for it."""

    def forward(self, x: Tensor, context: Any, cache: Any = None) -> Tensor:
        return self.proj(self.mix(*self.qkv(x).chunk(3, dim=-1)))


class Named(ByHand):
    """A plugin's attention that gives torch its arguments by name."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.softmax(input=scores.masked_fill(future, float("-inf")), dim=-1) @ v


PLUGINS = {"by_hand": ByHand, "fused": Fused, "single": Single, "named": Named}


class Keyed(PreNorm):
    """A plugin's block that gives its parts what they need by name."""

    def forward(self, x: Tensor, context: Any, cache: Any = None) -> Tensor:
        x = x + self.attention(context=context, x=self.attention_norms.before(x))
        return x + self.mlp(x=self.mlp_norms.before(x))


@pytest.fixture(params=PLUGINS)
def plugin(request: pytest.FixtureRequest) -> str:
    register("attention", request.param)(PLUGINS[request.param])
    return str(request.param)


@pytest.mark.parametrize("slot, name", EVERY)
def test_listening_everywhere_changes_no_bit_and_leaves_nothing(slot: str, name: str) -> None:
    case = first_case(slot, name)
    model, tokens = case.model(), case.tokens()
    before, found = traces(model), names(model)
    with torch.no_grad():
        wanted = model(tokens)
        with record(model) as outer, edit(model, dict.fromkeys(found, torch.clone)), record(model) as inner:
            assert torch.equal(model(tokens), wanted)
        assert torch.equal(model(tokens), wanted)
    assert traces(model) == before
    assert outer.keys() == inner.keys() == set(found)
    assert all(torch.equal(outer[point], inner[point]) for point in found)
    assert torch.equal(outer["logits"], wanted)


def test_points_are_named_in_the_order_in_which_they_come() -> None:
    layer = [
        *("in", "attention.in", "attention.q", "attention.k", "attention.v", "attention.scores", "attention.weights"),
        *("attention.heads", "attention.out", "attention.added"),
        *("mlp.in", "mlp.hidden", "mlp.out", "mlp.added", "out"),
    ]
    assert names(model_of(n_layer=1)) == ["embedding", *(f"blocks.0.{point}" for point in layer), "norm", "logits"]
    assert names(model_of(n_layer=0)) == ["embedding", "norm", "logits"]


def test_names_leaves_a_model_in_its_mode_and_fits_short_positions() -> None:
    model = model_of(position="learned", block_size=1).train()
    assert "logits" in names(model)
    assert model.training


SOFTMAXES: dict[str, dict[str, Any]] = {
    "vanilla": {"name": "vanilla"},
    "flash": {"name": "flash"},
    "flex": {"name": "flex", "head_size": 16},
    "groups": {"name": "flash", "n_kv_head": 2},
    "window": {"name": "flash", "window": 3},
    "softcap": {"name": "vanilla", "softcap": 1.0, "scale": 0.7},
    "sinks": {"name": "vanilla", "sinks": True},
    "norm": {"name": "softmax", "qk_norm": "rmsnorm", "qk_norm_after": True},
}


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("which", SOFTMAXES)
def test_weights_are_those_of_the_paper_and_give_what_the_kernel_gave(which: str, position: str) -> None:
    """Written as a loop from the formula: softmax over the visible of softcap(scale q . k) + bias."""
    spec = SOFTMAXES[which]
    if position == "alibi" and "qk_norm_after" in spec:
        pytest.skip("it is about rotation")
    model = model_of(attention=spec, position=position)
    with torch.no_grad(), record(model, "blocks.1.attention.*") as seen:
        model(ids())
    q, k, v, scores, weights, heads = (seen[f"blocks.1.attention.{name}"] for name in (*OF_SOFTMAX, "heads"))
    mixer = model.attentions[1]
    for h in range(4):
        group = h * k.shape[1] // 4
        for i in (0, 5, 15):
            visible = range(max(0, i - 2), i + 1) if which == "window" else range(i + 1)
            logits = []
            for j in visible:
                logit = float(q[0, h, i] @ k[0, group, j]) * spec.get("scale", q.shape[-1] ** -0.5)
                logit = math.tanh(logit) if which == "softcap" else logit
                logits.append(logit - (2 ** (-2 * (h + 1)) * (i - j) if position == "alibi" else 0.0))
            nothing = math.exp(float(mixer.sinks[h].detach())) if which == "sinks" else 0.0
            total = sum(map(math.exp, logits)) + nothing
            wanted = torch.zeros(16)
            wanted[list(visible)] = torch.tensor([math.exp(logit) / total for logit in logits])
            torch.testing.assert_close(weights[0, h, i], wanted, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(scores[0, h, i, list(visible)], torch.tensor(logits), atol=1e-4, rtol=1e-4)
            size = v.shape[-1]
            read = heads[0, i, h * size : (h + 1) * size]
            torch.testing.assert_close(read, wanted @ v[0, group], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["vanilla", "flash", "flex", "groups"])
def test_edited_weights_and_scores_are_what_values_are_summed_by(which: str) -> None:
    model = model_of(attention=SOFTMAXES[which])
    uniform = torch.ones(16, 16).tril() / torch.arange(1, 17)[:, None]
    here = "blocks.0.attention"
    with torch.no_grad():
        with edit(model, {f"{here}.weights": lambda w: uniform.expand_as(w)}), record(model, f"{here}.*") as seen:
            model(ids())
        v = seen[f"{here}.v"].repeat_interleave(4 // seen[f"{here}.v"].shape[1], dim=1)
        wanted = (uniform @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(seen[f"{here}.heads"], wanted, atol=1e-5, rtol=1e-4)
        with edit(model, {f"{here}.scores": lambda scores: 2 * scores}):
            doubled = model(ids())
        with edit(model, {f"{here}.q": lambda q: 2 * q}):
            torch.testing.assert_close(model(ids()), doubled, atol=1e-4, rtol=1e-4)


def test_a_plugin_is_recorded_and_edited_without_code_of_its_own(plugin: str) -> None:
    model = model_of(attention=plugin, position="learned")
    here = "blocks.1.attention"
    with torch.no_grad(), record(model, f"{here}.*") as seen:
        plain = model(ids())
    q, k, v = model.attentions[1].qkv(seen[f"{here}.in"]).chunk(3, dim=-1)
    if plugin != "single":
        q, k, v = (x.unflatten(-1, (4, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
    wanted = scores.softmax(-1)
    weights = seen[f"{here}.weights"]
    assert weights.shape == (2, 1 if plugin == "single" else 4, 16, 16)
    torch.testing.assert_close(weights.reshape(wanted.shape), wanted)
    torch.testing.assert_close(seen[f"{here}.scores"].reshape(scores.shape), scores)
    assert (f"{here}.q" in seen) is (plugin == "fused")
    with torch.no_grad(), edit(model, {f"{here}.weights": torch.zeros_like}), record(model, f"{here}.heads") as seen:
        assert not torch.allclose(model(ids()), plain)
    torch.testing.assert_close(seen[f"{here}.heads"], torch.zeros(2, 16, 32), atol=1e-6, rtol=0)


def test_a_block_may_give_its_parts_what_they_need_by_name(plugin: str) -> None:
    register("block", "keyed")(Keyed)
    points = ["blocks.1.in", "blocks.1.attention.in", "blocks.1.attention.weights", "blocks.1.mlp.in", "blocks.1.out"]
    seen = []
    for block in ("prenorm", "keyed"):
        model = model_of(attention=plugin, position="learned", block=block)
        with torch.no_grad(), record(model, points) as found:
            model(ids())
        seen.append({name: found[name] for name in points})
    for name in points:
        assert torch.equal(seen[0][name], seen[1][name])


MASKS: dict[str, dict[str, Any]] = {
    "bool": {"attn_mask": torch.ones(16, 16).tril().bool()},
    "float": {"attn_mask": torch.zeros(16, 16).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))},
    "scale": {"is_causal": True, "scale": 0.9},
    "groups": {"is_causal": True, "enable_gqa": True},
}


@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_the_fused_function_sum_values_to_what_it_gives(mask: str) -> None:
    class Masked(Fused):
        """A plugin's attention with a mask of its own."""

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (k[:, ::2], v[:, ::2]) if mask == "groups" else (k, v)
            return F.scaled_dot_product_attention(q, k, v, **MASKS[mask])

    register("attention", "masked")(Masked)
    with torch.no_grad(), record(model := model_of(attention="masked", position="none")) as seen:
        model(ids())
    weights, v, heads = (seen[f"blocks.0.attention.{name}"] for name in ("weights", "v", "heads"))
    v = v.repeat_interleave(4 // v.shape[1], dim=1)
    torch.testing.assert_close((weights @ v).transpose(1, 2).flatten(2), heads)


def test_a_softmax_that_is_no_map_of_tokens_is_left_alone() -> None:
    class Featured(Attention):
        """A plugin's mixer with a softmax over features, of as many as there are tokens."""

        def __init__(self, shape: Any, position: Any) -> None:
            super().__init__(shape, position)
            self.v = nn.Linear(shape.n_embd, 16)
            self.proj = nn.Linear(16, shape.n_embd)

        def forward(self, x: Tensor, context: Any, cache: Any = None) -> Tensor:
            return self.proj(self.v(x).softmax(-1))

    register("attention", "featured")(Featured)
    assert "blocks.0.attention.weights" not in names(model_of(attention="featured", position="none"))


def test_what_is_added_is_what_comes_to_the_stream() -> None:
    model = model_of(block={"name": "sandwich", "gain": "channel", "scale": 2.0})
    with torch.no_grad(), record(model) as seen:
        model(ids())
    added = seen["blocks.0.attention.added"] + seen["blocks.0.mlp.added"]
    torch.testing.assert_close(seen["blocks.0.in"] + added, seen["blocks.0.out"])
    assert torch.equal(seen["blocks.0.in"], seen["embedding"])
    assert torch.equal(seen["blocks.0.out"], seen["blocks.1.in"])
    torch.testing.assert_close(model.logits(seen["norm"]), seen["logits"])


def test_the_outer_context_comes_first_at_every_kind_of_point() -> None:
    points = ["blocks.0.attention.q", "blocks.0.mlp.in", "blocks.0.out"]
    model = model_of()
    with (
        torch.no_grad(),
        record(model, points) as before,
        edit(model, dict.fromkeys(points, lambda x: x + 1)),
        edit(model, {"blocks.0.*": lambda x: 2 * x}),
        record(model, points) as after,
    ):
        model(ids())
    for point in points:
        torch.testing.assert_close(after[point], 2 * (before[point] + 1))


def test_a_recording_is_a_copy_and_follows_decoding_step_by_step() -> None:
    model = model_of()
    cache = model.new_cache(1, 16)
    with torch.no_grad(), record(model, "blocks.0.attention.*") as seen:
        model(ids(5, 1), cache)
        k = seen["blocks.0.attention.k"]
        kept = k.clone()
        for token in ids(8, 1)[0, 5:]:
            model(token[None, None], cache)
    assert torch.equal(k, kept)
    assert seen["blocks.0.attention.weights"].shape == (1, 4, 1, 8)
    torch.testing.assert_close(seen["blocks.0.attention.weights"].sum(-1), torch.ones(1, 4, 1))


def test_a_recording_is_not_changed_by_what_is_changed_in_place() -> None:
    model = model_of()
    with torch.no_grad(), record(model, "blocks.0.out") as plain:
        model(ids())
    with torch.no_grad(), record(model, "blocks.0.out") as seen, edit(model, {"blocks.0.out": lambda x: x.mul_(2)}):
        model(ids())
    assert torch.equal(seen["blocks.0.out"], plain["blocks.0.out"])


@pytest.mark.parametrize("attention", ["vanilla", "flash"])
def test_gradients_of_recordings_are_those_of_the_pass(attention: str) -> None:
    points = [f"blocks.0.attention.{name}" for name in (*OF_SOFTMAX, "out")]
    model = model_of(attention=attention)
    model(ids()).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with record(model, points, keep_grad=True) as seen:
        loss = model(ids()).square().sum()
    grads = torch.autograd.grad(loss, [seen[point] for point in points], retain_graph=True)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-4, rtol=1e-3)
    moves = torch.Generator().manual_seed(3)
    for point, grad in zip(points, grads, strict=True):
        if point.endswith("scores"):  # a step would move what is hidden
            continue
        step = 1e-3 * torch.randn(seen[point].shape, generator=moves)
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                with edit(model, {point: lambda x, sign=sign, step=step: x + sign * step}):
                    losses.append(model(ids()).double().square().sum())
        torch.testing.assert_close((losses[0] - losses[1]) / 2, (grad * step).sum().double(), atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("name", ["linear", "mean", "conv", "mamba2", "none"])
def test_an_attention_without_a_softmax_has_no_weights_and_says_so_in_one_line(name: str) -> None:
    model = model_of(attention=name, position="none")
    for listen in (record(model, "blocks.1.attention.weights"), edit(model, {"blocks.1.attention.weights": abs})):
        with pytest.raises(ConfigError, match=f"Attention '{name}', which shows no softmax,") as refused, listen:
            model(ids())
        assert "\n" not in str(refused.value)
    with record(model, "*.weights") as seen:  # a pattern takes what there is
        model(ids())
    assert seen == {}


def test_an_mlp_without_hidden_units_says_so() -> None:
    model = model_of(mlp="moe")
    with (
        pytest.raises(ConfigError, match="This model computes no"),
        record(model, "blocks.0.mlp.hidden"),
    ):
        model(ids())


@pytest.mark.parametrize("name", ["blocks.0.atention.out", "blocks.2.out", "nothing", "*.nothing"])
def test_a_point_that_cannot_be_is_refused_at_once(name: str) -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="No point of a model is called") as refused, record(model, name):
        pytest.fail("it was entered")
    assert "\n" not in str(refused.value)


def test_an_edit_must_give_what_fits() -> None:
    model = model_of()
    for wrong in (lambda x: x[:, :1], lambda x: None):
        before = traces(model)
        with pytest.raises(ConfigError, match="must give a tensor of shape"), edit(model, {"blocks.0.out": wrong}):
            model(ids())
        assert traces(model) == before


def test_nothing_is_left_after_an_error() -> None:
    model = model_of()
    before = traces(model)
    with pytest.raises(ZeroDivisionError), record(model), edit(model, {"blocks.0.attention.q": lambda x: 1 / 0}):
        model(ids())
    assert traces(model) == before


def test_steering_by_an_edit_of_the_stream_moves_all_later_layers_and_no_earlier_one() -> None:
    model = model_of(n_layer=3)
    with torch.no_grad(), record(model) as plain:
        model(ids())
    with torch.no_grad(), edit(model, {"blocks.1.out": lambda x: x + 1}), record(model) as moved:
        model(ids())
    assert torch.equal(moved["blocks.0.out"], plain["blocks.0.out"])
    torch.testing.assert_close(moved["blocks.2.in"], plain["blocks.1.out"] + 1)
    assert not torch.allclose(moved["logits"], plain["logits"])
