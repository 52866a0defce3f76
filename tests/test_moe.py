"""The mixture of experts against a loop over tokens, and against the models that use it in transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gptlab.components  # noqa: F401  (registers the variants)
from gptlab import ModelConfig, registry
from gptlab.components.context import Context
from gptlab.components.mlp.grouped import grouped_outer, grouped_product, groups_of, outer_by_loop, product_by_loop
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.model import GPT

B, T, C, F, E = 2, 13, 32, 24, 8
SHAPE = Shape(n_embd=C, n_head=4, block_size=T)
DEEPSEEK = {
    "router": "sigmoid", "scale": 2.5, "n_group": 4, "top_group": 2, "top_k": 3, "n_shared": 2, "balance": "bias",
}  # fmt: skip
GPT_OSS = {"activation": "quick_gelu", "limit": 1.0, "offset": 1.0, "bias": True, "router_bias": True, "top_k": 4}
QWEN = {"renormalise": False, "n_shared": 2, "shared_gate": True}

pytestmark = pytest.mark.usefixtures("float64")


def moe_of(**options: Any) -> Any:
    """A mixture with random parameters and a random bias of choice, zeros and ones included."""
    built = registry.build("mlp", {"name": "moe", "n_expert": E, "expand": F / C, **options}, SHAPE)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    if options.get("balance") == "bias":
        nn.init.normal_(built.router.balance.bias, std=0.3)
    return built.eval()


def context() -> Context:
    return Context(positions=torch.arange(T)[None])


def close(a: Tensor, b: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def by_loop(moe: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
    """One token at a time, experts chosen by sorting Python lists."""
    rows = [routed(moe, token, options) + shared(moe, token, options) for token in x.flatten(0, 1)]
    return torch.stack(rows).view_as(x).detach()


def routed(moe: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
    linear, top_k = moe.router.linear, options.get("top_k", 2)
    logits = linear.weight @ x + (linear.bias if linear.bias is not None else 0)
    scores = sigmoid(logits) if options.get("router") == "sigmoid" else torch.exp(logits) / torch.exp(logits).sum()
    liked = (scores + moe.router.balance.bias if options.get("balance") == "bias" else scores).tolist()
    n_group = options.get("n_group", 1)
    groups = [list(range(g * E // n_group, (g + 1) * E // n_group)) for g in range(n_group)]
    groups.sort(key=lambda group: -sum(sorted(liked[e] for e in group)[-2:]))
    allowed = [e for group in groups[: options.get("top_group", 1)] for e in group]
    chosen = sorted(allowed, key=lambda e: -liked[e])[:top_k]
    weights = [scores[e] for e in chosen]
    if options.get("renormalise", True):
        weights = [w / sum(weights) for w in weights]
    total = sum(w * expert(moe, e, x, options) for w, e in zip(weights, chosen, strict=True))
    return options.get("scale", 1.0) * total


def expert(moe: Any, e: int, x: Tensor, options: dict[str, Any]) -> Tensor:
    def linear(layer: Any, x: Tensor) -> Tensor:
        return layer.weight[e] @ x + (layer.bias[e] if layer.bias is not None else 0)

    up, proj = moe.experts.branches["up"], moe.experts.proj
    if not options.get("gated", True):
        return linear(proj, torch.relu(linear(up, x)) ** 2)
    g, u = linear(moe.experts.branches["gate"], x), linear(up, x)
    limit, slope = options.get("limit", math.inf), 1.702 if options.get("activation") == "quick_gelu" else 1.0
    g, u = torch.minimum(g, torch.tensor(limit)), u.clamp(-limit, limit) + options.get("offset", 0.0)
    return linear(proj, g * sigmoid(slope * g) * u)


def shared(moe: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
    if not options.get("n_shared"):
        return torch.zeros_like(x)
    mlp = moe.shared.mlp if options.get("shared_gate") else moe.shared
    assert mlp.up.out_features == options["n_shared"] * F
    if not options.get("gated", True):
        return mlp.proj.weight @ torch.relu(mlp.up.weight @ x) ** 2
    g = mlp.gate.weight @ x
    out = mlp.proj.weight @ (g * sigmoid(g) * (mlp.up.weight @ x))
    return sigmoid(moe.shared.gate.weight @ x) * out if options.get("shared_gate") else out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1, "renormalise": False},
        {"top_k": E, "scale": 0.7},
        {"gated": False, "activation": "relu2", "bias": True},
        {"gated": False, "activation": "relu2", "n_shared": 1},
        {"router": "sigmoid", "renormalise": False},
        {"balance": "bias"},
        {"n_group": 2, "top_group": 1},
        DEEPSEEK,
        GPT_OSS,
        QWEN,
    ],
    ids=str,
)
def test_a_mixture_is_the_loop_over_tokens(options: dict[str, Any]) -> None:
    moe, x = moe_of(**options), torch.randn(B, T, C)
    close(moe(x, context()), by_loop(moe, x, options))


def test_gradients_are_those_of_all_experts_run_on_all_tokens() -> None:
    """Dense reference: every expert on every token, weights 0 where it was not chosen."""
    moe, x = moe_of(bias=True, top_k=3), torch.randn(B, T, C, requires_grad=True)
    experts, tokens = moe.experts, x.flatten(0, 1)
    scores, chosen, weights = moe.router(tokens)
    dense = torch.zeros_like(scores).scatter(-1, chosen, weights)
    g, u = (
        torch.einsum("nc,efc->enf", tokens, layer.weight) + layer.bias[:, None] for layer in experts.branches.values()
    )
    y = torch.einsum("enf,ecf->enc", nn.functional.silu(g) * u, experts.proj.weight) + experts.proj.bias[:, None]
    wanted = torch.einsum("ne,enc->nc", dense, y).view_as(x)
    got, weight = moe(x, context()), torch.randn(B, T, C)
    close(got, wanted)
    leaves = [x, *moe.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), leaves), torch.autograd.grad((wanted * weight).sum(), leaves),
        strict=True,
    ):  # fmt: skip
        close(a, b)


def theirs_of(config: Any, cls: Any) -> Any:
    config._experts_implementation = "eager"
    module = cls(config).float().eval()
    for tensor in (*module.parameters(), *module.buffers()):
        nn.init.normal_(tensor, std=0.3)
    return module


def take(moe: Any, theirs: Any, router: Any, transposed: bool = False) -> None:
    """Give ours the weights of theirs: gate and up stacked along F, or interleaved and transposed (gpt-oss)."""
    experts, ours = theirs.experts, moe.experts
    both, down = experts.gate_up_proj, experts.down_proj
    if transposed:
        both, down = both.mT, down.mT
    gate, up = (both[:, ::2], both[:, 1::2]) if transposed else both.chunk(2, dim=1)
    pairs = [(ours.branches["gate"].weight, gate), (ours.branches["up"].weight, up), (ours.proj.weight, down)]
    pairs.append((moe.router.linear.weight, router.weight))
    if transposed:
        gate_bias, up_bias = experts.gate_up_proj_bias[:, ::2], experts.gate_up_proj_bias[:, 1::2]
        pairs += [(ours.branches["gate"].bias, gate_bias), (ours.branches["up"].bias, up_bias)]
        pairs += [(ours.proj.bias, experts.down_proj_bias), (moe.router.linear.bias, router.bias)]
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other)


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def test_it_is_the_mixture_of_mixtral() -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

    config = MixtralConfig(hidden_size=C, intermediate_size=F, num_local_experts=E, num_experts_per_tok=2)
    theirs, moe, x = theirs_of(config, MixtralSparseMoeBlock), moe_of(balance_rate=0.02).float(), torch.randn(B, T, C)
    take(moe, theirs, theirs.gate)
    seen = context()
    assert relative(moe(x.float(), seen), theirs(x.float())) < 1e-5
    logits = theirs.gate(x.float())[0]
    close(seen.losses["balance"], 0.02 * load_balancing_loss_func((logits,), E, 2), 1e-6)


def test_it_is_the_mixture_of_qwen() -> None:
    from transformers import Qwen2MoeConfig, Qwen3MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    sizes = {"hidden_size": C, "num_experts": E, "num_experts_per_tok": 3, "moe_intermediate_size": F}
    x = torch.randn(B, T, C).float()
    for renormalise in (True, False):
        theirs = theirs_of(Qwen3MoeConfig(**sizes, norm_topk_prob=renormalise), Qwen3MoeSparseMoeBlock)
        moe = moe_of(top_k=3, renormalise=renormalise).float()
        take(moe, theirs, theirs.gate)
        out = theirs(x)
        assert relative(moe(x, context()), out[0] if isinstance(out, tuple) else out) < 1e-5
    theirs = theirs_of(Qwen2MoeConfig(**sizes, shared_expert_intermediate_size=2 * F), Qwen2MoeSparseMoeBlock)
    moe = moe_of(**QWEN, top_k=3).float()
    take(moe, theirs, theirs.gate)
    moe.shared.gate.load_state_dict(theirs.shared_expert_gate.state_dict())
    copy_glu(moe.shared.mlp, theirs.shared_expert)
    out = theirs(x)
    assert relative(moe(x, context()), out[0] if isinstance(out, tuple) else out) < 1e-5


def copy_glu(ours: Any, theirs: Any) -> None:
    pairs = ((ours.gate, theirs.gate_proj), (ours.up, theirs.up_proj), (ours.proj, theirs.down_proj))
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())


def test_it_is_the_mixture_of_deepseek() -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=C, moe_intermediate_size=F, n_routed_experts=E, num_experts_per_tok=3, n_group=4, topk_group=2,
        n_shared_experts=2, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    theirs, moe, x = theirs_of(config, DeepseekV3MoE), moe_of(**DEEPSEEK).float(), torch.randn(B, T, C).float()
    take(moe, theirs, theirs.gate)
    moe.router.balance.bias.copy_(theirs.gate.e_score_correction_bias)
    copy_glu(moe.shared, theirs.shared_experts)
    assert relative(moe(x, context()), theirs(x)) < 1e-5


def test_it_is_the_mixture_of_gpt_oss() -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    config = GptOssConfig(hidden_size=C, intermediate_size=F, num_local_experts=E, num_experts_per_tok=4)
    theirs, moe = theirs_of(config, GptOssMLP), moe_of(**{**GPT_OSS, "limit": 7.0}).float()
    x = 3 * torch.randn(B, T, C).float()
    take(moe, theirs, theirs.router, transposed=True)
    assert relative(moe(x, context()), theirs(x)[0]) < 1e-5


# balance


def test_the_balance_loss_is_least_when_all_experts_get_the_same() -> None:
    moe = moe_of(balance_rate=1.0)
    counts, flat = torch.full((E,), 4), torch.full((16, E), 1 / E)
    even, uneven = context(), context()
    moe.router.balance.watch(flat, counts, even)
    assert even.losses["balance"].item() == pytest.approx(2.0)  # top_k
    assert even.metrics["moe/max_load"].item() == even.metrics["moe/min_load"].item() == pytest.approx(1.0)
    lopsided = torch.tensor([16, 16] + [0] * (E - 2))
    moe.router.balance.watch(torch.eye(E)[[0, 1] * 8], lopsided, uneven)
    assert uneven.losses["balance"].item() == pytest.approx(E)
    assert uneven.metrics["moe/max_load"].item() == pytest.approx(E / 2)
    assert uneven.metrics["moe/min_load"].item() == 0


def test_losses_add_up_over_layers_and_loads_are_those_of_the_worst() -> None:
    one, two, x = moe_of(), moe_of(), torch.randn(B, T, C)
    apart, together = [context(), context()], context()
    for moe, seen in zip((one, two), apart, strict=True):
        moe(x, seen)
        moe(x, together)
    close(together.losses["balance"], sum(seen.losses["balance"] for seen in apart))  # type: ignore[arg-type]
    for name, worst in (("moe/max_load", max), ("moe/min_load", min)):
        assert together.metrics[name] == worst(seen.metrics[name] for seen in apart)
        assert not together.metrics[name].requires_grad


def test_the_balance_loss_reaches_the_router_alone() -> None:
    moe, seen = moe_of(), context()
    moe(torch.randn(B, T, C), seen)
    seen.losses["balance"].backward()
    assert {name for name, p in moe.named_parameters() if p.grad is not None} == {"router.linear.weight"}


def test_the_bias_falls_where_too_many_tokens_came_and_only_after_a_step() -> None:
    moe, x = moe_of(balance="bias", balance_rate=0.01), torch.randn(B, T, C)
    balance = moe.router.balance
    before = balance.bias.clone()
    moe(x, context())  # evaluation counts nothing
    assert int(balance.counts.sum()) == 0
    moe.train()
    for _ in range(2):  # micro-batches
        moe(x, context())
    assert torch.equal(balance.bias, before)
    counts = torch.bincount(moe.router(x.flatten(0, 1)).chosen.flatten(), minlength=E) * 2
    assert torch.equal(balance.counts, counts)
    balance.after_step(torch.tensor(True))
    close(balance.bias - before, 0.01 * torch.sign(counts.double().mean() - counts))
    assert int(balance.counts.sum()) == 0
    balance.after_step(torch.tensor(True))
    close(balance.bias - before, 0.01 * torch.sign(counts.double().mean() - counts))


def test_a_moving_bias_makes_the_loads_equal() -> None:
    moe, x = moe_of(balance="bias", balance_rate=0.003).train(), torch.randn(8, 64, C) + 0.5
    nn.init.zeros_(moe.router.balance.bias)
    loads = []
    for _ in range(300):
        seen = context()
        moe(x, seen)
        moe.router.balance.after_step(torch.tensor(True))
        loads.append(float(seen.metrics["moe/max_load"]))
    assert loads[0] > 1.5
    assert max(loads[-20:]) < 1.3


def test_the_bias_is_saved_and_the_counts_are_not() -> None:
    moe = moe_of(balance="bias")
    assert [name for name in moe.state_dict() if "balance" in name] == ["router.balance.bias"]


def test_in_a_model_experts_begin_like_other_weights_and_the_loss_is_added() -> None:
    torch.set_default_dtype(torch.float32)
    config = ModelConfig(vocab_size=29, n_layer=2, n_head=2, n_embd=64, mlp="moe", init_std=0.1)
    model, same, tokens = GPT(config), GPT(config), torch.randint(29, (2, 16))
    experts = model.blocks[0].mlp.experts
    assert experts.branches["up"].weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert experts.proj.weight.std().item() == pytest.approx(0.1 / 2, rel=0.02)  # two layers of two sums
    assert torch.equal(experts.proj.weight, same.blocks[0].mlp.experts.proj.weight)
    added = model.loss(tokens, tokens)[1]["balance"]
    assert 0.02 * 2 <= added.item() < 0.02 * 4  # rate * top_k in each of two layers, or a little more


# the grouped product


def grouped_operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of groups 0, 0, 2, 2, 2, 4: the second and fourth of five groups are empty."""
    ends = groups_of(torch.tensor([0, 0, 2, 2, 2, 4]), 5).ends
    return torch.randn(6, C, dtype=dtype), torch.randn(5, F, C, dtype=dtype), ends


def test_a_grouped_product_is_the_product_of_each_row_with_its_matrix() -> None:
    (x, weight, ends), of_row = grouped_operands(), [0, 0, 2, 2, 2, 4]
    assert groups_of(torch.tensor(of_row), 5).sizes.tolist() == [2, 0, 3, 0, 1]
    close(grouped_product(x, weight, ends), torch.stack([weight[e] @ row for e, row in zip(of_row, x, strict=True)]))
    sums = torch.zeros(5, F, C)
    y = torch.randn(6, F)
    for e, row, out in zip(of_row, x, y, strict=True):
        sums[e] += torch.outer(out, row)
    close(grouped_outer(y, x, ends), sums)


def test_a_grouped_product_is_an_operator_that_autograd_and_compilers_know() -> None:
    x, weight, ends = grouped_operands()
    torch.library.opcheck(grouped_product, (x.requires_grad_(), weight.requires_grad_(), ends))
    torch.library.opcheck(grouped_outer, (torch.randn(6, F), x.detach(), ends))
    assert torch.autograd.gradcheck(lambda *leaves: grouped_product(*leaves, ends), (x, weight))


def test_a_token_costs_its_active_experts() -> None:
    with torch.device("meta"):
        moe, x = registry.build("mlp", {"name": "moe", "n_expert": 64, "n_shared": 1}, SHAPE), torch.zeros(B, T, C)
        x.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            moe(x, context()).sum().backward()
    active = (2 + 1) * 3 * 2 * C * 40 + 2 * C * 64  # two experts and a shared one of three matrices; the router
    assert moe.experts.proj.weight.shape == (64, C, 40)
    assert counter.get_total_flops() == 3 * B * T * active


def test_under_autocast_experts_run_in_bf16_and_the_router_in_float32() -> None:
    moe, x = moe_of(n_shared=1).float(), torch.randn(B, T, C).float()
    seen: list[torch.dtype] = []
    moe.experts.inner.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    exact = moe.router(x.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        route = moe.router(x.flatten(0, 1))
        moe(x, context())
    assert seen == [torch.bfloat16]
    for mine, other in zip(route, exact, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.gpu
def test_the_kernel_on_cuda_is_the_loop() -> None:
    operands = [tensor.cuda() for tensor in grouped_operands(torch.bfloat16)]
    x, weight, ends = operands
    y = grouped_product(x, weight, ends)
    torch.testing.assert_close(y, product_by_loop(x, weight, ends), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grouped_outer(y, x, ends), outer_by_loop(y, x, ends), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(
        grouped_product(y, weight.mT, ends), product_by_loop(y, weight.mT, ends), rtol=2e-2, atol=2e-2
    )


# what cannot be


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_expert": 1}, "n_expert must be 2 or more"),
        ({"top_k": 0}, "0 is not from 1 to 8"),
        ({"top_k": 9}, "9 is not from 1 to 8"),
        ({"top_k": 1}, "set renormalise=false"),
        ({"n_group": 3}, "n_group must divide n_expert"),
        ({"n_group": 0}, "n_group must divide n_expert"),
        ({"n_group": 8}, "into groups of 2 or more"),
        ({"n_group": 4, "top_group": 4}, "below n_group"),
        ({"top_group": 2}, "below n_group"),
        ({"n_group": 4, "top_k": 3}, "1 of 2 do not hold 3"),
        ({"gated": False, "limit": 7.0}, "set gated=true"),
        ({"gated": False, "offset": 1.0}, "set gated=true"),
        ({"n_shared": -1}, "n_shared must be 0 or more"),
        ({"shared_gate": True}, "1 or more for a shared_gate"),
        ({"balance": "none", "balance_rate": 0.1}, "balance=loss or bias"),
        ({"balance_rate": 0.0}, "must be above 0"),
    ],
    ids=str,
)
def test_a_mixture_that_cannot_be_is_refused_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        moe_of(**options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
