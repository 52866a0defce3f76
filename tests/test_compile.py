"""torch.compile takes each variant's loss as one graph, once; the compiled gradients are the plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from gptlab import registry
from gptlab.conformance import LAWS, SLOTS, Case, cases_for, judge
from gptlab.hardware import has_compiler

VARIANTS = [(slot, name) for slot in SLOTS for name in registry.names(slot)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("slot", "name"), VARIANTS, ids=map("/".join, VARIANTS))
def test_the_loss_compiles_whole_and_once(slot: str, name: str) -> None:
    verdict = judge(cases_for(slot, name)[0], LAWS["the_loss_compiles_whole_and_once"])
    assert verdict.holds, verdict.note


def _compiled_as_plain(case: Case, backend: str) -> None:
    """Two compiled steps: one graph, and the losses and gradients of two plain steps."""
    plain, model = (
        case.model(dtype=torch.float32) for _ in range(2)
    )  # evaluating: compilers draw dropout their own way
    step = torch.compile(model.loss, fullgraph=True, backend=backend)
    for seed in (0, 2):
        batch = case.tokens(seed=seed), case.tokens(seed=seed + 1)
        losses = [function(*batch)[0] for function in (plain.loss, step)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in registry.names("attention") if name != "none"])
def test_a_compiled_step_has_the_plain_gradients(name: str) -> None:
    every_option_at_its_second_value = cases_for("attention", name)[-1]
    _compiled_as_plain(every_option_at_its_second_value, "aot_eager")


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["flash", "mean"])
def test_inductors_code_has_the_plain_gradients(name: str) -> None:
    _compiled_as_plain(cases_for("attention", name)[0], "inductor")
