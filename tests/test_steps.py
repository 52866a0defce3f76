"""A study of steps: what each arm adds to the one before, what that brought, what it leaves behind."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import studies_on_disk as disk

from gptlab.comparison import page, runs, steps
from gptlab.comparison.records import Comparison
from gptlab.comparison.verdict import judge
from gptlab.errors import ConfigError
from gptlab.studies.settings import StudyConfig, read

LOSSES = {"bigram": [2.483, 2.484, 2.482], "head": [2.41, 2.43, 2.40], "deep": [2.44, 2.41, 2.45]}
CHANGES: dict[str, dict[str, Any]] = {
    "bigram": {"model__n_layer": 0},
    "head": {"model__n_layer": 1, "model__mlp": {"name": "none"}, "optimizer__lr": 0.003},
    "deep": {"model__n_layer": 3, "model__mlp": {"name": "none"}, "optimizer__lr": 0.003},
}
COUNTED = {"counted_bigram": {"train": 2.4546, "val": 2.4819}}


def climbed(folder: Path, **changes: Any) -> Comparison:
    """Three arms, the last of them a step back."""
    declared = {"stepwise": True, "published": {"head": "2.4 (lecture)"}, **changes}
    disk.write_plan(folder, {arm: [f"experiment={arm}"] for arm in LOSSES}, **declared)
    for arm, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            disk.write_point(folder, arm, seed, loss, tree=disk.config(seed, **CHANGES[arm]), **COUNTED)
    return runs.read_study(folder)


def steps_of(comparison: Comparison) -> list[dict[str, Any]]:
    return steps.of(comparison, page.verdict_of(comparison))


def test_a_step_is_measured_against_the_arm_before_it_with_the_error_of_all(tmp_path: Path) -> None:
    comparison = climbed(tmp_path)
    first, head, deep = steps_of(comparison)
    assert (first["effect"], first["low"], first["adds"]) == (None, None, [])
    for step, before in ((head, "bigram"), (deep, "head")):
        wanted = next(e for e in judge(comparison.values(), before).effects if e.arm == step["arm"])
        assert step["effect"] == pytest.approx(statistics.fmean(LOSSES[step["arm"]]) - statistics.fmean(LOSSES[before]))
        assert (step["low"], step["high"]) == (wanted.low, wanted.high)
    assert head["effect"] < 0 < deep["effect"]


def test_a_step_says_what_it_adds_and_which_n_gram_it_leaves_behind(tmp_path: Path) -> None:
    bigram, head, deep = steps_of(climbed(tmp_path))
    assert head["adds"] == ["n_layer 0 → 1", "mlp plain → none"]
    assert deep["adds"] == ["n_layer 1 → 3"]
    assert [step["past"] for step in (bigram, head, deep)] == ["1-gram", "2-gram", "2-gram"]
    assert [step["published"] for step in (bigram, head, deep)] == ["", "2.4 (lecture)", ""]
    assert head["seconds"] == pytest.approx(0.012 * 1000)


def test_where_higher_is_better_a_step_is_past_what_is_below_it(tmp_path: Path) -> None:
    comparison = climbed(tmp_path, metric="val/accuracy", better="higher")
    for records in comparison.arms.values():
        for record in records:
            record.summary |= {"val_accuracy": 0.5, "chance": {"accuracy": 0.1}}
    assert [step["past"] for step in steps_of(comparison)] == ["chance"] * 3


@pytest.mark.parametrize(
    "before, after, told",
    [
        ({"n_embd": 8}, {"n_embd": 8}, []),
        ({"norm": {"name": "none"}}, {"norm": {"name": "rmsnorm", "eps": 1e-5}}, ["norm none → rmsnorm"]),
        (
            {"norm": {"name": "rmsnorm", "eps": 1e-5}},
            {"norm": {"name": "rmsnorm", "eps": 1e-6}},
            ["norm.eps 1e-05 → 1e-06"],
        ),
        ({"a": {"name": "x", "b": {"name": "y"}}}, {"a": {"name": "z", "b": None}}, ["a x → z"]),
        ({"layers": []}, {"layers": [{"at": "0"}]}, ["layers [] → [{'at': '0'}]"]),
    ],
)
def test_a_part_that_is_another_is_named_without_its_options(before: Any, after: Any, told: list[str]) -> None:
    assert steps.added(before, after) == told


def test_page_file_and_terminal_tell_the_steps(tmp_path: Path) -> None:
    comparison = climbed(tmp_path)
    text = page.write(comparison, tmp_path).read_text("utf-8")
    assert "Step by step" in text
    assert "Without a model: counted bigram 2.4819, 1-gram 3.3473, 2-gram 2.4819" in text
    for words in ("mlp plain → none", "2.4 (lecture)", "stepwise: true", "published: {head: 2.4 (lecture)}"):
        assert words in text
    assert [step["arm"] for step in json.loads((tmp_path / "verdict.json").read_text())["steps"]] == list(LOSSES)
    without, first, head, _ = steps.lines(comparison, page.verdict_of(comparison))
    assert without.startswith("without a model: counted bigram 2.4819, 1-gram")
    assert first == "bigram: 2.4830, change –, past the 1-gram, published –"
    assert head.startswith("head: 2.4133, change -0.0")
    assert head.endswith("], past the 2-gram, published 2.4 (lecture)")


def test_a_study_that_is_not_of_steps_has_none(tmp_path: Path) -> None:
    comparison = climbed(tmp_path, stepwise=False, published=None)
    assert steps_of(comparison) == []
    assert list(steps.lines(comparison, page.verdict_of(comparison))) == []
    text = page.write(comparison, tmp_path).read_text("utf-8")
    assert "Step by step" not in text
    assert "stepwise" not in text


def test_an_arm_that_did_not_end_is_a_step_without_numbers(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"one": [], "two": []}, stepwise=True)
    one, two = steps_of(runs.read_study(tmp_path))
    for step in (one, two):
        assert (step["mean"], step["effect"], step["past"], step["seconds"]) == (None, None, "", None)
        assert all(isinstance(write(step), str) for write in steps.COLUMNS.values())


ARMS = {"one": ["seed=1"], "two": ["seed=2"]}


@pytest.mark.parametrize(
    "said, told",
    [
        ({"published": {"one": "2"}}, "this one has none: say stepwise=true"),
        ({"published": {"on": "2"}, "stepwise": True}, "names arms, but 'on' is none. Did you mean 'one'?"),
    ],
)
def test_what_is_published_of_no_step_is_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        StudyConfig(arms=ARMS, **said)
    assert "\n" not in str(refused.value)


def test_other_arms_than_a_presets_are_no_steps_of_it() -> None:
    study = read(["study=ladder", "model/mlp=gelu,swiglu"]).study
    assert (study.stepwise, study.published) == (False, None)
    assert read(["study=ladder", "seeds=1"]).study.stepwise
