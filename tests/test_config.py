"""The config of a run: whole, round trip, per-layer rules, and what is refused. Where runs are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlab import optimizer, registry, rundir, rundirs, schedule, text, tokenizer  # noqa: F401  (register variants)
from gptlab.config import LAYER_SLOTS, ModelConfig, RunConfig, TrainerConfig, from_dict, merge_spec, to_dict
from gptlab.errors import CheckpointError, ConfigError
from gptlab.tokenizer import ByteTokenizer


def config(**changes: Any) -> RunConfig:
    return RunConfig(**{"data": {"name": "text", "path": "a.txt"}, **changes})


def test_whole_writes_every_option_of_every_variant_and_absolute_paths() -> None:
    whole = rundir.whole(config(model=ModelConfig(norm={"name": "layernorm"}, position={"name": "rope", "theta": 5.0})))
    for slot in registry.SLOTS:
        spec = getattr(whole.model if slot in LAYER_SLOTS else whole, slot)
        assert set(spec) == {"name", *registry.options(registry.get(slot, spec["name"]))}
    assert whole.model.position["theta"] == 5.0
    assert whole.data["path"] == str(Path("a.txt").absolute())
    assert rundir.whole(whole) == whole


def test_a_config_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    rules = [{"at": "1::2", "attention": {"window": 4}}, {"at": -1, "mlp": "glu"}]
    before = rundir.whole(config(name="ünïcode", seed=2**62, model=ModelConfig(layers=rules, vocab_size=9)))
    rundir.write(tmp_path / "r", before, ByteTokenizer(), {"overrides": ["seed=3"]})
    assert rundir.read_config(tmp_path / "r") == before
    assert "ünïcode" in (tmp_path / "r" / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize("spoilt", ["[1]", "model: {n_layr: 3}", "foo: 1", "model: [", "", "\x00", "seed: -1"])
def test_a_config_that_was_spoilt_is_one_line(spoilt: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(spoilt)
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        rundir.read_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_plain_data_is_what_yaml_can_hold() -> None:
    tree = to_dict(config())
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree
    assert from_dict(tree) == config()


@pytest.mark.parametrize(
    "base, new, merged",
    [
        ({"name": "a", "x": 1}, {"x": 2}, {"name": "a", "x": 2}),
        ({"name": "a", "x": 1}, {"name": "a", "y": 2}, {"name": "a", "x": 1, "y": 2}),
        ({"name": "a", "x": 1}, "a", {"name": "a", "x": 1}),
        ({"name": "a", "x": 1}, "b", {"name": "b"}),
        ({"name": "a", "x": 1}, {"name": "b", "y": 2}, {"name": "b", "y": 2}),
    ],
)
def test_a_rule_changes_options_or_the_whole_variant(base: dict[str, Any], new: Any, merged: dict[str, Any]) -> None:
    assert merge_spec(base, new) == merged


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig(n_layer=-1),
        lambda: ModelConfig(n_head=0),
        lambda: ModelConfig(dropout=1.0),
        lambda: ModelConfig(init_std=0.0),
        lambda: TrainerConfig(steps=0),
        lambda: TrainerConfig(keep=0),
        lambda: TrainerConfig(clip=float("nan")),
        lambda: TrainerConfig(on_nonfinite="hope"),
        lambda: RunConfig(init=""),
        lambda: config(seed=2**63),
        lambda: config(name=""),
        lambda: config(name="a/b"),
        lambda: config(name=".."),
        lambda: config(logger="loud"),
        lambda: ModelConfig(layers=[{"at": 0, "attention": 3}]).slots_of_layers(),
        lambda: ModelConfig(layers=[{"at": "::0", "mlp": "none"}]).slots_of_layers(),
        lambda: ModelConfig(layers=[{"at": "5:", "mlp": "none"}]).slots_of_layers(),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert "\n" not in str(refused.value)


def make_run(path: Path, *files: str) -> None:
    path.mkdir(parents=True)
    for name in files or ("config.yaml", "tokenizer.json"):
        (path / name).touch()


def test_the_newest_run_is_latest_and_what_wandb_writes_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="There is no run under"):
        rundirs.find("latest")
    for age, name in enumerate(("new", "old")):
        make_run(Path("runs/x") / name)
        when = time.time() - 100 * age
        os.utime(f"runs/x/{name}/config.yaml", (when, when))
    make_run(Path("runs/x/new/wandb/offline-run/files"), "config.yaml")
    assert rundirs.recent() == ["runs/x/new", "runs/x/old"]
    assert rundirs.find("latest") == Path("runs/x/new")
    assert rundirs.find("runs/x/old") == Path("runs/x/old")


def test_a_new_run_needs_a_directory_that_is_new_or_empty(tmp_path: Path) -> None:
    assert rundirs.fresh(str(tmp_path), "x") == tmp_path
    assert rundirs.fresh(str(tmp_path / "new"), "x") == tmp_path / "new"
    assert rundirs.fresh(None, "x").parent == Path("runs/x")
    assert rundirs.fresh(None, "x") != rundirs.fresh(None, "x")
    make_run(tmp_path / "r")
    for taken in (tmp_path / "r", tmp_path / "r" / "config.yaml"):
        with pytest.raises(ConfigError, match="must be new or empty"):
            rundirs.fresh(str(taken), "x")
