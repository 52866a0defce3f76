"""gptlab compare on runs that really trained: a sweep becomes arms, a table and a page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import studies_on_disk as disk
import tiny

from gptlab import compare


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sweep of two arms and three seeds, and one run of another length."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.write_text(folder)
        assert tiny.run("-m", "model/mlp=gelu,swiglu", "seed=0,1,2", "run_dir=sweep").code == 0
        assert tiny.run("model/mlp=gelu", "trainer.steps=6", "run_dir=short").code == 0
    return folder


@pytest.fixture(autouse=True)
def _there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_a_sweep_becomes_arms_with_a_table_and_a_page(home: Path, tmp_path: Path) -> None:
    ended = tiny.call(compare, "sweep", "--out", str(tmp_path))
    assert (ended.code, ended.err) == (0, "")
    assert "3 seeds, costs not matched, fixed recipe." in " ".join(ended.out.split())
    assert ended.out.splitlines()[-1] == str(tmp_path / "index.html")
    read = {row["arm"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert list(read) == ["mlp=gelu", "mlp=swiglu"]
    trained = [tiny.summary(path.parent) for path in sorted(home.glob("sweep/*/summary.json"))]
    means = [sum(one["val_loss"] for one in trained[begin : begin + 3]) / 3 for begin in (0, 3)]
    assert [float(row["mean"]) for row in read.values()] == pytest.approx(means, rel=1e-15)
    assert float(read["mlp=swiglu"]["effect"]) == pytest.approx(means[1] - means[0])
    assert [int(row["parameters"]) for row in read.values()] == [trained[0]["parameters"], trained[3]["parameters"]]


def test_the_same_arm_twice_differs_by_exactly_nothing(tmp_path: Path) -> None:
    assert tiny.run("-m", "model/mlp=gelu", "seed=0,1,2", "run_dir=again").code == 0
    for path in sorted(Path("again").iterdir()):
        if path.is_dir():  # the same training, under another name
            config = path / "config.yaml"
            config.write_text(config.read_text().replace("n_layer: 1", "n_layer: 1\n  extra: 1"))
    assert tiny.call(compare, "sweep", "again", "--out", str(tmp_path)).code == 0
    effects = json.loads((tmp_path / "verdict.json").read_text())["effects"]
    assert [effect["mean"] for effect in effects if "extra=1" in effect["arm"]] == [0.0]


def test_runs_of_another_length_are_an_arm_and_that_is_said(tmp_path: Path) -> None:
    ended = tiny.call(compare, "sweep", "short", "--out", str(tmp_path))
    said = " ".join(ended.out.split())
    assert "trained for 6 steps" in said
    assert "compared as they are" in said


def test_without_a_place_the_page_goes_under_runs() -> None:
    ended = tiny.call(compare, "sweep", "--margin", "0.5")
    written = Path(ended.out.splitlines()[-1])
    assert written.is_file()
    assert written.parts[:2] == ("runs", "comparison")
    assert json.loads((written.parent / "verdict.json").read_text())["margin"] == 0.5


def test_a_study_gets_its_own_page_again_but_not_by_another_measure(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"gelu": [], "swiglu": []})
    for seed in range(3):
        disk.write_point(tmp_path, "gelu", seed, 2.0 + seed / 100)
        disk.write_point(tmp_path, "swiglu", seed, 1.9 + seed / 90)
    assert tiny.call(compare, str(tmp_path)).out.splitlines()[-1] == str(tmp_path / "index.html")
    before = (tmp_path / "verdict.json").read_bytes()
    ended = tiny.call(compare, str(tmp_path), "--baseline", "swiglu")
    assert ended.code == 0
    assert "gelu is worse than swiglu" in " ".join(ended.out.split())
    assert (tmp_path / "verdict.json").read_bytes() == before


def test_latest_is_the_newest_run_with_what_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text("{}")  # of nothing under runs/
    ended = tiny.call(compare, "latest")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"gptlab: There is no run under {tmp_path / 'runs'}")
    tiny.write_text(tmp_path)
    assert tiny.run("-m", "model/mlp=gelu,swiglu", "run_dir=runs/sweep", "trainer.steps=3").code == 0
    said = " ".join(tiny.call(compare, "latest").out.split())
    assert "mlp=gelu" in said
    assert "mlp=swiglu" in said
    study = tmp_path / "runs" / "mlps" / "now_study"
    disk.write_plan(study, {"one": [], "other": []})
    for seed in range(2):
        disk.write_point(study, "one", seed, 2.0)
        disk.write_point(study, "other", seed, 1.9)
        (study / "test" / "one" / f"seed{seed}" / "tokenizer.json").touch()
    assert tiny.call(compare, "latest").out.splitlines()[-1] == str(Path("runs/mlps/now_study/index.html"))
    assert tiny.run("run_dir=runs/alone", "trainer.steps=3").code == 0
    assert "all" in tiny.call(compare, "latest").out.split()


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["nothing"],
            "gptlab: A comparison needs directories of runs, but nothing holds none: look under runs/.",
        ),
        (
            ["sweep", "nowhere"],
            "gptlab: A comparison needs directories of runs, but nowhere holds none: look under runs/.",
        ),
        (["sweep", "--metric", "val/los"], "gptlab: None of the runs measured 'val/los'. Did you mean 'val/loss'?"),
        (
            ["sweep", "--margin", "-1"],
            "gptlab: margin must be a number of 0 or more, but is -1.0: give the largest difference that does not",
        ),
        (["sweep", "--margin", "inf"], "gptlab: margin must be a number of 0 or more, but is inf: "),
        (["sweep", "--margin", "nan"], "gptlab: margin must be a number of 0 or more, but is nan: "),
        (["sweep", "--margin", "x"], "gptlab: Argument --margin: invalid float value: 'x': see gptlab compare --help."),
        (["sweep", "--colour"], "gptlab: Unrecognized arguments: --colour: see gptlab compare --help."),
        ([], "gptlab: The following arguments are required: DIR: see gptlab compare --help."),
    ],
)
def test_what_cannot_be_compared_is_one_line(words: list[str], line: str) -> None:
    ended = tiny.call(compare, *words)
    assert ended.code == 2
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == 1
