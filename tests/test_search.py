"""A search: what its words mean, what is drawn, pruned and ranked, and that it goes on however it was stopped.

Trials are mostly not trained here: a stand-in tells values and leaves what a run would.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from gptlab import cli, points, report, tune
from gptlab.errors import ConfigError, Pruned
from gptlab.matching import changed
from gptlab.points import Order
from gptlab.studies import journal, ranking, search, space
from gptlab.studies.settings import TUNING_SEEDS
from gptlab.studies.settings import read as read_study_words
from gptlab.studies.space import Dimension, read

pytest.importorskip("optuna", reason="a search is drawn by Optuna: pip install 'gptlab[tune]'")

BASE = [word for word in tiny.overrides() if not word.startswith(("trainer.save_every", "trainer.sample_every"))]
LR = "optimizer.lr=log:1e-4..1e-1"
DRAW = ranking._draw


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory but for a small text; nothing is drawn."""
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
    monkeypatch.setattr(ranking, "_draw", lambda *arguments: "<svg></svg>")
    return tmp_path


@functools.cache
def composed() -> dict[str, Any]:
    """The config of a tiny run."""
    return cli.compose(tiny.overrides())


def compose(words: Sequence[str]) -> dict[str, Any]:
    """A config as cli.compose makes it, of the numbers that tests search."""
    tree = composed()
    for key, value in (word.split("=") for word in words):
        kind = {"optimizer.lr": float, "model.dropout": float, "model.n_layer": int, "trainer.eval_every": int}.get(key)
        tree = changed(tree, key, kind(value)) if kind else tree
    return tree


def loss(order: Order) -> float | str:
    """What a stand-in comes to: best at a rate of 0.01."""
    return 2 + abs(order.config["optimizer"]["lr"] - 0.01)


class Stand:
    """Runs a trial by leaving its files: the value falls to the given one; a string is why it failed."""

    def __init__(self, value: Callable[[Order], float | str] = loss, stop_after: int | None = None) -> None:
        self.value, self.stop_after = value, stop_after
        self.ran: list[Order] = []

    def __call__(self, file: Path, watch: Any = None) -> str:
        if self.stop_after == len(self.ran):
            raise KeyboardInterrupt
        order = Order.read(file)
        self.ran.append(order)
        value = self.value(order)
        order.run_dir.mkdir(exist_ok=True)
        if isinstance(value, str):
            order.fail(value)
            return "failed"
        rows = [{"step": step, "val/loss": value + (12 - step) / 12} for step in (3, 6, 9, 12)]
        return self._leave(order, rows, watch)

    def _leave(self, order: Order, rows: list[dict[str, Any]], watch: Any) -> str:
        status, told = "done", []
        for row in rows:
            told.append(row)
            try:
                watch(row)
            except Pruned:
                status = "pruned"
                break
        (order.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        (order.run_dir / "command.json").write_text(json.dumps({"study": order.place}))
        (order.run_dir / "summary.json").write_text(json.dumps({"status": status, "step": told[-1]["step"]}))
        return status


def run(monkeypatch: pytest.MonkeyPatch, *words: str, stand: Stand | None = None) -> tiny.Ended:
    """A search of stand-ins, one after the other."""
    monkeypatch.setattr(points, "carry_out", stand or Stand())
    door = type("Door", (), {"main": lambda argv: _end(search.tune(argv, compose, lambda threads: 1, list))})
    return tiny.call(door, *words)


def _end(code: int) -> None:
    if code:
        raise SystemExit(code)


def table(directory: str) -> list[dict[str, str]]:
    """The ranked trials, without what a clock decides."""
    return list(csv.DictReader(Path(directory, "table.csv").open()))


# What words mean


def test_ranges_and_lists_are_searched_and_everything_else_is_for_all_trials() -> None:
    asked = read(
        [LR, "model/mlp=gelu,swiglu", "schedule.warmup=0.0..0.1", "model.n_layer=2..8", "trials=7", "data=text"]
    )
    assert asked.space == [
        Dimension("optimizer.lr", ["1e-4", "1e-1"], ranges=True, log=True),
        Dimension("model/mlp", ["gelu", "swiglu"]),
        Dimension("schedule.warmup", ["0.0", "0.1"], ranges=True),
        Dimension("model.n_layer", ["2", "8"], ranges=True),
    ]
    assert (asked.base, asked.settings.trials, asked.settings.seed) == (["data=text"], 7, TUNING_SEEDS)
    for word in ("data.path=../text.txt", "model.layers=[{at: '1::2', mlp: gelu}]", "data.path='a..b'", "x.y=v1.2"):
        assert read([word]).base == [word]


def test_what_is_drawn_is_written_shortly_and_stays_in_its_range() -> None:
    made = read(["optimizer.lr=log:1.23444e-4..1e-2"]).space[0]
    assert made.override(0.00123456) == "optimizer.lr=0.001235"
    assert made.override(1.23445e-4) == "optimizer.lr=0.000123444"
    assert Dimension("a.b", ["2", "8"], ranges=True, whole=True).override(3) == "a.b=3"


def test_the_setting_says_whether_a_range_is_of_whole_numbers() -> None:
    asked, trees = space.settled(read([LR, "model.dropout=0..1", "model.n_layer=1..2"]), compose)
    assert [dimension.whole for dimension in asked.space] == [False, False, True]
    assert [tree["model"]["n_layer"] for tree in trees] == [1, 1, 1, 2]


REFUSED = {
    "": "needs a setting to search",
    "optimizer.lr=1e-2..1e-4": "A range goes up",
    "optimizer.lr=log:0..1": "begins above 0",
    "model.n_layer=int:2..8": "is no range: write low..high",
    "optimizer.lr=log:1e-4,1e-2": "is no range",
    "optimizer.lr=1e-4..": "is no range",
    "model/mlp=gelu,,swiglu": "lists a value twice, or none",
    "model/mlp=gelu,swigl": "There is no mlp named 'swigl'. Did you mean 'swiglu'?",
    "optimizer.lrr=1..2": "optimizer 'adamw' has no option 'lrr'",
    "model.n_layer=0.5..2": "n_layer",
    "model.norm_place=1..2": "norm_place",
    "trails=5": "There is no setting 'trails'. Did you mean 'trials'?",
    f"{LR} trials=0": "trials must be 1 or more",
    f"{LR} sampler=tpee": "Did you mean 'tpe'?",
    f"{LR} sampler=grid": "A grid takes values one by one",
    f"{LR} optimizer.lr=0.1": "said twice",
    f"{LR} resume=latest": "say dir=",
    "trainer.steps=10..20": "say prune=none",
    f"{LR} hydra/launcher=ray": "say jobs=",
    f"{LR} -m": "takes KEY=VALUE",
    f"{LR} seed=1,2": "seed must be",
    f"{LR} model.n_embd=15": "n_head",
    f"{LR} data.path=no.txt": "no.txt",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_means_nothing_is_one_line_and_leaves_nothing(words: str, home: Path) -> None:
    keys = {word.partition("=")[0] for word in words.split()}
    ended = tiny.call(tune, *(word for word in BASE if word.partition("=")[0] not in keys), *words.split(), "dir=s")
    assert (ended.code, REFUSED[words] in ended.err) == (2, True), ended.err
    assert ended.err.count("\n") == 1
    assert not (home / "s").exists()


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = run(monkeypatch, LR)
    assert (ended.code, ended.err) == (2, "gptlab: gptlab tune needs optuna: pip install 'gptlab[tune]'\n")


# What is tried


def test_a_search_finds_the_better_rates_and_leaves_a_study_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(monkeypatch, LR, "data=text", "trials=24", "prune=none", "dir=s")
    assert ended.code == 0, ended.err
    found = table("s")
    assert [row["state"] for row in found] == ["done"] * 24
    values = [float(row["value"]) for row in found]
    assert values == sorted(values)
    assert values[0] < 2.003
    summary = tiny.summary("s")
    assert summary["command"] == f"gptlab train data=text optimizer.lr={found[0]['optimizer.lr']} seed=10000"
    assert summary["importance"] == {"optimizer.lr": 1.0}
    assert f"best    {summary['command']}" in ended.out
    order = Order.read(Path(f"s/tune/trial{found[0]['trial']}/seed10000.json"))
    assert (order.config["seed"], order.config["optimizer"]["lr"]) == (10_000, float(found[0]["optimizer.lr"]))
    assert summary["command"] in Path("s/index.html").read_text()
    assert Path("s/table.md").read_text().count("\n") == 26
    confirm = read_study_words(["study=s/confirm.yaml"]).study
    assert confirm.arms == {"before": [], "tuned": [f"optimizer.lr={found[0]['optimizer.lr']}"]}
    assert confirm.base == ["data=text"]


def test_higher_can_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, LR, "trials=6", "better=higher", "prune=none", "dir=s").code == 0
    values = [float(row["value"]) for row in table("s")]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("prune", ["median", "hyperband"])
def test_trials_that_look_worse_are_ended_early(prune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(monkeypatch, LR, "trials=20", "sampler=random", f"prune={prune}", "trainer.eval_every=3", "dir=s")
    assert ended.code == 0, ended.err
    found = table("s")
    states = [row["state"] for row in found]
    assert states == sorted(states)  # done before pruned
    assert 3 <= states.count("pruned") <= 16
    assert all(int(row["step"]) < 12 for row in found if row["state"] == "pruned")
    assert "pruned at step" in ended.out
    assert len({row["optimizer.lr"] for row in found}) == 20  # no two drawn alike


def test_that_nothing_can_be_pruned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No trial will be pruned" in run(monkeypatch, LR, "trials=1", "trainer.eval_every=12").out
    assert "No trial will be pruned" not in run(monkeypatch, LR, "trials=1", "prune=none", "trainer.eval_every=12").out


def test_a_trial_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(lambda order: "The loss was not finite." if order.config["optimizer"]["lr"] > 0.01 else loss(order))
    ended = run(monkeypatch, LR, "trials=8", "sampler=random", "dir=s", stand=stand)
    failed = [row for row in table("s") if row["state"] == "failed"]
    assert (ended.code, len(stand.ran)) == (0, 8)
    assert 0 < len(failed) < 8
    assert {row["error"] for row in failed} == {"The loss was not finite."}
    assert "failed: The loss was not finite." in ended.out


def test_where_no_trial_has_a_result_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(monkeypatch, LR, "trials=2", "dir=s", stand=Stand(lambda order: "It broke."))
    assert ended.code == 1
    assert "No trial has a result" in ended.out
    ended = run(monkeypatch, LR, "trials=1", "metric=val/los", "dir=t")
    assert (ended.code, Path("t").exists()) == (2, False)
    assert "what the runs measure, but is 'val/los'. Did you mean 'val/loss'?" in ended.err


def test_a_combination_that_cannot_be_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(words: Sequence[str]) -> dict[str, Any]:
        if {"model.n_layer=2", "model.dropout=0.2"} <= {*words}:
            raise ConfigError("They do not go together.")
        return compose(words)

    monkeypatch.setattr(points, "carry_out", Stand())
    words = ["model.n_layer=1,2", "model.dropout=0.1,0.2", "sampler=grid", "dir=s"]
    assert search.tune(words, refusing, lambda threads: 1, list) == 0
    assert [row["state"] for row in table("s")] == ["done", "done", "done", "failed"]


def test_a_grid_is_every_combination_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["optimizer.lr=1e-3,1e-2", "model.n_layer=1..3", "sampler=grid", "prune=none", "dir=s"]
    assert run(monkeypatch, *words, stand=Stand(stop_after=4)).code == 130
    assert run(monkeypatch, "dir=s").code == 0
    tried = [(row["optimizer.lr"], row["model.n_layer"]) for row in table("s")]
    assert sorted(tried) == [(rate, str(n)) for rate in ("1e-2", "1e-3") for n in (1, 2, 3)]


def test_the_figure_is_drawn_of_trials_that_ended_each_way(home: Path) -> None:
    ended = [("done", 2.5), ("done", 2.1), ("pruned", 3.0), ("failed", None), ("cut off", None)]
    found = [{"trial": number, "state": state, "value": value} for number, (state, value) in enumerate(ended)]
    drawn = DRAW(home / "figures", read([LR]), found, {"optimizer.lr": 0.8, "model.n_layer": 0.2})
    assert drawn.startswith("<svg")
    assert "best so far" in drawn
    assert {path.name for path in (home / "figures").iterdir()} == {"search.svg", "search.png"}
    assert DRAW(home / "figures", read([LR]), [], {}).startswith("<svg")


# Stopped and gone on with


def test_stopped_and_gone_on_with_it_is_the_search_that_it_would_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [LR, "model.n_layer=1..3", "trials=14", "trainer.eval_every=3"]
    assert run(monkeypatch, *words, "dir=whole").code == 0
    ended = run(monkeypatch, *words, "dir=s", stand=Stand(stop_after=7))
    assert ended.code == 130
    assert f"To go on: gptlab tune dir={Path('s').absolute()}" in ended.out
    assert tiny.summary("s")["status"] == "interrupted"
    again = Stand()
    assert run(monkeypatch, *words, "dir=s", stand=again).code == 0
    assert len(again.ran) == 7
    assert table("s") == table("whole")


def test_a_search_may_grow_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, LR, "data=text", "trials=2", "dir=s").code == 0
    more = Stand()
    assert run(monkeypatch, "dir=s", "trials=3", stand=more).code == 0
    assert len(more.ran) == 1
    for word, told in {
        "optimizer.lr=log:1e-5..1e-1": "What is searched cannot change",
        "model.n_layer=1,2": "What is searched cannot change",
        "data=numbers": "What is searched cannot change",
        "sampler=random": "sampler cannot change",
        "seed=1": "seed cannot change",
    }.items():
        ended = run(monkeypatch, "dir=s", word)
        assert (ended.code, told in ended.err) == (2, True), ended.err


def test_a_directory_of_something_else_or_in_use_is_refused(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert "holds something else" in run(monkeypatch, LR, f"dir={home}").err
    assert run(monkeypatch, LR, "trials=1", "dir=s").code == 0
    with points.alone(Path("s") / search.LOCK):
        assert "is being searched by another" in run(monkeypatch, "dir=s", "trials=2").err


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, LR, "trials=2", "dir=s").code == 0
    path = Path("s") / journal.FILE
    with path.open("a") as file:
        file.write('{"op_code": 5, "trial')
    os.symlink(path.name, f"{path}.lock")
    assert run(monkeypatch, "dir=s", "trials=4").code == 0
    assert len(table("s")) == 4


def test_after_its_hours_no_trial_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: 2000 * len(stand.ran)))
    ended = run(monkeypatch, LR, "hours=1", "dir=s", stand=stand)
    assert (ended.code, "2 of 50 trials in the hours there were. To go on" in ended.out) == (0, True)
    assert len(stand.ran) == 2
    assert len(table("s")) == 2


# Trained


def test_trials_are_trained_pruned_and_killed_without_loss(home: Path) -> None:
    words = [word for word in BASE if not word.startswith(("trainer.steps", "trainer.eval_every", "trainer.log_every"))]
    words += ["trainer.steps=120", "trainer.eval_every=3", "trainer.log_every=120", LR, "trials=2", "dir=s"]
    process = subprocess.Popen([sys.executable, "-m", "gptlab.tune", *words, "jobs=2"], stdout=subprocess.DEVNULL)
    until(lambda: all(_steps(n) for n in (0, 1)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(points.taken(Path(f"s/tune/trial{n}/seed10000.log")) for n in (0, 1)))
    drawn = [Order.read(Path(f"s/tune/trial{n}/seed10000.json")).config["optimizer"]["lr"] for n in (0, 1)]
    ended = [Order.read(Path(f"s/tune/trial{n}/seed10000.json")).ended() for n in (0, 1)]
    assert None in ended  # killed in the middle of it
    ended = tiny.call(tune, "dir=s", "jobs=1")
    assert ended.code == 0, ended.err + ended.out
    found = {row["trial"]: row for row in table("s")}
    assert [float(found[n]["optimizer.lr"]) for n in "01"] == drawn
    assert all(row["state"] == "done" and 0 < float(row["value"]) < 4 for row in found.values())


def test_a_trial_in_its_own_process_is_pruned_by_its_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.Search, "_answer", lambda self, found, step, value: "prune" if step >= 4 else "on")
    words = [*(word for word in BASE if not word.startswith("trainer.eval_every")), "trainer.eval_every=2"]
    ended = tiny.call(tune, *words, LR, "trials=1", "jobs=2", "dir=s")
    assert ended.code == 1, ended.err
    assert [(row["state"], row["step"]) for row in table("s")] == [("pruned", "4")]


def _steps(number: int) -> list[str]:
    path = Path(f"s/tune/trial{number}/seed10000/metrics.jsonl")
    return path.read_text().splitlines() if path.exists() else []


def until(holds: Any, seconds: float = 90) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
