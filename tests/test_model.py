"""GPT as a whole: sizes, initial values, per-layer overrides, weights in and out, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptlab import GPT, ModelConfig
from gptlab.components.attention.softmax import SoftmaxAttention
from gptlab.components.context import Context, Replay
from gptlab.errors import ConfigError

SMALL: dict[str, Any] = {"vocab_size": 11, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}
GPT2: dict[str, Any] = {
    "vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "bias": True,
    "tie_weights": True,
    "attention": "flash", "position": "learned", "norm": "layernorm",
    "mlp": {"name": "plain", "activation": "gelu_tanh"},
}  # fmt: skip


def small(**changes: Any) -> GPT:
    return GPT(ModelConfig(**{**SMALL, **changes}))


def tokens(n_rows: int = 2, n_tokens: int = 16) -> torch.Tensor:
    return torch.randint(11, (n_rows, n_tokens), generator=torch.Generator().manual_seed(0))


# sizes


def test_gpt2_has_exactly_the_parameters_of_gpt2() -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(**GPT2))
    assert model.n_parameters() == 124_439_808


def test_the_preset_is_the_shape_tested_here() -> None:
    preset = yaml.safe_load((Path(__file__).parent.parent / "conf" / "model" / "gpt2.yaml").read_text())
    assert {key: preset[key] for key in ("block_size", "n_layer", "n_head", "n_embd", "bias", "tie_weights")} == {
        key: GPT2[key] for key in ("block_size", "n_layer", "n_head", "n_embd", "bias", "tie_weights")
    }


def test_a_small_gpt2_computes_what_transformers_computes() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32}
    config = transformers.GPT2Config(vocab_size=29, n_positions=24, **sizes)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    ours = GPT(ModelConfig(**{**GPT2, **sizes, "vocab_size": 29, "block_size": 24})).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(_from_transformers(theirs.state_dict(), name))
        ids = torch.randint(29, (2, 24), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-9)
    assert ours.n_parameters() == sum(p.numel() for p in theirs.parameters())


def _from_transformers(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Our parameter from GPT-2's state dict: Conv1D holds its weights transposed, q, k and v in one."""
    whole = {"token_embedding.weight": "wte.weight", "position.table.weight": "wpe.weight"}
    whole |= {"norm.weight": "ln_f.weight", "norm.bias": "ln_f.bias"}
    if name in whole:
        return state[f"transformer.{whole[name]}"]
    _, layer, part, *rest = name.split(".")
    base, kind = f"transformer.h.{layer}", rest[-1]
    if part.endswith("norms"):
        return state[f"{base}.{'ln_1' if part == 'attention_norms' else 'ln_2'}.{kind}"]
    if rest[0] in "qkv":
        return state[f"{base}.attn.c_attn.{kind}"].chunk(3, -1)["qkv".index(rest[0])].t()
    place = {"attention": "attn.c_proj", "mlp": "mlp.c_fc" if rest[0] == "up" else "mlp.c_proj"}[part]
    return state[f"{base}.{place}.{kind}"].t()


def test_no_layers_is_a_bigram_table() -> None:
    model = small(n_layer=0, position="none").eval()
    assert {name for name, _ in model.named_parameters()} == {"token_embedding.weight", "head.weight"}
    table = model.head(model.token_embedding.weight)
    torch.testing.assert_close(model(tokens()), table[tokens()])


def test_the_stream_is_normalized_before_the_head_once() -> None:
    for block, n_norms in (("prenorm", 3), ("postnorm", 2), ("sandwich", 5), ("parallel", 2)):
        model = small(n_layer=1, block=block)
        gains = [name for name, _ in model.named_parameters() if "norm" in name]
        assert len(gains) == n_norms
        assert ("norm.weight" in gains) == (block != "postnorm")  # whose last sublayer ends with a norm


def test_a_bigram_model_converges_to_the_counted_bigram() -> None:
    text = torch.randint(4, (400,), generator=torch.Generator().manual_seed(1))
    text[1::2] = (text[::2] + 1) % 4  # a text with something to learn
    pairs = torch.stack((text[:-1], text[1:]))
    counts = torch.zeros(4, 4).index_put(tuple(pairs), torch.ones(399), accumulate=True)
    counted = -(counts * (counts / counts.sum(1, keepdim=True)).clamp(min=1e-9).log()).sum() / 399
    model = GPT(ModelConfig(vocab_size=4, n_layer=0, n_embd=8, n_head=1, position="none"))
    descent = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        loss = model.loss(text[None, :-1], text[None, 1:])[0] / 399
        loss.backward()
        return loss

    descent.step(closure)
    assert closure().item() == pytest.approx(counted.item(), abs=1e-3)


# the loss


def test_targets_of_minus_100_are_no_part_of_the_loss() -> None:
    model, ids = small().eval(), tokens()
    targets = ids.roll(-1, 1)
    targets[:, 8:] = -100
    by_hand = -model(ids).log_softmax(-1).gather(-1, ids.roll(-1, 1)[..., None])[:, :8].sum()
    torch.testing.assert_close(model.loss(ids, targets)[0], by_hand)


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    total = GPT(ModelConfig(vocab_size=65, n_layer=4)).loss(tokens(8, 64), tokens(8, 64).roll(-1, 1))[0]
    assert total.item() / (8 * 64) == pytest.approx(math.log(65), abs=0.1)


# initial values


def test_a_tensors_initial_value_depends_on_seed_and_name_alone() -> None:
    plain, other = small(), small(mlp="glu", n_layer=3, norm="layernorm", vocab_size=12)
    for name, tensor in plain.tensors().items():
        if ".attention." in name:
            assert torch.equal(tensor, other.tensors()[name]), name
    deeper, again = small(n_layer=4), small()
    assert torch.equal(plain.blocks[2].attention.q.weight, deeper.blocks[2].attention.q.weight)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert not torch.equal(plain.blocks[0].attention.q.weight, plain.blocks[1].attention.q.weight)
    assert not torch.equal(plain.head.weight, GPT(ModelConfig(**SMALL), seed=1).head.weight)


def test_what_writes_to_the_residual_stream_starts_smaller_by_the_root_of_twice_the_depth() -> None:
    model = small(n_layer=8, n_embd=256, n_head=4, bias=True)
    for block in model.blocks:
        for part, wide in ((block.attention, block.attention.q), (block.mlp, block.mlp.up)):
            assert wide.weight.detach().std() == pytest.approx(0.02, rel=0.03)
            assert part.proj.weight.detach().std() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)
            assert not part.proj.bias.any()
    assert model.token_embedding.weight.detach().std() == pytest.approx(0.02, rel=0.1)


def test_building_leaves_the_global_generator_where_it_was() -> None:
    before = torch.get_rng_state()
    small()
    assert torch.equal(before, torch.get_rng_state())


# weights in and out


def test_tied_weights_are_one_tensor_once() -> None:
    tied, untied = small(tie_weights=True), small()
    assert tied.head.weight is tied.token_embedding.weight
    assert "head.weight" not in tied.tensors()
    assert "head.weight" in untied.tensors()
    assert untied.n_parameters() - tied.n_parameters() == 11 * 16
    other = GPT(ModelConfig(**SMALL, tie_weights=True), seed=5)
    other.load_tensors(tied.tensors())
    assert torch.equal(other(tokens()), tied(tokens()))
    assert other.head.weight is other.token_embedding.weight


def test_a_shared_position_is_one_tensor_once() -> None:
    names = [name for name in small(position="learned").tensors() if "table" in name]
    assert names == ["position.table.weight"]


@pytest.mark.parametrize("changes", [{"n_layer": 2}, {"n_embd": 32}, {"mlp": "glu"}])
def test_weights_of_another_model_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not fit") as refused:
        small().load_tensors(small(**changes).tensors())
    assert "\n" not in str(refused.value)


# per-layer overrides


@pytest.mark.parametrize(
    ("at", "windowed"),
    [("0", [0]), (0, [0]), (-1, [2]), ("-1", [2]), ("-3", [0]), ("1::2", [1]), ("::2", [0, 2]), (":", [0, 1, 2])],
)
def test_a_rule_changes_the_layers_that_its_slice_picks(at: Any, windowed: list[int]) -> None:
    model = small(layers=[{"at": at, "attention": {"window": 4}}])
    attentions = [block.attention for block in model.blocks]
    assert all(isinstance(a, SoftmaxAttention) for a in attentions)
    assert [i for i, a in enumerate(attentions) if a.reach == 4] == windowed


def test_later_rules_win_and_options_add_up() -> None:
    first = {"at": ":", "attention": {"window": 4}}
    second = {"at": 1, "attention": {"window": 2, "n_kv_head": 1}}
    model = small(layers=[first, second, {"at": 2, "attention": "mean", "position": "none"}])
    assert [block.attention.reach for block in model.blocks] == [4, 2, None]
    assert model.blocks[1].attention.n_kv_head == 1
    assert type(model.blocks[2].attention).__name__ == "Mean"


def test_a_layer_may_have_a_position_of_its_own() -> None:
    mixed, plain = small(layers=[{"at": 1, "position": "none"}]), small()
    assert mixed.blocks[1].attention.position.acts == frozenset()
    assert mixed.blocks[0].attention.position is mixed.position
    assert not torch.equal(mixed(tokens()), plain(tokens()))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"attention": "mean"}, 'must be like {at: "1::2"'),
        ({"at": 0}, "changes nothing"),
        ({"at": 3, "mlp": "none"}, "picks none of the 3 layers"),
        ({"at": -4, "mlp": "none"}, "picks none of the 3 layers"),
        ({"at": "5:", "mlp": "none"}, "picks none of the 3 layers"),
        ({"at": "two", "mlp": "none"}, "must be a Python index or slice"),
        ({"at": "::0", "mlp": "none"}, "must be a Python index or slice"),
        ({"at": "0:1:1:1", "mlp": "none"}, "must be a Python index or slice"),
        ({"at": 0, "atention": "mean"}, "Did you mean 'attention'?"),
        ({"at": 0, "attention": {"windw": 3}}, "Did you mean 'window'?"),
        ({"at": 0, "position": "learned"}, "belongs to the whole model"),
        ("1::2", 'must be like {at: "1::2"'),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(rule: Any, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small(layers=[rule])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_head": 5}, "n_head must divide n_embd, but 5 does not divide 16"),
        ({"n_head": 0}, "model.n_head must be at least 1"),
        ({"n_layer": -1}, "0 is a bigram model"),
        ({"dropout": 1.0}, "is a probability"),
        ({"init_std": 0.0}, "model.init_std must be above 0"),
        ({"vocab_size": None}, "a tokenizer sets it"),
        ({"attention": "flsh"}, "Did you mean 'flash'?"),
        ({"norm": {"name": "rmsnorm", "epps": 1}}, "Did you mean 'eps'?"),
        ({"attention": {"name": "flash", "window": "abc"}}, "model.attention.window must be a whole number or null"),
        ({"mlp": {"expand": 4}}, "must be a name, or a mapping with a name"),
        ({"position": "sinusoidal", "n_embd": 15, "n_head": 1}, "must be even, but is 15"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small(**changes)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_learned_position_ends_at_block_size_and_says_so() -> None:
    model = small(position="learned").eval()
    with pytest.raises(ConfigError, match="knows 16 positions, but token 17 was asked for"):
        model(tokens(1, 17))
    cache = model.new_cache(1, 16)
    model(tokens(1, 16), cache)
    with pytest.raises(ConfigError, match="token 17"):
        model(tokens(1, 1), cache)


def test_other_positions_go_on_past_block_size() -> None:
    for position in ("rope", "alibi", "sinusoidal", "none"):
        assert small(position=position)(tokens(1, 40)).shape == (1, 40, 11)


def test_a_replay_holds_no_more_than_it_was_asked_to() -> None:
    seen = []

    def attention(x: torch.Tensor, context: Context) -> torch.Tensor:
        seen.append(x.shape[1])
        assert context.positions.shape[1] == x.shape[1]
        return x

    replay = Replay(max_len=4)
    for start, n_new in ((0, 3), (3, 1), (4, 1), (5, 2)):
        x = torch.arange(start, start + n_new, dtype=torch.float32)[None, :, None]
        context = Context(positions=torch.arange(start, start + n_new)[None])
        assert torch.equal(replay.run(attention, x, context), x)
    assert seen == [3, 4, 4, 4]


def test_a_replay_of_what_layers_share_is_refused() -> None:
    model = small(n_layer=2, attention={"name": "vanilla", "value_residual": True})
    model.attentions[1].new_cache = lambda batch_size, max_len: Replay(max_len)
    cache = model.new_cache(1, 8)
    with pytest.raises(ConfigError, match="cannot replay what other layers share: write new_cache"), torch.no_grad():
        model(tokens(1, 4), cache)


def test_a_running_mean_decodes_in_bf16_as_well_as_it_trains() -> None:
    model = GPT(ModelConfig(vocab_size=11, n_embd=32, attention="mean", position="none", block_size=1500)).eval()
    tokens = torch.randint(11, (1, 1500), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(1, 1500)
    with torch.no_grad():
        exact = model(tokens)[:, -1]
        with torch.autocast("cpu", torch.bfloat16):
            at_once = model(tokens)[:, -1]
            for piece in tokens.split(1, dim=1):
                one_by_one = model(piece, cache)[:, -1]
    assert (one_by_one - exact).abs().max() <= 3 * (at_once - exact).abs().max() + 1e-3
