"""One point of a study: its order, its end, its failure, and that it is run once, whoever asks."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gptlab import cli, points, report, run
from gptlab.errors import ConfigError, DataError, Pruned
from gptlab.points import Order, carry_out

PLUGIN = '''
from gptlab import register
from gptlab.components.mlp.plain import Plain


@register("mlp", "doubled")
class Doubled(Plain):
    """Twice a plain one. Nobody 2025."""

    def forward(self, x):
        return 2 * super().forward(x)
'''


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory but for a small text."""
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
    return tmp_path


def order(*words: str, arm: str = "a", seed: int = 0, **more: Any) -> Order:
    """A written order of a tiny run."""
    config = cli.compose(tiny.overrides(f"seed={seed}", "trainer.sample_every=0", *words))
    made = Order(**{"study": Path("study").absolute(), "phase": "test", "arm": arm, "seed": seed, "config": config,
                    "threads": 1, **more})  # fmt: skip
    made.write()
    return made


def asked(made: Order, **settings: Any) -> Order:
    """The order with other settings of the trainer."""
    trainer = {**made.config["trainer"], **settings}
    return dataclasses.replace(made, config={**made.config, "trainer": trainer})


def start(made: Order) -> subprocess.Popen[str]:
    """The point in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, "-m", "gptlab.points", str(made.file)], subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def until(holds: Any, seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_order_is_read_as_it_was_written_and_says_where_all_is(home: Path) -> None:
    written = order(extra={"lr": 0.003}, seed=2, threads=2)
    assert Order.read(written.file) == written
    places = (written.file, written.run_dir, written.log, written.failed)
    folder = home / "study" / "test" / "a"
    assert places == tuple(folder / f"lr0.003_seed2{end}" for end in (".json", "", ".log", ".failed"))
    assert written.status() == "waiting"
    shutil.move("study", "moved")
    moved = Order.read(Path("moved/test/a/lr0.003_seed2.json"))
    assert (moved.study, moved.hash) == (home / "moved", written.hash)


def test_the_hash_holds_what_decides_numbers_and_nothing_else() -> None:
    made = order()
    for key in ("run_dir", "logger"):
        assert dataclasses.replace(made, config={**made.config, key: "x"}).hash == made.hash
    for key in ("seed", "name", "data"):
        assert dataclasses.replace(made, config={**made.config, key: "x"}).hash != made.hash
    assert asked(made, clip=0.5).hash != made.hash
    assert dataclasses.replace(made, threads=2).hash != made.hash
    assert len(made.hash) == 16


def test_a_points_id_is_its_own_and_stays() -> None:
    made = order()
    others = [order(seed=1), order(arm="b"), order(phase="tune"), order(extra={"lr": 1.0}), asked(made, clip=0.5)]
    assert len({made.place["id"], *(other.place["id"] for other in others)}) == 6
    assert Order.read(made.file).place == made.place


@pytest.mark.parametrize("wrong", [{"arm": "a/b"}, {"arm": ".."}, {"phase": ""}, {"extra": {"x": "/"}}, {"threads": 0}])
def test_an_order_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no name of a folder|at least 1"):
        order(**wrong)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"phase": 3}'])
def test_a_file_that_is_no_order_is_one_line(text: str, home: Path) -> None:
    (home / "no.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read as the order of a point"):
        Order.read(home / "no.json")


def test_a_point_runs_to_its_end_and_prints_into_its_log_alone(capfd: pytest.CaptureFixture[str]) -> None:
    made, before = order(threads=2), torch.get_num_threads()
    assert carry_out(made.file) == "done"
    assert made.status() == "done"
    assert made.error() is None
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == before
    assert "step 12/12" in made.log.read_text()
    command = points._read(made.run_dir / "command.json")
    assert command["study"] == made.place
    assert (command["overrides"], command["variants"]["mlp"]) == ([], "plain")


def test_it_computes_with_its_own_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(run, "start", lambda *_: (seen.append(torch.get_num_threads()), ("done", None))[1])
    carry_out(order(threads=2).file)
    assert (seen, torch.get_num_threads()) == ([2], 1)


def test_what_is_done_is_not_run_again_and_another_order_in_its_place_is() -> None:
    made = order()
    carry_out(made.file)
    ended = (made.run_dir / "summary.json").stat().st_mtime_ns
    assert carry_out(made.file) == "done"
    assert (made.run_dir / "summary.json").stat().st_mtime_ns == ended
    longer = asked(made, steps=14)
    longer.write()
    assert longer.status() == "begun"
    assert carry_out(longer.file) == "done"
    assert tiny.summary(made.run_dir)["step"] == 14


def test_a_failure_is_the_last_line_of_the_log_and_costs_nothing_else() -> None:
    made = asked(order(), device="cuda:99")
    made.write()
    assert carry_out(made.file) == made.status() == "failed"
    assert "cuda:99 is not on this machine" in (made.error() or "")
    assert made.log.read_text().splitlines()[-1] == made.error()
    assert "Traceback" not in made.log.read_text()
    right = asked(made, device="cpu")
    right.write()
    assert carry_out(made.file) == right.status() == "done"
    assert (right.error(), right.failed.exists()) == (None, False)


def test_a_fault_of_ours_leaves_its_traceback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise TypeError("not\nthis")

    monkeypatch.setattr(run, "start", start)
    made = order()
    assert carry_out(made.file) == "failed"
    assert made.error() == made.log.read_text().splitlines()[-1] == "TypeError: not this"
    assert made.log.read_text().startswith("Traceback")


def test_a_training_that_breaks_is_a_failure() -> None:
    made = order("optimizer.lr=1e30", "trainer.clip=0", "schedule.warmup=0")
    assert carry_out(made.file) == "failed"
    assert tiny.summary(made.run_dir)["status"] == "failed"
    assert "finite" in (made.error() or "")


def test_what_a_killed_attempt_left_is_removed_first() -> None:
    made = order()
    (made.run_dir / "checkpoints").mkdir(parents=True)
    made.log.write_text("an attempt")
    assert made.status() == "begun"
    assert carry_out(made.file) == "done"
    assert "an attempt" not in made.log.read_text()


def test_a_point_that_is_pruned_is_finished() -> None:
    def prune(row: Any) -> None:
        raise Pruned

    made = order()
    assert carry_out(made.file, prune) == made.status() == carry_out(made.file) == "pruned"
    assert tiny.summary(made.run_dir)["step"] == 6


def test_an_interrupted_point_is_run_again_to_the_same_numbers() -> None:
    made, whole = order(), order(arm="b")
    assert carry_out(made.file, lambda row: os.kill(os.getpid(), signal.SIGTERM)) == "interrupted"
    assert (made.status(), tiny.summary(made.run_dir)["step"]) == ("begun", 6)
    assert carry_out(made.file) == carry_out(whole.file) == "done"
    tiny.must_be_same(made.run_dir, whole.run_dir)


def test_where_another_is_at_a_point_its_end_is_waited_for() -> None:
    made, ended = order(), []
    with points.alone(made.log):
        assert made.status() == "running"
        waiting = threading.Thread(target=lambda: ended.append(carry_out(made.file)))
        waiting.start()
        waiting.join(0.5)
        assert ended == []
        assert not made.run_dir.exists()
    waiting.join(60)
    assert ended == ["done"]
    assert not points.taken(made.log)


def test_two_processes_run_a_point_of_a_plugin_once(home: Path) -> None:
    (home / "mine.py").write_text(PLUGIN)
    made = order("plugins=[./mine.py]", "model/mlp=doubled")
    both = [start(made), start(made)]
    for process in both:
        process.wait(90)
        assert (process.returncode, process.stderr.read()) == (0, "")  # type: ignore[union-attr]
    steps = [row["step"] for row in tiny.rows(made.run_dir)]
    assert steps == sorted(set(steps))
    assert made.log.read_text().count("step 12/12") == 1
    assert tiny.summary(made.run_dir)["variants"]["mlp"] == "doubled"


def test_a_process_tells_by_its_exit_code_how_its_point_ended() -> None:
    made = asked(order(), device="cuda:99")
    made.write()
    process = start(made)
    assert (process.wait(60), made.status()) == (1, "failed")


def test_a_point_does_not_outlive_its_parent() -> None:
    made = order("trainer.steps=1000000", "trainer.save_every=0")
    process = start(made)
    until(lambda: (made.run_dir / "metrics.jsonl").exists())
    assert made.status() == "running"
    process.stdin.close()  # type: ignore[union-attr]
    assert process.wait(10) == 1
    assert made.status() == "begun"
