"""The loop: what a step computes, what it logs, what it does when a number is not finite, and that it never waits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn as nn
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from gptlab import registry, trainer
from gptlab.errors import TrainingError
from gptlab.optimizer import parameter_groups
from gptlab.step import Batch, TrainState, train_step
from gptlab.trainer import Actions, train


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Notes:
    """Actions that write down what they were called for."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.rows: list[dict[str, Any]] = []
        self.called: list[str] = []
        self.steps, self.stop_after = 0, stop_after

    def actions(self) -> Actions:
        return Actions(
            log=lambda row: self.rows.append(dict(row)),
            evaluate=lambda: self.called.append("evaluate") or {"val/loss": 1.0},
            sample=lambda: self.called.append("sample"),
            save=lambda: self.called.append("save"),
            stopping=self._stopping,
        )

    def _stopping(self) -> bool:
        self.steps += 1
        return self.steps >= self.stop_after


def spoil(state: TrainState, bad_steps: set[int], value: float = math.nan) -> None:
    """Make the loss of some steps not finite."""

    def loss(tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        total, added, metrics = state.model.loss(tokens, targets)
        return (total * value if state.step in bad_steps else total), added, metrics

    state.loss = loss


@pytest.mark.parametrize("masked", [0.0, 0.6])
def test_accumulated_micro_batches_are_one_big_batch(masked: float) -> None:
    whole, parts = tiny.state(batch_size=8), tiny.state(batch_size=2, accumulate=4)
    for state in (whole, parts):
        state.result = train_step(state, tiny.batch_of(0, n=8, masked=masked))
    assert parts.result[0]["loss"].item() == pytest.approx(whole.result[0]["loss"].item(), abs=1e-6)
    assert parts.result[1].item() == pytest.approx(whole.result[1].item(), rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=0, atol=2e-5)


def test_the_logged_loss_is_the_mean_over_all_targets_that_count() -> None:
    state = tiny.state(batch_size=2, accumulate=3)
    tokens, targets = tiny.batch_of(3, n=6, masked=0.7)
    with torch.no_grad():
        log_p = state.model(tokens).log_softmax(-1)
    expected = [-log_p[b, t, y] for b, row in enumerate(targets.tolist()) for t, y in enumerate(row) if y != -100]
    losses, _ = train_step(state, (tokens, targets))
    assert losses["loss"].item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_a_step_without_any_target_changes_nothing_but_the_decay() -> None:
    state = tiny.state(optimizer={"weight_decay": 0.0})
    before = weights(state)
    losses, norm = train_step(state, tiny.batch_of(0, masked=1.1))
    assert losses["loss"].item() == 0.0
    assert norm.item() == 0.0
    assert same(before, weights(state))


def test_a_step_is_adamw_with_decay_on_matrices_and_a_clipped_gradient() -> None:
    options = {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3, "eps": 1e-6}
    state = tiny.state(model={"bias": True}, optimizer=options, clip=0.1)
    before = weights(state)
    tokens, targets = tiny.batch_of(0)
    (state.model.loss(tokens, targets)[0] / targets.numel()).backward()
    gradients = {name: p.grad.clone() for name, p in state.model.named_parameters()}
    state.model.zero_grad()
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    _, told = train_step(state, (tokens, targets))
    assert norm > 0.1
    assert told.item() == pytest.approx(norm, rel=1e-5)
    for name, now in weights(state).items():
        g = gradients[name] * (0.1 / norm)
        decayed = before[name] * (1 - 0.01 * 0.3 * (before[name].ndim >= 2))
        # After one step both of Adam's means are corrected to the gradient itself.
        torch.testing.assert_close(now, decayed - 0.01 * g / (g.abs() + 1e-6), rtol=1e-4, atol=1e-6)


def test_clip_0_leaves_the_gradient_as_it_is() -> None:
    free, wide, tight = (tiny.state(clip=clip, optimizer={"eps": 1.0}) for clip in (0.0, 1e9, 1e-3))
    for state in (free, wide, tight):
        train_step(state, tiny.batch_of(0))
    assert same(weights(free), weights(wide))
    assert not same(weights(free), weights(tight))


def test_dropout_depends_on_the_seed_and_the_step_alone() -> None:
    def after(seed: int, step: int, noise: int) -> dict[str, Tensor]:
        state = tiny.state(model={"dropout": 0.5})
        state.seed, state.step = seed, step
        torch.manual_seed(noise)
        train_step(state, tiny.batch_of(0))
        return weights(state)

    first = after(0, 3, noise=1)
    assert same(first, after(0, 3, noise=2))
    assert not same(first, after(1, 3, noise=1))
    assert not same(first, after(0, 4, noise=1))


def test_micro_batches_of_a_step_drop_different_units() -> None:
    state = tiny.state(model={"dropout": 0.5}, batch_size=2, accumulate=2)
    seen = []
    state.loss = lambda x, y: seen.append(state.model.hidden(x)[0].detach()) or state.model.loss(x, y)
    tokens, targets = tiny.batch_of(0, n=2)
    train_step(state, (tokens.repeat(2, 1), targets.repeat(2, 1)))
    assert not torch.equal(seen[0], seen[1])


def test_the_rate_of_a_step_is_the_peak_times_the_schedule() -> None:
    state = tiny.state(optimizer={"lr": 0.5}, steps=4)
    state.schedule = lambda step: [0.1, 0.2, 0.4, 0.0][step]
    notes = Notes()
    train(state, tiny.batch_of, notes.actions(), lambda pace: {})
    assert [notes.rows[0]["lr"], notes.rows[-1]["lr"]] == [0.05, 0.0]


def test_losses_that_parts_add_are_trained_on_and_logged_by_name() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor, context: Any, memory: Any = None) -> Tensor:
            context.losses["balance"] = 5.0 * self.weight.sum()
            return x

        attention, final_norm = None, True

    state = tiny.state(batch_size=2, accumulate=2)
    gate = Gate()
    state.model.blocks.append(gate)
    state.optimizer.add_param_group({"params": list(gate.parameters())})
    losses, _ = train_step(state, tiny.batch_of(0))
    assert losses["balance"].item() == pytest.approx(15.0)
    assert (gate.weight < 1).all(), "its gradient reached the optimizer"


def test_metrics_that_parts_leave_are_averaged_and_logged_but_not_trained_on() -> None:
    plain, measured = (tiny.state(batch_size=2, accumulate=2) for _ in range(2))
    seen: list[float] = []

    def loss(tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        total, added, metrics = measured.model.loss(tokens, targets)
        seen.append(tokens.float().mean().item())
        return total, added, {**metrics, "mean_token": tokens.float().mean()}

    measured.loss = loss
    means, _ = train_step(measured, tiny.batch_of(0))
    assert means["mean_token"].item() == pytest.approx(sum(seen) / 2)
    train_step(plain, tiny.batch_of(0))
    assert same(weights(plain), weights(measured))


def test_each_group_learns_at_its_own_rate() -> None:
    state = tiny.state(optimizer={"lr": 0.5, "rates": {"embedding": 0.0, "vector": 2.0}}, steps=4)
    state.schedule = lambda step: 0.1
    before = weights(state)
    train_step(state, tiny.batch_of(0))
    rates = {group["role"]: group["lr"] for group in state.optimizer.param_groups}
    assert rates == {"matrix": 0.05, "embedding": 0.0, "head": 0.05, "vector": 0.1}
    changed = {name for name, tensor in weights(state).items() if not torch.equal(tensor, before[name])}
    assert changed == before.keys() - {"token_embedding.weight"}


def test_modules_act_after_each_step() -> None:
    gpt, calls = tiny.state().model, []
    gpt.blocks[0].mlp.after_step = lambda taken: calls.append(gpt.head.weight.detach().clone())
    state = replace(tiny.state(), model=gpt)
    state.optimizer = registry.build("optimizer", "sgd", parameter_groups(gpt))
    state.loss = gpt.loss
    for step in range(2):
        train_step(state, tiny.batch_of(step))
        assert len(calls) == step + 1
        assert torch.equal(calls[-1], gpt.head.weight), "after the step, not before"


class Synced(Exception):
    """The host waited for the device."""


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    state = tiny.state(accumulate=2, batch_size=2)
    batch = tiny.batch_of(0)
    train_step(state, batch)

    def waits(name: str) -> Any:
        original = getattr(Tensor, name)

        def watched(tensor: Tensor, *args: Any) -> Any:
            if name != "__int__" or tensor.dtype != torch.int64:
                raise Synced(name)
            return original(tensor, *args)

        return watched

    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, waits(name))
    train_step(state, batch)  # the one int() left counts the targets, which are still on the host


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_parameters_before_it(value: float) -> None:
    state, sound = tiny.state(log_every=4), tiny.state(log_every=4)
    spoil(state, {2}, value)
    with pytest.raises(TrainingError, match="not finite at step 3"):
        train(state, tiny.batch_of, Notes().actions(), lambda pace: {})
    for step in range(2):
        train_step(sound, tiny.batch_of(step))
        sound.step += 1
    assert state.step == 2
    assert same(weights(state), weights(sound))


def test_nothing_is_saved_after_a_loss_that_was_not_finite() -> None:
    state = tiny.state(log_every=8, save_every=1)
    spoil(state, {2})
    notes = Notes()
    with pytest.raises(TrainingError):
        train(state, tiny.batch_of, notes.actions(), lambda pace: {})
    assert notes.called.count("save") == 2


def test_skipping_leaves_out_the_bad_steps_and_counts_them() -> None:
    state, sound = (tiny.state(log_every=1, on_nonfinite="skip") for _ in range(2))
    spoil(state, {2, 5})
    notes = Notes()
    assert train(state, tiny.batch_of, notes.actions(), lambda pace: {}) == "done"
    for step in (0, 1, 3, 4, 6, 7):
        sound.step = step
        train_step(sound, tiny.batch_of(step))
    assert same(weights(state), weights(sound))
    assert [row.get("skipped_steps", 0) for row in notes.rows] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert math.isnan(notes.rows[2]["train/loss"])
    assert math.isfinite(notes.rows[3]["train/loss"])


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_finite_gradients_whose_norm_overflows_are_left_out(clip: float) -> None:
    state = tiny.state(clip=clip, on_nonfinite="skip")
    spoil(state, {0}, 1e36)
    before = weights(state)
    _, norm = train_step(state, tiny.batch_of(0))
    assert not torch.isfinite(norm)
    assert same(before, weights(state))
    assert state.bad == 1


def test_what_is_due_happens_on_time_and_everything_at_the_end() -> None:
    state = tiny.state(steps=7, log_every=3, eval_every=5, save_every=4, sample_every=0)
    notes = Notes()
    assert train(state, tiny.batch_of, notes.actions(), lambda pace: {"mfu": 0.5}) == "done"
    assert [row["step"] for row in notes.rows] == [1, 3, 5, 6, 7]
    assert notes.called == ["save", "evaluate", "evaluate", "save", "sample"]
    assert [row["tokens"] for row in notes.rows] == [4 * 8 * row["step"] for row in notes.rows]
    assert "tokens_per_second" not in notes.rows[0]
    assert notes.rows[1]["mfu"] == 0.5


def test_a_wish_to_stop_saves_at_the_end_of_the_step() -> None:
    state, notes = tiny.state(), Notes(stop_after=3)
    assert train(state, tiny.batch_of, notes.actions(), lambda pace: {}) == "interrupted"
    assert state.step == 3
    assert notes.called == ["save"]


def test_a_wish_to_stop_after_the_last_step_is_no_interruption() -> None:
    state, notes = tiny.state(steps=3), Notes(stop_after=3)
    assert train(state, tiny.batch_of, notes.actions(), lambda pace: {}) == "done"


@pytest.mark.parametrize("in_fp32", [True, False])
def test_the_residual_stream_is_in_the_type_that_was_asked_for(in_fp32: bool) -> None:
    state, seen = tiny.state(), set()
    state.model.residual_in_fp32 = in_fp32
    state.precision = "bf16"
    for block in state.model.blocks:
        block.register_forward_hook(lambda module, args, x: seen.add(x.dtype))
    losses, _ = train_step(state, tiny.batch_of(0))
    assert seen == {torch.float32 if in_fp32 else torch.bfloat16}
    assert losses["loss"].isfinite()


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it() -> None:
    state = tiny.state()
    state.model.cuda()
    state.device = torch.device("cuda")
    state.__post_init__()
    train_step(state, tiny.batch_of(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, tiny.batch_of(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fp16_that_overflows_at_any_scale_ends_the_training() -> None:
    state = tiny.state()
    state.precision = "fp16"
    state.scaler = GradScaler("cpu", init_scale=2.0**-11)
    with pytest.raises(TrainingError, match="overflow at any loss scale"):
        trainer._refuse_nonfinite(state)


def test_a_step_that_is_left_out_moves_no_bias_of_a_router() -> None:
    state = tiny.state({"mlp": {"name": "moe", "balance": "bias"}}, on_nonfinite="skip")
    (balance,) = [module for module in state.model.modules() if hasattr(module, "after_step")]
    tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(0))
    train_step(state, (tokens, tokens))
    moved = balance.bias.clone()
    assert moved.any()
    usual = state.loss
    state.loss = lambda x, y: (usual(x, y)[0] * math.nan, *usual(x, y)[1:])
    train_step(state, (tokens, tokens))
    assert torch.equal(balance.bias, moved)


def test_the_seconds_of_a_step_leave_out_the_first_and_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    state, notes, now = tiny.state(steps=6, log_every=2, eval_every=2), Notes(), [0.0]
    monkeypatch.setattr("gptlab.trainer.time.perf_counter", lambda: now[0])

    def slow_batch(step: int) -> Batch:
        now[0] += 100 if step == 0 else 3
        return tiny.batch_of(step)

    def slow_evaluation() -> dict[str, float]:
        now[0] += 1000
        return {"val/loss": 1.0}

    train(state, slow_batch, replace(notes.actions(), evaluate=slow_evaluation), lambda pace: {})
    assert state.paces == [3, 3, 3], "after steps 2, 4 and 6"
    assert [row.get("tokens_per_second") for row in notes.rows] == [None, *[32 / 3] * 3]


def test_tokens_are_those_that_are_fed() -> None:
    state = tiny.state()
    assert state.tokens_per_step == 4 * 8
    state.length = 5
    assert state.tokens_per_step == 4 * 5
