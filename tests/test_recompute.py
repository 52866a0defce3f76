"""What is computed again in the backward pass is what was computed: same loss, same gradients, same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab import GPT, ModelConfig

aten = torch.ops.aten
SIZES = {"vocab_size": 37, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.5},
    "moe": {"mlp": {"name": "moe", "balance": "loss"}},
    "values of the first layer": {"attention": {"name": "softmax", "value_residual": True}},
    "streams": {"block": "hyper"},
    "recurrent": {"attention": "gated_delta", "position": "none"},
}


def _losses_and_gradients(config: dict[str, Any], recompute: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    gpt = GPT(ModelConfig(**SIZES, **config, init_std=0.3))
    gpt.recompute = recompute
    tokens = torch.randint(37, (2, 17), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    total, losses, metrics = gpt.loss(tokens[:, :-1], tokens[:, 1:])
    everything = {"loss": total, **losses, **metrics}
    gradients = torch.autograd.grad(total + sum(losses.values()), list(gpt.parameters()), allow_unused=True)
    return everything, [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("recompute", ["selective", "block"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_computed_again_is_the_same(name: str, recompute: str) -> None:
    plain, again = (_losses_and_gradients(MODELS[name], how) for how in ("none", recompute))
    assert again[0].keys() == plain[0].keys()
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)


class _Products(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (aten.mm.default, aten.addmm.default, aten.bmm.default)
        return func(*args, **(kwargs or {}))


def _products_of_a_backward_pass(recompute: str) -> int:
    gpt = GPT(ModelConfig(**SIZES, attention="vanilla"))
    gpt.recompute = recompute
    tokens = torch.zeros(2, 16, dtype=torch.long)
    total, _, _ = gpt.loss(tokens, tokens)
    with _Products() as products:
        total.backward()
    return products.n


def test_selective_computes_no_product_again_and_block_all_of_them() -> None:
    plain, selective, block = map(_products_of_a_backward_pass, ("none", "selective", "block"))
    assert selective == plain
    assert block >= plain + 3 * 6  # of each layer: qkv, scores, values, projection, two of the MLP


@pytest.mark.parametrize("recompute", ["selective", "block"])
@pytest.mark.parametrize("name", ["plain", "moe", "streams", "values of the first layer"])
def test_a_compiler_takes_it_into_one_graph(name: str, recompute: str) -> None:
    gpt = GPT(ModelConfig(**SIZES, **MODELS[name], init_std=0.3))
    gpt.recompute = recompute
    tokens = torch.randint(37, (2, 17), generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    step = torch.compile(gpt.loss, fullgraph=True, backend="aot_eager")
    results = []
    for loss in (gpt.loss, step):
        total, losses, _ = loss(tokens[:, :-1], tokens[:, 1:])
        results.append(torch.autograd.grad(total + sum(losses.values()), list(gpt.parameters()), allow_unused=True))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_less_is_kept_for_the_backward_pass() -> None:
    gpt = GPT(ModelConfig(**SIZES))
    tokens = torch.zeros(2, 16, dtype=torch.long)

    def kept() -> int:
        held: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            gpt.loss(tokens, tokens)
        return sum(held.values())

    gpt.recompute = "none"
    whole = kept()
    gpt.recompute = "block"
    assert kept() < whole / 2
