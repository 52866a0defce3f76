"""torch.compile takes each variant's loss as one graph, once; the compiled gradients are the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import tiny
import torch
from torch._dynamo.utils import counters

from gptlab import registry
from gptlab.compiling import CompiledLoss, takes_whole_steps
from gptlab.conformance import LAWS, SLOTS, Case, cases_for, judge
from gptlab.hardware import has_compiler
from gptlab.step import TrainState, compile_step, train_step

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


def _stepped(optimizer: str, whole: bool, n_steps: int = 3) -> TrainState:
    mlp = {"name": "moe", "balance": "bias"}  # acts after each step
    state = tiny.state(optimizer={"name": optimizer}, steps=8, model={"mlp": mlp})
    state.schedule = lambda step: 1 / (step + 1)  # a rate that the graph must not take for a constant
    if whole:
        compile_step(state, pytest.fail)
    for step in range(n_steps):
        losses, norm = train_step(state, tiny.batch_of(step))
        state.step += 1
        assert losses["loss"].isfinite()
        assert norm.isfinite()
    assert (state.whole is not None) == whole
    return state


@pytest.mark.skipif(not takes_whole_steps(), reason="torch before 2.13 cannot take the backward pass into a graph")
@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_a_whole_step_is_one_graph_and_does_what_the_plain_one_does(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, whole = _stepped(optimizer, False), _stepped(optimizer, True)
    assert counters["stats"]["unique_graphs"] == 1
    bound = 3e-3 if optimizer == "muon" else 1e-5  # muon rounds to bfloat16, and a compiler does so elsewhere
    for (name, one), other in zip(plain.model.named_parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=bound, msg=name)


def test_a_step_that_is_no_graph_compiles_its_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    state, notes = tiny.state(steps=8), []
    compile_step(state, notes.append)
    state.afterwards.append(lambda finite: print(finite.item()))
    for _ in range(2):
        train_step(state, tiny.batch_of(0))
    assert state.whole is None
    assert isinstance(state.loss, CompiledLoss)
    assert len(notes) == 1
    assert "could not be compiled as one graph" in notes[0]
