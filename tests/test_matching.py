"""Equal cost: what is solved is counted again, by hand where that can be; what cannot be is refused with numbers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from gptlab import matching, optimizer, registry, rundir, schedule, text, tokenizer  # noqa: F401  (they register)
from gptlab.config import TrainerConfig, from_dict, to_dict
from gptlab.cost import flops_per_token
from gptlab.errors import ConfigError
from gptlab.matching import Match, changed, match
from gptlab.model import GPT

MLPS = ["plain", "glu", "maxout", {"name": "moe", "n_expert": 2}]


def tree(mlp: Any = "plain", steps: int = 100, **model: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 65, "n_layer": 2, "n_embd": 128, "n_head": 4, "block_size": 32}
    config = from_dict({"model": {**sizes, "mlp": mlp, **model}, "trainer": {"steps": steps}})
    return to_dict(rundir.whole(config))


def parameters(made: dict[str, Any]) -> int:
    return GPT(from_dict(made).model).n_parameters()


def off(made: dict[str, Any], baseline: dict[str, Any]) -> float:
    return abs(parameters(made) / parameters(baseline) - 1)


@pytest.mark.parametrize("mlp", MLPS, ids=lambda mlp: registry.name_of("mlp", mlp))
@pytest.mark.parametrize("far", [1.0, 3.0])
def test_every_mlp_reaches_the_baselines_parameters_from_near_and_far(mlp: Any, far: float) -> None:
    baseline, arm = tree(), tree(mlp)
    arm["model"]["mlp"]["expand"] *= far
    made, found = match(baseline, arm, "params", tolerance=0.02)  # 8 units of two experts are 3% of the model
    assert off(made, baseline) <= 0.02
    assert found is not None
    assert found.width == "model.mlp.expand"
    assert (found.target, found.reached) == (parameters(baseline), parameters(made))
    assert made["model"]["mlp"]["expand"] == found.after
    step = 8 / 128
    assert (found.after / step) % 1 == 0 or found.after == found.before  # a multiple of 8 hidden units
    for other in (found.after - step, found.after + step):
        neighbour = changed(arm, "model.mlp.expand", other)
        assert off(neighbour, baseline) >= off(made, baseline), "a neighbour is nearer"


def test_the_width_of_a_glu_is_the_one_that_is_counted_by_hand() -> None:
    """Per layer a plain MLP has 2 C F matrices' entries, a GLU 3 C F: F = 2/3 of 512 is 341.3, of which 344 is near."""
    _, found = match(tree(), tree({"name": "glu", "expand": 4.0}), "params")
    assert found is not None
    assert found.after * 128 == 344


@pytest.mark.parametrize("mlp", ["glu", "maxout"])
def test_flops_are_those_of_the_whole_run(mlp: str) -> None:
    baseline, arm = tree(), tree(mlp, steps=50)
    made, found = match(baseline, arm, "flops")
    work = [flops_per_token(from_dict(t).model) * t["trainer"]["steps"] for t in (baseline, made)]
    assert work[1] == pytest.approx(work[0], rel=0.01)
    assert found is not None
    assert found.after > 2 * found.before, "half the steps leave twice the work for each"


def test_time_is_matched_by_steps() -> None:
    baseline, arm = tree(steps=1000), tree("glu", steps=1000)
    made, found = match(baseline, arm, "time", seconds=lambda t: 0.020 if t is baseline else 0.025)
    assert made["trainer"]["steps"] == 800
    assert found == Match("trainer.steps", 1000, 800, "seconds", pytest.approx(20.0), pytest.approx(20.0))
    assert arm["trainer"]["steps"] == 1000, "the arm that came in is as it was"


def test_too_few_steps_for_the_tolerance_are_refused() -> None:
    baseline, arm = tree(steps=3), tree("glu", steps=3)
    with pytest.raises(ConfigError, match=r"within 1.0%, but 2 take .* raise trainer.steps"):
        match(baseline, arm, "time", seconds=lambda t: 1.0 if t is baseline else 1.3)


def test_an_arm_that_is_as_near_as_can_be_keeps_its_width() -> None:
    made, found = match(tree(), arm := tree(norm="layernorm"), "params")
    assert made == arm
    assert found is not None
    assert found.before == found.after == 4.0


def test_nothing_is_changed_but_the_width() -> None:
    baseline, arm = tree(), tree({"name": "glu", "expand": 6.0})
    kept = copy.deepcopy((baseline, arm))
    made, found = match(baseline, arm, "params")
    assert (baseline, arm) == kept
    assert found is not None
    assert changed(made, "model.mlp.expand", 6.0) == arm


def test_without_matching_all_stays() -> None:
    arm = tree("glu")
    assert match(tree(), arm, "none") == (arm, None)


def test_another_setting_can_be_the_width() -> None:
    made, found = match(tree(), tree("none"), "params", width="model.n_layer")
    assert found is not None
    assert (found.width, type(found.after)) == ("model.n_layer", int)
    assert off(made, tree()) <= 0.01
    made, found = match(tree(), tree("none"), "params", width="model.n_embd", tolerance=0.06)
    assert made["model"]["n_embd"] % (2 * made["model"]["n_head"]) == 0, "heads of an even size"


def test_the_unreachable_is_refused_with_the_nearest_on_both_sides() -> None:
    baseline, arm = tree(n_embd=16, n_head=2), tree("glu", n_embd=16, n_head=2)
    with pytest.raises(ConfigError) as told:
        match(baseline, arm, "params", tolerance=0.001)
    below, above = (changed(arm, "model.mlp.expand", n / 16) for n in (40, 48))
    for near in (below, above):
        assert f"{parameters(near):,}" in str(told.value)
    assert parameters(below) < parameters(baseline) < parameters(above)
    assert match(baseline, arm, "params", tolerance=0.04)[1] is not None
    assert "\n" not in str(told.value)


REFUSED = {
    ("none", None): "mlp 'none' has none: name one, as in width=model.n_embd",
    ("plain", "model.attention.window"): "model.attention.window is None",
    ("plain", "model.bias"): "model.bias is False",
    ("plain", "model.foo"): "model.foo is not in every arm",
    ("none", "model.dropout"): "a width that changes the cost, but model.dropout does not",
}


@pytest.mark.parametrize("mlp, width", REFUSED)
def test_what_is_no_width_is_refused(mlp: str, width: str | None) -> None:
    with pytest.raises(ConfigError) as told:
        match(tree(), tree(mlp, dropout=0.1), "params", width)
    assert REFUSED[mlp, width] in str(told.value)


def test_what_is_too_dear_at_its_narrowest_is_refused_with_that() -> None:
    with pytest.raises(ConfigError, match=r"comes nearest with is .*model\.mlp\.expand=0\.25, \+"):
        match(tree(n_embd=16, n_head=2), tree(n_embd=32, n_head=2), "params")


def test_a_way_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="none, params, flops, time"):
        match(tree(), tree(), "parms")


def test_only_an_mlp_that_has_hidden_units_says_its_width() -> None:
    for name in registry.names("mlp"):
        cls = registry.get("mlp", name)
        if cls.__module__.startswith("gptlab."):
            assert (getattr(cls, "width", None) in registry.options(cls)) == (name != "none")


def test_flops_are_counted_over_all_tokens_of_a_run() -> None:
    config = from_dict(tree(steps=7))
    config.trainer = dataclasses.replace(config.trainer, batch_size=3, accumulate=2)
    assert matching.flops(config) == 7 * 3 * 2 * 32 * flops_per_token(config.model)


def test_flops_of_a_task_are_those_of_its_questions_not_of_the_context() -> None:
    """A copy of 5 symbols feeds 10 tokens; scores of softmax grow with the length, and those of conv do not."""
    short = {"data": {"name": "copy", "length": 5, "lengths": [9]}}
    narrow, broad = ({**tree(block_size=size), **short} for size in (32, 512))
    n_tokens = TrainerConfig().batch_size * 100 * 10
    at_its_length = flops_per_token(dataclasses.replace(from_dict(narrow).model, block_size=10))
    assert matching.flops(from_dict(narrow)) == matching.flops(from_dict(broad)) == n_tokens * at_its_length
    arm = {**tree(attention="conv", position="none", block_size=512), **short}
    found = match(broad, arm, "flops")[1]
    assert found is not None
    assert found.target == n_tokens * at_its_length
    assert found == match(narrow, {**tree(attention="conv", position="none"), **short}, "flops")[1]
