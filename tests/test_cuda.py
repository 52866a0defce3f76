"""What a GPU does otherwise than a CPU -- compiled kernels, replayed graphs, padded products -- must not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from gptlab import ModelConfig, registry
from gptlab.activations import edit, record
from gptlab.compiling import CompiledLoss
from gptlab.components.context import Encoded
from gptlab.conformance import SLOTS, Case, cases_for
from gptlab.inside.patching import patch
from gptlab.loss import padded
from gptlab.model import GPT
from gptlab.sampling import Draw, generate
from gptlab.steering.direction import added
from gptlab.steering.effect import log_likelihoods
from gptlab.step import TrainState, compile_step, train_step

pytestmark = pytest.mark.gpu
DEVICE = "cuda"

VARIANTS = [(slot, name) for slot in SLOTS for name in registry.names(slot)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    torch.compiler.reset()


def _gradients(model: GPT, loss: CompiledLoss | None, tokens: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mean loss with what parts add to it, and the gradient of every parameter, on the CPU."""
    model.zero_grad()
    total, added, _ = (loss or model.loss)(tokens, targets)
    whole = total / targets.numel() + sum(added.values())
    whole.backward()
    return whole.detach().cpu(), [p.grad.cpu() for p in model.parameters() if p.grad is not None]


def _as_on_a_cpu(case: Case) -> None:
    """Compiled in float32, one graph for two steps, with the CPU's loss and gradients; in bf16 a loss near to it."""
    on_cpu, model = (case.model(dtype=torch.float32) for _ in range(2))
    if model.memory:
        model.memory = Encoded(model.memory.states.cuda())
    batch = case.tokens(), case.tokens(seed=1)
    there = [x.cuda() for x in batch]
    step = torch.compile(model.cuda().loss, fullgraph=True)
    wanted, of_cpu = _gradients(on_cpu, None, *batch)
    for _ in range(2):
        got, of_cuda = _gradients(model, step, *there)
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    largest = max(float(g.abs().max()) for g in of_cpu)
    for one, other in zip(of_cuda, of_cpu, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * largest)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        rough = step(*there)[0] / batch[1].numel()
    plain = on_cpu.loss(*batch)[0].detach() / batch[1].numel()
    torch.testing.assert_close(rough.cpu(), plain, rtol=2e-2, atol=2e-2)  # 8 bits of a mantissa


@pytest.mark.parametrize(("slot", "name"), VARIANTS, ids=map("/".join, VARIANTS))
def test_every_variant_is_one_graph_with_the_gradients_of_a_cpu(slot: str, name: str) -> None:
    _as_on_a_cpu(cases_for(slot, name)[0])


@pytest.mark.parametrize(("slot", "name"), VARIANTS, ids=map("/".join, VARIANTS))
def test_so_it_is_with_every_option_at_another_value(slot: str, name: str) -> None:
    _as_on_a_cpu(cases_for(slot, name)[-1])


def _state(n_steps: int = 4, **settings: object) -> TrainState:
    """A tiny model that has taken some steps on the GPU."""
    torch.manual_seed(0)
    state = tiny.state(**settings)
    tiny.with_memory(state.model.cuda())
    state.device = torch.device("cuda")
    state.__post_init__()
    if settings.get("compile") == "true":
        compile_step(state, pytest.fail)
    for step in range(n_steps):
        losses, _ = train_step(state, tiny.batch_of(step))
        assert losses["loss"].isfinite()
        state.step += 1
    return state


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "batch_size": 2}, {"cuda_graphs": "true"}], ids=str)
def test_compiled_steps_are_plain_ones_and_never_wait_for_the_device(settings: dict[str, object]) -> None:
    plain, compiled = _state(**{**settings, "cuda_graphs": "false"}), _state(compile="true", **settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(compiled, tiny.batch_of(4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    train_step(plain, tiny.batch_of(4))
    for (name, one), other in zip(plain.model.named_parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", registry.names("attention"))
def test_replayed_kernels_of_an_attention_learn_what_launched_ones_do(name: str) -> None:
    model = {"model": {"attention": name, "position": "none"}}
    plain, replayed = (_state(compile="true", cuda_graphs=graphs, **model) for graphs in ("false", "true"))
    for (parameter, one), other in zip(plain.model.named_parameters(), replayed.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_an_optimizer_steps_as_on_a_cpu(name: str) -> None:
    on_cuda, on_cpu = _state(2, optimizer={"name": name}), tiny.state(optimizer={"name": name})
    for step in range(2):
        train_step(on_cpu, tiny.batch_of(step))
        on_cpu.step += 1
    bound = 3e-3 if name == "muon" else 1e-4  # muon rounds to bfloat16
    for (parameter, one), other in zip(on_cpu.model.named_parameters(), on_cuda.model.parameters(), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=bound, msg=parameter)


def test_a_padded_head_scores_as_the_head_does() -> None:
    head = torch.nn.Linear(32, 101).cuda()
    x = torch.randn(7, 32, device="cuda", requires_grad=True)
    for one, other in zip(*(_with_gradients(score, head, x) for score in (padded(head, x), head(x))), strict=True):
        torch.testing.assert_close(one, other)


def _with_gradients(score: Tensor, head: torch.nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    assert head.bias is not None
    return (score, *torch.autograd.grad(score.sin().sum(), (x, head.weight, head.bias)))


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_a_source_is_seen_both_ways_as_the_definition_says(kernel: str) -> None:
    sizes = {"vocab_size": 29, "block_size": 200, "n_layer": 2, "n_head": 4, "n_embd": 64, "position": "rope"}
    one, other = (
        GPT(ModelConfig(**sizes, source_end=0, attention={"name": "softmax", "causal": "prefix", "kernel": kernel}))
        for kernel in ("math", kernel)
    )
    tokens = torch.randint(1, 29, (3, 200), generator=torch.Generator().manual_seed(0))
    tokens[0, 130] = tokens[1, 7] = 0  # the third has no source
    results = []
    for model in (one, other.to(DEVICE)):
        there = tokens.to(next(model.parameters()).device)
        results.append(_gradients(model, None, there, there.roll(-1, 1)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for got, wanted in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()) + 1e-7)


@torch.no_grad()
def test_looking_and_steering_see_what_they_see_on_a_cpu() -> None:
    sizes = {"vocab_size": 29, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32, "position": "rope"}
    model = GPT(ModelConfig(**sizes, attention="vanilla")).eval()
    tokens = torch.randint(29, (4, 24), generator=torch.Generator().manual_seed(0))
    vectors = {0: torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    with record(model) as seen:
        plain = model(tokens)
    steered = log_likelihoods(model, list(tokens), 3, added(vectors, 0.5))
    model.to(DEVICE)
    with record(model) as there:
        again = model(tokens.to(DEVICE))
    torch.testing.assert_close(again.cpu(), plain, rtol=1e-4, atol=1e-5)
    for name, tensor in seen.items():
        torch.testing.assert_close(there[name].cpu(), tensor, rtol=1e-4, atol=1e-5, msg=name)
    with edit(model, {**added(vectors, 0.0), "blocks.*.attention.weights": torch.clone}):
        assert torch.equal(model(tokens.to(DEVICE)), again)
    found = log_likelihoods(model, list(tokens), 3, added(vectors, 0.5))
    torch.testing.assert_close(found, steered, rtol=1e-4, atol=1e-5)
    moved = patch(model, tokens[0].to(DEVICE), tokens[0].to(DEVICE), 1, 2).moved
    assert not moved.any()


@pytest.mark.parametrize("attention", ["softmax", "flash", "gated_delta", "mamba2"])
def test_a_replayed_decoding_step_draws_the_same_tokens(attention: str) -> None:
    (case, *_) = (case for case in cases_for("attention", attention) if "learned" not in case.id)
    model = case.model(dtype=torch.float32).cuda()
    prompts, draw, notes = [[1, 2, 3], [4, 5, 6, 7, 8]], Draw(temperature=0), []
    plain = list(generate(model, prompts, 12, draw=draw))
    assert list(generate(model, prompts, 12, draw=draw, compiled=notes.append)) == plain
    assert notes == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_a_gpu_is_stopped_and_goes_on(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    words = ["trainer.device=cuda", f"trainer.precision={precision}", "trainer.compile=false"]
    whole, half = tiny.run(*words, "run_dir=whole"), tiny.run(*words, "run_dir=half", "trainer.steps=6")
    assert (whole.code, half.code) == (0, 0), whole.err + half.err
    assert tiny.rows("whole")[-1]["train/loss"] < tiny.rows("whole")[0]["train/loss"]
    assert tiny.summary("whole")["peak_memory"] > 0
    assert tiny.call(tiny.train, "resume=half", "trainer.steps=12").code == 0
