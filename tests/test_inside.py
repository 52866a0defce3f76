"""Views of a model inside: each is what it must be by its definition, for any part; circuits are built by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from test_activations import PLUGINS, first_case, ids, model_of
from torch import Tensor

from gptlab import ModelConfig, register, registry
from gptlab.activations import record
from gptlab.components.attention import Attention, trait
from gptlab.components.mlp.router import Route
from gptlab.components.position.rotary import Rotary
from gptlab.errors import ConfigError
from gptlab.inside import attribution, embeddings, experts, heads, lens, losses, maps, patching, rope, stability
from gptlab.model import GPT

V, T = 8, 16  # of the circuit: tokens, places
TOKEN, PLACE, BEFORE, SAID = 0, V, V + T, V + T + V  # where the stream holds them
SHARP = 100.0


def circuit(layers: tuple[str, ...] = ("previous", "induction"), attention: str = "vanilla") -> GPT:
    """Attention alone, each layer of two heads; its weights are written by hand.

    `previous`: head 0 copies the token before into the stream; head 1 looks at all alike. `induction`: head 0 looks at
    the same token, itself included; head 1 at the token whose previous one is this one, and says it.
    """
    config = ModelConfig(
        vocab_size=V, block_size=T, n_layer=len(layers), n_head=2, n_embd=SAID + V, position="learned", norm="none",
        mlp="none", attention={"name": attention, "head_size": T},
    )  # fmt: skip
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        token, place = torch.eye(V), torch.eye(T)
        model.token_embedding.weight[:, TOKEN : TOKEN + V] = token
        model.position.table.weight[:, PLACE : PLACE + T] = place
        model.head.weight[:, SAID:] = 10 * token
        for kind, mixer in zip(layers, model.attentions, strict=True):
            if kind == "previous":
                mixer.q.weight[: T - 1, PLACE + 1 : PLACE + T] = SHARP * place[1:, 1:]
                mixer.k.weight[:T, PLACE : PLACE + T] = place
                mixer.v.weight[:V, TOKEN : TOKEN + V] = token
                mixer.proj.weight[BEFORE : BEFORE + V, :V] = token
            else:
                for head, matched in ((0, TOKEN), (1, BEFORE)):
                    mixer.q.weight[T * head : T * head + V, TOKEN : TOKEN + V] = SHARP * token
                    mixer.k.weight[T * head : T * head + V, matched : matched + V] = token
                mixer.v.weight[T : T + V, TOKEN : TOKEN + V] = token
                mixer.proj.weight[SAID:, T : T + V] = token
    return model


def built(slot: str, name: str, **changes: Any) -> tuple[GPT, Tensor]:
    """A model in float64 around a variant, every parameter random, and tokens."""
    case = first_case(slot, name)
    return case.model(**changes), case.tokens(10)


# Attention maps


@pytest.mark.parametrize("name", registry.names("attention"))
def test_rows_of_maps_sum_to_1_and_see_no_future(name: str) -> None:
    model, tokens = built("attention", name)
    found = maps.maps(model, tokens)
    assert [each.layer for each in found] == [i for i, a in enumerate(model.attentions) if not trait(a, "absent")]
    for _, weights, _ in found:
        assert weights.shape[0] == 2
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        if not model.reads_memory:  # else the map is of another sequence
            assert weights.shape[-2:] == (10, 10)
            assert not weights.triu(1).any()


def test_what_goes_to_a_sink_is_missing_from_a_row() -> None:
    model = model_of(attention={"name": "vanilla", "sinks": True})
    with torch.no_grad():
        model.attentions[0].sinks.fill_(3.0)
    (first, _) = maps.maps(model, ids())
    assert (first.weights.sum(-1) < 0.99).all()


def test_a_map_says_whether_it_is_of_a_softmax() -> None:
    kinds = {"flash": True, "latent": True, "differential": True, "cope": True, "linear": False, "mamba2": False}
    for name, kind in kinds.items():
        assert [each.by_softmax for each in maps.maps(*built("attention", name))] == [kind, kind]


def test_influence_is_the_share_of_the_derivative() -> None:
    class Mixer(Attention):
        """A plugin's mixer: three times what is here, and what was before."""

        def __init__(self, shape: Any, position: Any) -> None:
            super().__init__(shape, position)

        def forward(self, x: Tensor, context: Any, cache: Any = None) -> Tensor:
            return 3 * x + nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]

    register("attention", "blend")(Mixer)
    (found, _) = maps.maps(model_of(attention="blend", position="none"), ids(5))
    wanted = 0.75 * torch.eye(5) + 0.25 * torch.eye(5).roll(-1, 1).tril()
    wanted[0] = torch.eye(5)[0]
    torch.testing.assert_close(found.weights, wanted.expand(2, 1, 5, 5))
    assert not found.by_softmax


def test_influence_of_a_softmax_is_where_its_weights_are() -> None:
    model = circuit()
    tokens = heads.repeated(model, 1, 0)
    felt = maps.influence(model, tokens, [0])[0]
    previous = maps.maps(model, tokens)[0].weights[:, :1]
    assert felt[0, 0].argmax(-1).tolist() == previous[0, 0].argmax(-1).tolist()


# Logit lens

BLOCKS = [*(("block", name) for name in registry.names("block")), *(("norm", name) for name in registry.names("norm"))]


@pytest.mark.parametrize("slot, name", BLOCKS)
def test_the_lens_at_the_last_layer_is_the_logits(slot: str, name: str) -> None:
    model, tokens = built(slot, name, logit_scale=0.5, logit_softcap=3.0)
    found = lens.lens(model, tokens)
    with torch.no_grad():
        assert torch.equal(found.logits[-1], model(tokens))
    assert len(found.rows) == len(found.logits) == 3
    assert not found.surprise[-1].any()
    assert (found.surprise[0] > 0).all()


def test_the_lens_of_the_circuit_knows_the_answer_after_its_last_layer_alone() -> None:
    model = circuit()
    tokens = heads.repeated(model, 1, 0)
    said = lens.lens(model, tokens).logits[:, 0, V + 1 : -1].argmax(-1)
    right = tokens[0, V + 2 :]
    assert [(row == right).all().item() for row in said] == [False, False, True]


# Direct logit attribution


@pytest.mark.parametrize("slot, name", [*BLOCKS, *(("attention", n) for n in registry.names("attention"))])
def test_pieces_sum_to_the_stream_and_what_they_give_to_the_logit(slot: str, name: str) -> None:
    model, tokens = built(slot, name, head_bias=True, logit_scale=0.5, embedding_size=24)
    targets = tokens.roll(-1, 1)
    with torch.no_grad(), record(model, [f"blocks.{len(model.blocks) - 1}.out"]) as seen:
        logits = model(tokens)
    at = logits.gather(-1, targets[..., None])[..., 0]
    for against, other in ((None, logits.mean(-1)), (tokens, logits.gather(-1, tokens[..., None])[..., 0])):
        found = attribution.attribute(model, tokens, targets, against)
        torch.testing.assert_close(found.pieces.sum(0), next(iter(seen.values())))
        torch.testing.assert_close(found.given.sum(0) + found.rest, at - other)


def test_a_block_that_adds_is_taken_apart_and_one_that_does_not_is_whole() -> None:
    named = {
        "prenorm": ["embedding", "0 head 0", "0 head 1", "0 head 2", "0 head 3", "0 mlp"],
        "parallel": ["embedding", "0 head 0", "0 head 1", "0 head 2", "0 head 3", "0 mlp"],
        "sandwich": ["embedding", "0 attention", "0 mlp"],
        "postnorm": ["embedding", "0 block"],
        "hyper": ["embedding", "0 block"],
    }
    for block, names in named.items():
        assert list(attribution.pieces_of(model_of(n_layer=1, block=block), ids())) == names
    gained = model_of(n_layer=1, block={"name": "prenorm", "gain": "channel", "scale": 0.3}, bias=True, mlp="none")
    assert list(attribution.pieces_of(gained, ids())) == ["embedding", *(f"0 head {h}" for h in range(4)), "0 bias"]
    heads_of = {"differential": ["0 head 0", "0 head 1"], "conv": ["0 attention"]}
    for attention, names in heads_of.items():
        model = model_of(n_layer=1, attention=attention, mlp="none", position="none")
        assert list(attribution.pieces_of(model, ids())) == ["embedding", *names]


def test_pieces_that_cancel_each_other_still_give_what_they_give() -> None:
    norm = registry.build("norm", "rmsnorm", 4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    stream = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]], dtype=torch.float64)
    held, added = attribution._hold(norm, stream)
    scales = norm.weight.detach().double() / math.sqrt(14 / 4 + norm.eps)
    torch.testing.assert_close(held(torch.ones_like(stream))[0, 0], scales)
    assert not added.any()


def test_a_head_is_what_is_lost_without_it() -> None:
    model = model_of(n_layer=1, mlp="none", norm="none", attention={"name": "flash", "n_kv_head": 2})
    found = attribution.pieces_of(model, ids())
    with torch.no_grad(), record(model, "blocks.0.out") as seen:
        model(ids())
        whole = seen["blocks.0.out"]
        model.attentions[0].proj.weight[:, 16:24] = 0
        model(ids())
    torch.testing.assert_close(found["0 head 2"].float(), whole - seen["blocks.0.out"], atol=1e-5, rtol=1e-4)


def test_attribution_names_the_induction_head_of_the_circuit() -> None:
    model = circuit()
    tokens = heads.repeated(model, 2, 0)
    found = attribution.attribute(model, tokens, tokens.roll(-1, 1))
    given = dict(zip(found.names, found.given[:, :, V + 1 : -1], strict=True))
    torch.testing.assert_close(given.pop("1 head 1"), torch.full((2, V - 2), 10 - 10 / V, dtype=torch.float64))
    assert all(not piece.any() for piece in given.values())


# Activation patching


@pytest.mark.parametrize("name", registry.names("attention"))
@pytest.mark.parametrize("point", ["out", "attention.out", "mlp.hidden"])
def test_clean_into_clean_moves_nothing_at_all(name: str, point: str) -> None:
    model, tokens = built("attention", name, dtype=torch.float32)
    found = patching.patch(model, tokens[0], tokens[0], 3, 5, point)
    assert found.moved.shape == (2 + (point == "out"), 10)
    assert not found.moved.any()
    with pytest.raises(ConfigError, match="equally likely"):
        _ = found.restored


@pytest.mark.parametrize("name", registry.names("block"))
def test_all_comes_back_at_the_last_place_after_the_last_layer(name: str) -> None:
    model, tokens = built("block", name)
    found = patching.patch(model, tokens[0], tokens[1], 3, 5)
    torch.testing.assert_close(found.restored[-1, -1].item(), 1.0)
    assert not found.moved[-1, :-1].any()


def test_the_first_difference_decides_at_the_embedding() -> None:
    model, tokens = built("attention", "flash")
    corrupted = tokens[0].clone()
    corrupted[4] = (corrupted[4] + 1) % 29
    found = patching.patch(model, tokens[0], corrupted, 3, 5)
    torch.testing.assert_close(found.restored[0], torch.eye(10, dtype=torch.float64)[4], atol=1e-9, rtol=0)


def test_patching_shows_how_the_circuit_moves_what_it_knows() -> None:
    """2 5 1 2 -> 5, and 2 6 1 2 -> 6: the second token decides, until the last layer takes what it is to the end."""
    found = patching.patch(circuit(), torch.tensor([2, 5, 1, 2]), torch.tensor([2, 6, 1, 2]), 5, 6)
    second, last = torch.eye(4)[1], torch.eye(4)[3]
    torch.testing.assert_close(found.restored, torch.stack((second, second, last)), atol=1e-4, rtol=0)
    assert found.clean > 4
    assert found.corrupted < -4


def test_texts_of_different_lengths_and_points_without_places_are_refused() -> None:
    model = circuit()
    for clean, point in ((torch.tensor([1, 2, 3]), "out"), (torch.tensor([1, 2]), "attention.q")):
        with pytest.raises(ConfigError) as refused:
            patching.patch(model, clean, torch.tensor([1, 2]), 0, 1, point)
        assert "\n" not in str(refused.value)


def test_texts_that_would_take_all_memory_or_all_day_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "LONGEST", 3)
    monkeypatch.setattr(maps, "LONGEST", 3)
    model, linear = circuit(), GPT(ModelConfig(vocab_size=9, block_size=8, attention="linear"))
    four = torch.tensor([1, 2, 3, 4])
    with pytest.raises(ConfigError, match="so 3 are the most, not 4: cut it"):
        patching.patch(model, four, four, 0, 1)
    with pytest.raises(ConfigError, match="of 3 at most, but this text has 4: cut it"):
        maps.maps(linear, four[None])
    assert maps.maps(model, four[None])  # weights of a softmax are had at once
    assert maps.maps(linear, four[None, :3])


# Head detectors


@pytest.mark.parametrize("attention", ["vanilla", "flash", "flex"])
def test_heads_are_found_in_the_circuit_that_has_them(attention: str) -> None:
    model = circuit(attention=attention)
    found = {(head.layer, head.head): head for head in heads.detect(model)}
    assert {place: head.does for place, head in found.items()} == {
        (0, 0): ["previous"], (0, 1): [], (1, 0): ["duplicate"], (1, 1): ["induction"],
    }  # fmt: skip
    assert found[0, 0].previous > 0.999
    assert found[1, 1].induction > 0.9
    tokens = heads.repeated(model, 3, 1)
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, V + 1 : -1].argmax(-1), tokens[:, V + 2 :])


@pytest.mark.parametrize("layers", [("previous",), ("induction",), ("induction", "previous")])
def test_no_layer_alone_has_an_induction_head_nor_have_both_the_wrong_way_round(layers: tuple[str, ...]) -> None:
    assert not any("induction" in head.does for head in heads.detect(circuit(layers)))


def test_random_models_do_nothing_that_is_found() -> None:
    assert not [head for head in heads.detect(GPT(ModelConfig(vocab_size=50))) if head.does]


def test_tokens_come_twice_without_the_one_that_ends_documents() -> None:
    model = GPT(ModelConfig(vocab_size=9, block_size=64, document_mask=True, separator=4))
    tokens = heads.repeated(model, 5, 0)
    assert tokens.shape == (5, 16)
    assert torch.equal(tokens[:, :8], tokens[:, 8:])
    assert all(sorted(row) == [0, 1, 2, 3, 5, 6, 7, 8] for row in tokens[:, :8].tolist())
    prefix = {"attention": {"name": "softmax", "causal": "prefix"}, "position": "rope", "source_end": 4}
    sourceless = heads.repeated(GPT(ModelConfig(vocab_size=9, block_size=64, **prefix)), 5, 0)
    assert torch.equal(sourceless, tokens)  # nor the one that ends a source
    with pytest.raises(ConfigError, match="2 tokens or more"):
        heads.detect(GPT(ModelConfig(vocab_size=9, block_size=2)))


# Losses, token by token


def test_losses_by_position_average_to_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of(), ids(16, 6)
    targets = tokens.roll(-1, 1)
    targets[:, :3] = -100
    found = losses.by_position(model, tokens, targets)
    assert found.mean[:3].isnan().all()
    with torch.no_grad():
        total = model.loss(tokens, targets)[0]
    torch.testing.assert_close(found.mean[3:].mean() * 13 * 6, total.double(), atol=1e-3, rtol=1e-5)
    pairs = zip(tokens.split(1), targets.split(1), strict=True)
    each = torch.cat([losses.token_losses(model, *pair) for pair in pairs])
    torch.testing.assert_close(found.error[3:], each[:, 3:].std(0) / math.sqrt(6))
    monkeypatch.setattr(losses, "HELD", 16 * 11 * 4)  # four rows at a time
    torch.testing.assert_close(losses.by_position(model, tokens, targets).mean, found.mean, equal_nan=True)


def test_a_model_does_not_differ_from_itself_and_two_differ_by_their_losses() -> None:
    model, other, tokens = model_of(), model_of(mlp="none"), ids()
    targets = tokens.roll(-1, 1)
    assert not losses.difference(model, model, tokens, targets).any()
    with torch.no_grad():
        apart = other.loss(tokens, targets)[0] - model.loss(tokens, targets)[0]
    torch.testing.assert_close(
        losses.difference(model, other, tokens, targets).sum().float(), apart, atol=1e-3, rtol=1e-4
    )


# Embeddings, rotary encodings, stability


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    model = model_of(vocab_size=40)
    found = embeddings.components(model)
    table = model.token_embedding.weight.detach().double()
    u, s, _ = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    torch.testing.assert_close(found.places.abs(), (u * s)[:, :2].abs())
    torch.testing.assert_close(found.shares, s[:2].square() / s.square().sum())


def test_the_neighbour_of_a_copy_is_its_original() -> None:
    model = model_of(vocab_size=40)
    with torch.no_grad():
        model.token_embedding.weight[7] = 3 * model.token_embedding.weight[21]
    found = embeddings.neighbours(model, torch.tensor([7, 21, 3]), k=4)
    assert found.ids[:2, 0].tolist() == [21, 7]
    torch.testing.assert_close(found.cosines[:2, 0], torch.ones(2, dtype=torch.float64))
    assert (found.cosines.diff(dim=1) <= 0).all()
    assert 3 not in found.ids[2]


ROTARY = [name for name in registry.names("position") if issubclass(registry.get("position", name), Rotary)]


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("attention", ["flash", "latent"])
def test_after_its_wavelength_a_pair_is_where_it_was(name: str, attention: str) -> None:
    config = dataclasses.replace(first_case("position", name).config, attention=attention)
    model = GPT(config)
    (found,) = rope.wavelengths(model)
    assert (found.position, found.layers) == (name, [0, 1])
    ones = torch.ones(3, 1, 1, 2 * len(found.lengths))
    for pair, length in enumerate(found.lengths):
        places = torch.stack((torch.zeros(()), length, length / 4))[:, None]
        at = model.position.rotate(ones, ones, places)[0].unflatten(-1, (2, -1))[:, 0, 0, :, pair]
        start, end, quarter = torch.atan2(at[:, 1], at[:, 0])
        torch.testing.assert_close(end, start, atol=1e-3, rtol=0)
        torch.testing.assert_close(quarter, start + math.pi / 2, atol=1e-3, rtol=0)


def test_rope_is_two_pi_theta_to_the_2i_over_r_and_looks_at_what_turns() -> None:
    (found,) = rope.wavelengths(model_of(position={"name": "rope", "theta": 100.0, "fraction": 0.5}))
    torch.testing.assert_close(found.lengths, 2 * math.pi * 100.0 ** torch.tensor([0.0, 0.5]))
    mixed = model_of(layers=[{"at": 1, "position": {"name": "rope", "theta": 9.0}}])
    assert [each.layers for each in rope.wavelengths(mixed)] == [[0], [1]]
    with pytest.raises(ConfigError, match="Position 'alibi' is no rotary"):
        rope.wavelengths(model_of(position="alibi"))


def test_stability_is_the_root_mean_square_and_the_largest_score() -> None:
    model = model_of(layers=[{"at": 1, "attention": {"name": "linear"}}], attention="flash")
    tokens = ids(16, 6)
    found = stability.stability(model, tokens)
    with torch.no_grad(), record(model, ["embedding", "blocks.*.out", "blocks.0.attention.?"]) as seen:
        model(tokens)
    wanted = [seen[row].double().pow(2).mean().sqrt() for row in ("embedding", "blocks.0.out", "blocks.1.out")]
    torch.testing.assert_close(found.rms, torch.stack(wanted))
    assert list(found.largest) == [0]
    q, k = seen["blocks.0.attention.q"], seen["blocks.0.attention.k"]
    scores = [
        [float(q[b, h, i] @ k[b, h, j]) for b in range(6) for i in range(16) for j in range(i + 1)] for h in range(4)
    ]
    torch.testing.assert_close(found.largest[0], torch.tensor([max(each) / math.sqrt(8) for each in scores]))


# Expert load

MIXTURES: dict[str, dict[str, Any]] = {
    "softmax": {"n_expert": 5},
    "weights_that_do_not_sum_to_1": {"n_expert": 4, "top_k": 1, "renormalise": False, "balance": "none"},
    "groups": {"n_expert": 8, "top_k": 3, "router": "sigmoid", "n_group": 4, "top_group": 2, "n_shared": 1},
    "bias": {"n_expert": 6, "balance": "bias", "router": "sigmoid", "scale": 2.5, "router_bias": True},
}


@pytest.mark.parametrize("which", MIXTURES)
def test_loads_are_those_that_a_loop_over_tokens_counts(which: str) -> None:
    model = model_of(mlp={"name": "moe", **MIXTURES[which]}, layers=[{"at": 0, "mlp": {"name": "glu"}}], n_layer=3)
    (first, second), tokens = experts.loads(model, ids(16, 5)), ids(16, 5)
    assert (first.layer, second.layer) == (1, 2)
    for layer, chosen, weights in (first, second):
        mlp = model.blocks[layer].mlp
        with torch.no_grad(), record(model, f"blocks.{layer}.mlp.in") as seen:
            model(tokens)
        counts, sums = torch.zeros(2, mlp.n_expert, dtype=torch.float64)
        for x in seen[f"blocks.{layer}.mlp.in"].flatten(0, 1):
            route = mlp.router(x[None])
            for expert, weight in zip(route.chosen[0].tolist(), route.weights[0].tolist(), strict=True):
                counts[expert] += 1
                sums[expert] += weight
        assert counts.sum() == 80 * mlp.top_k
        torch.testing.assert_close(chosen, counts / counts.sum())
        torch.testing.assert_close(weights, sums / sums.sum())
        for shares in (chosen, weights):
            torch.testing.assert_close(shares.sum().item(), 1.0)


def test_a_router_that_sends_all_to_one_expert_shows_1_there() -> None:
    mlp = {"name": "moe", "n_expert": 4, "top_k": 1, "renormalise": False, "router_bias": True}
    model = model_of(mlp=mlp, n_layer=1)
    with torch.no_grad():
        model.blocks[0].mlp.router.linear.bias[2] = 1e4
    ((_, chosen, weights),) = experts.loads(model, ids())
    assert chosen.tolist() == weights.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_model_without_a_router_has_no_loads_and_one_that_chooses_otherwise_is_left_alone() -> None:
    assert experts.loads(model_of(), ids()) == []
    register("mlp", "gated_by_router")(GatedByRouter)
    model = model_of(mlp="gated_by_router")
    assert experts.loads(model, ids()) == []
    with torch.no_grad(), record(model):
        watched = model(ids())
    assert torch.equal(watched, model(ids()))


def test_a_plugin_s_mlp_whose_router_gives_a_route_is_shown() -> None:
    register("mlp", "by_parity")(ByParity)
    model = model_of(mlp="by_parity")
    for _, chosen, weights in experts.loads(model, ids()):
        torch.testing.assert_close(chosen, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
        torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64))


class Parity(nn.Module):
    """A plugin's router: places take turns between the first two of three experts."""

    def forward(self, x: Tensor) -> Route:
        turn = (torch.arange(x.shape[1]) % 2).expand(x.shape[:2])[..., None]
        return Route(x.new_ones(*x.shape[:2], 3), turn, 1 + 2 * turn.to(x.dtype))


class ByParity(nn.Module):
    """A plugin's mixture, of experts that only scale."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.router = Parity()

    def forward(self, x: Tensor) -> Tensor:
        route = self.router(x)
        return x * (route.chosen * route.weights)


class GatedByRouter(nn.Module):
    """A plugin's MLP with a `router` that is a plain layer."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.router = nn.Linear(shape.n_embd, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.router(x).sigmoid()


# A plugin's attention


@pytest.mark.parametrize("name", PLUGINS)
def test_every_view_takes_a_plugin_that_knows_nothing_of_it(name: str) -> None:
    register("attention", name)(PLUGINS[name])
    model = model_of(attention=name, position="learned")
    tokens = ids()
    assert all(each.by_softmax for each in maps.maps(model, tokens))
    assert torch.equal(lens.lens(model, tokens).logits[-1], model(tokens))
    found = attribution.attribute(model, tokens, tokens.roll(-1, 1))
    assert "0 head 3" in found.names
    assert not patching.patch(model, tokens[0], tokens[0], 0, 1).moved.any()
    assert len(heads.detect(model)) == (2 if name == "single" else 8)
    assert set(stability.stability(model, tokens).largest) == {0, 1}
