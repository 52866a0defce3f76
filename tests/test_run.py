"""A run from start to end, stopped in every way there is, and going on as if it had never been."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from gptlab import checkpoint, data, report, run, rundir, runlog
from gptlab.cli import run_hydra
from gptlab.display import PlainDisplay
from gptlab.errors import Pruned
from gptlab.evaluation import evaluate

# A training that kills itself inside its n-th save, when a function of checkpoint.py is called.
KILLED = """
import itertools, os, signal, sys
from gptlab import checkpoint, train
calls, (where, at) = itertools.count(1), sys.argv[1:3]
original = getattr(checkpoint, where)
def deadly(*arguments):
    if next(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(checkpoint, where, deadly)
train.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with dropout that nothing disturbed, beside its text."""
    folder = tmp_path_factory.mktemp("unbroken")
    tiny.write_text(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert tiny.run("run_dir=whole").code == 0
    finally:
        os.chdir(before)
    return folder / "whole"


@pytest.fixture
def home(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with the same text."""
    shutil.copy(unbroken.parent / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)  # half of the time of a tiny run
    return tmp_path


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, how: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal while it draws the batch of a step, as a person would at any moment."""
    original = run.Run._batch

    def batch(self: run.Run, step: int) -> object:
        if step == steps - 1:
            os.kill(os.getpid(), how)
        return original(self, step)

    monkeypatch.setattr(run.Run, "_batch", batch)


def resume(*words: str) -> tiny.Ended:
    return tiny.call(tiny.train, "resume=r", *words)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def newest(run_dir: str) -> Path:
    path = checkpoint.newest(Path(run_dir))
    assert path is not None
    return path


def test_a_run_leaves_everything_that_it_should(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    expected = "checkpoints command.json config.yaml curve.png metrics.jsonl samples.jsonl summary.json tokenizer.json"
    assert names == set(expected.split())
    told = tiny.summary(unbroken)
    assert told["status"] == "done"
    assert told["step"] == told["steps"] == 12
    assert told["error"] is None
    last = [row for row in tiny.rows(unbroken) if "val/loss" in row]
    assert [row["step"] for row in last] == [6, 12]
    assert told["val_loss"] == last[-1]["val/loss"]
    assert told["val_bpb"] == last[-1]["val/bpb"]
    assert told["best_val_loss"] == min(row["val/loss"] for row in last)
    assert {"gptlab", "torch", "python"} <= told["versions"].keys()
    assert told["parameters"] > 0
    assert told["flops_per_token"] > 6 * told["parameters"] * 0.5
    assert [row["step"] for row in tiny.rows(unbroken, "samples.jsonl")] == [6, 12]
    assert [path.name for path in sorted((unbroken / "checkpoints").iterdir())] == ["step_00000009", "step_00000012"]


def test_the_command_and_the_chosen_variants_are_written_beside_the_config(unbroken: Path) -> None:
    command = json.loads((unbroken / "command.json").read_text())
    assert "model.dropout=0.2" in command["overrides"]
    assert command["variants"]["attention"] == "flash"


def test_the_same_command_gives_the_same_bits(unbroken: Path, home: Path) -> None:
    assert tiny.run("run_dir=r").code == 0
    tiny.must_be_same(home / "r", unbroken)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_had_never_been_stopped(
    how: signal.Signals, unbroken: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(5, patch, how)
        ended = tiny.run("run_dir=r")
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert tiny.summary("r")["status"] == "interrupted"
    assert newest("r").name == "step_00000005"
    assert resume().code == 0
    tiny.must_be_same(home / "r", unbroken)
    assert tiny.summary("r")["status"] == "done"


def test_a_run_stopped_before_its_first_checkpoint_begins_again(unbroken: Path, home: Path) -> None:
    assert tiny.run("run_dir=r").code == 0
    shutil.rmtree("r/checkpoints")
    assert resume().code == 0
    tiny.must_be_same(home / "r", unbroken)


def test_rows_after_the_checkpoint_are_not_written_twice(
    unbroken: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(11, patch)
        assert tiny.run("run_dir=r").code == 130
    shutil.rmtree(newest("r"))  # so that the rows of steps 10 and 11 have no checkpoint
    assert newest("r").name == "step_00000009"
    assert resume().code == 0
    tiny.must_be_same(home / "r", unbroken)


def test_a_second_ctrl_c_stops_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(5, monkeypatch)
    original = runlog.RunLog.note

    def note(self: runlog.RunLog, text: str) -> None:
        original(self, text)
        if text.startswith("Stopping"):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runlog.RunLog, "note", note)
    assert tiny.run("run_dir=r").code == 130
    assert newest("r").name == "step_00000003"
    assert tiny.summary("r")["status"] == "interrupted"


@pytest.mark.parametrize("where, left", [("_put_in_place", 19), ("_remove_old", 20)])
def test_killed_in_its_20th_save_it_resumes_to_the_same_bits(where: str, left: int, home: Path) -> None:
    settings = tiny.overrides("trainer.steps=24", "trainer.save_every=1", "trainer.eval_every=12")
    (home / "killed.py").write_text(KILLED)
    killed = tiny.spawn("killed.py", where, "20", *settings, "run_dir=r", cwd=home)
    assert tiny.call(tiny.train, *settings, "run_dir=whole").code == 0
    assert tiny.finish(killed).code == -signal.SIGKILL
    assert tiny.summary("r")["status"] == "running"
    assert newest("r").name == f"step_{left:08d}"
    assert resume().code == 0
    tiny.must_be_same(home / "r", home / "whole")


@pytest.mark.parametrize(
    "damage, file", [(flip, "model.safetensors"), (truncate, "optimizer.safetensors"), (Path.unlink, "manifest.json")]
)
def test_a_damaged_newest_checkpoint_is_passed_over_and_said_so(
    damage: object, file: str, unbroken: Path, home: Path
) -> None:
    shutil.copytree(unbroken, "r")
    assert callable(damage)
    damage(newest("r") / file)
    ended = resume()
    assert ended.code == 0
    assert "Damaged and not used: step_00000012" in ended.out
    assert "Going on from step_00000009" in ended.out
    tiny.must_be_same(home / "r", unbroken)


def test_no_good_checkpoint_is_one_clear_line(unbroken: Path, home: Path) -> None:
    shutil.copytree(unbroken, "r")
    for path in Path("r/checkpoints").glob("*/model.safetensors"):
        flip(path)
    ended = resume()
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "No checkpoint in r is good" in ended.err


FIXED = {
    "model.n_layer=2": "model.n_layer cannot change",
    "model/attention=mean": "model.attention cannot change",
    "position.theta=500": "model.position.theta cannot change",
    "seed=1": "seed cannot change",
    "data=python": "data cannot change",
    "tokenizer=byte": "tokenizer cannot change",
    "optimizer.lr=0.1": "optimizer.lr cannot change",
    "trainer.batch_size=8": "trainer.batch_size cannot change",
    "trainer.precision=bf16": "trainer.precision cannot change",
}


@pytest.mark.parametrize("word", FIXED)
def test_what_cannot_change_is_refused_by_name(word: str, unbroken: Path, home: Path) -> None:
    shutil.copytree(unbroken, "r")
    before = {path: path.stat().st_mtime_ns for path in Path("r").rglob("*")}
    ended = resume(word, "trainer.steps=20")
    assert ended.code == 2
    assert FIXED[word] in ended.err
    assert ended.err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in Path("r").rglob("*")}


def test_what_is_named_again_with_its_old_value_is_no_change(
    unbroken: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken, "r")
    monkeypatch.chdir(unbroken.parent)  # where the relative path of its text was written
    again = ["model/attention=flash", "model.n_layer=1", "position.theta=10000", "seed=0", "data.path=text.txt"]
    ended = tiny.call(tiny.train, f"resume={home / 'r'}", "trainer.steps=13", *again)
    assert ended.code == 0, ended.err


def test_a_finished_run_says_so_and_how_to_go_on(unbroken: Path, home: Path) -> None:
    shutil.copytree(unbroken, "r")
    ended = resume()
    assert ended.code == 2
    assert "r is done" in ended.err
    assert "raise trainer.steps" in ended.err
    assert tiny.summary("r")["status"] == "done"


def test_a_longer_run_stays_longer_when_it_is_stopped_again(
    unbroken: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken, "r")
    with monkeypatch.context() as patch:
        stop_after(14, patch)
        assert resume("trainer.steps=16").code == 130
    assert resume().code == 0
    assert tiny.summary("r")["step"] == 16
    assert [row["step"] for row in tiny.rows("r")] == [1, *range(2, 17, 2)]


def test_latest_is_the_run_begun_last(home: Path) -> None:
    for seed in (0, 1):
        assert tiny.run(f"seed={seed}", "trainer.steps=3").code == 0
    wandbs = next(Path("runs").glob("*/*")) / "wandb" / "offline-run" / "files"
    wandbs.mkdir(parents=True)
    (wandbs / "config.yaml").write_text("seed: {value: 7}")
    ended = tiny.call(tiny.train, "resume=latest", "trainer.steps=4")
    assert ended.code == 0, ended.err
    configs = {path: yaml.safe_load(path.read_text()) for path in Path("runs").glob("*/*/config.yaml")}
    assert {tree["seed"]: tree["trainer"]["steps"] for tree in configs.values()} == {0: 3, 1: 4}


def test_another_text_in_the_place_of_the_old_one_is_refused(unbroken: Path, home: Path) -> None:
    assert tiny.run("run_dir=r").code == 0
    with Path("text.txt").open("a") as text:
        text.write("the end\n" * 50)
    ended = resume("trainer.steps=13")
    assert ended.code == 2
    assert "another text" in ended.err
    assert ended.err.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run_with_1_and_keeps_its_checkpoints(home: Path) -> None:
    ended = tiny.run("run_dir=r", "optimizer.lr=1e30", "trainer.save_every=1")
    assert ended.code == 1
    assert "not finite at step 2" in ended.err
    assert ended.err.count("\n") == 1
    told = tiny.summary("r")
    assert told["status"] == "failed"
    assert "not finite" in told["error"]
    assert told["step"] == 1
    assert newest("r").name == "step_00000001"


def test_skipped_steps_are_counted_across_a_resume(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["optimizer.lr=1e30", "trainer.on_nonfinite=skip"]
    assert tiny.run("run_dir=whole", *words).code == 0
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        assert tiny.run("run_dir=r", *words).code == 130
    assert resume().code == 0
    assert tiny.summary("r")["skipped_steps"] == 11 == tiny.rows("r")[-1]["skipped_steps"]
    assert tiny.rows("r") == tiny.rows("whole")


def test_running_out_of_memory_is_one_line_with_what_to_lower(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(run, "train", exhausted)
    ended = tiny.run("run_dir=r")
    assert ended.code == 1
    assert "lower trainer.batch_size" in ended.err
    assert ended.err.count("\n") == 1
    assert tiny.summary("r")["status"] == "failed"


def test_a_sample_past_the_end_of_a_learned_position_is_shortened(home: Path) -> None:
    ended = tiny.run("run_dir=r", "position=learned", "trainer.sample_tokens=50", "trainer.sample_prompt=the")
    assert ended.code == 0, ended.err
    assert all(len(row["text"]) == 3 + 16 + 1 - 3 for row in tiny.rows("r", "samples.jsonl"))


def test_a_real_ctrl_c_on_the_real_command_saves_first(home: Path) -> None:
    words = tiny.overrides("run_dir=r", "trainer.steps=100000", "trainer.save_every=0", "trainer.eval_every=0")
    process = tiny.spawn("-m", "gptlab.train", *words, cwd=home)
    try:
        wait_for(home / "r" / "metrics.jsonl", process)
        process.send_signal(signal.SIGINT)
        ended = tiny.finish(process)
    finally:
        process.kill()
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert tiny.summary("r")["status"] == "interrupted"
    assert newest("r")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_bytes():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_handlers_of_the_caller_come_back(home: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_hydra(tiny.overrides("run_dir=r", "trainer.steps=3"))
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_run_records_what_a_comparison_needs(unbroken: Path) -> None:
    told = tiny.summary(unbroken)
    assert [row["flops"] for row in tiny.rows(unbroken)] == [
        row["tokens"] * told["flops_per_token"] for row in tiny.rows(unbroken)
    ]
    assert 0 < told["seconds_per_step"] < 10
    assert told["peak_memory"] > 2**20
    assert len(told["signature"]["data"]) == 16
    assert all(re.fullmatch("[0-9a-f]{8}", found) for found in told["signature"]["init"].values())
    assert set(told["signature"]["init"]) == {name for name, _ in rundir.load(unbroken)[0].named_parameters()}


def test_signatures_agree_where_runs_share_tensors_and_batches(unbroken: Path, home: Path) -> None:
    told = {"whole": tiny.summary(unbroken)["signature"]}
    for name, word in {"gated": "model/mlp=swiglu", "seed": "seed=1", "long": "trainer.steps=13"}.items():
        assert tiny.run(f"run_dir={name}", word).code == 0
        told[name] = tiny.summary(name)["signature"]
    shared = told["whole"]["init"].keys() & told["gated"]["init"].keys()
    assert {"token_embedding.weight", "blocks.0.attention.q.weight"} <= shared
    same = {name for name in shared if told["whole"]["init"][name] == told["gated"]["init"][name]}
    assert shared - same <= {"blocks.0.mlp.up.weight", "blocks.0.mlp.proj.weight"}, "of another shape"
    assert told["gated"]["data"] == told["whole"]["data"]
    assert told["long"]["init"] == told["whole"]["init"]
    assert len({told[name]["data"] for name in ("whole", "seed", "long")}) == 3
    assert told["seed"]["init"]["token_embedding.weight"] != told["whole"]["init"]["token_embedding.weight"]


def test_a_resumed_run_keeps_the_signature_of_its_beginning(
    unbroken: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert tiny.run("run_dir=r").code == 130
    assert resume().code == 0
    assert tiny.summary("r")["signature"] == tiny.summary(unbroken)["signature"]


def test_a_run_that_is_watched_may_be_pruned(unbroken: Path, home: Path) -> None:
    config = rundir.read_config(unbroken)
    config.run_dir = str(home / "r")
    seen: list[dict[str, float]] = []

    def watch(row: Mapping[str, float]) -> None:
        seen.append(dict(row))
        raise Pruned

    told = io.StringIO()
    status, run_dir = run.start(config, {"study": {"arm": "a"}}, PlainDisplay(told), watch)
    assert (status, run_dir) == ("pruned", home / "r")
    assert [row["step"] for row in seen] == [6]
    assert seen[0]["val/loss"] == tiny.rows("r")[-1]["val/loss"]
    assert (tiny.summary("r")["status"], tiny.summary("r")["error"]) == ("pruned", None)
    assert "step 6/12" in told.getvalue()
    assert json.loads(Path("r/command.json").read_text())["study"] == {"arm": "a"}


def test_a_run_is_evaluated_on_the_half_that_is_asked_for(unbroken: Path, home: Path) -> None:
    losses = {"all": tiny.summary(unbroken)["val_loss"]}
    sizes = {}
    for part in ("first", "second"):
        assert tiny.run(f"run_dir={part}", f"trainer.eval_part={part}").code == 0
        told = tiny.summary(part)
        assert told["ruler"] == {}, "it measures the whole split"
        model, text = rundir.load(part)
        tokens = text.encode(Path("text.txt").read_text())
        val = data.part_of(np.array(tokens[-math.ceil(len(tokens) * 0.1) :]), part)
        losses[part], sizes[part] = told["val_loss"], len(val) - 1
        assert evaluate(model, val, batch_size=3) == pytest.approx(told["val_loss"], rel=1e-6)
    mean = sum(losses[part] * sizes[part] for part in sizes) / sum(sizes.values())
    assert mean == pytest.approx(losses["all"], rel=0.01), "windows are cut at other places"
    assert losses["first"] != losses["second"]
    refused = tiny.call(tiny.train, "resume=first", "trainer.eval_part=all", "trainer.steps=20")
    assert "trainer.eval_part cannot change" in refused.err
    assert "trainer.eval_part must be one of all, first, second" in tiny.run("trainer.eval_part=third").err


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["trainer.tokens_per_step=100"], "trainer.tokens_per_step must be a multiple of a micro-batch of"),
        (["trainer.tokens_per_step=64", "trainer.accumulate=3"], "asks for"),
        (["trainer.residual_in_fp32=false"], "trainer.residual_in_fp32=false is about bf16 and fp16"),
        (["trainer.cuda_graphs=true"], "trainer.cuda_graphs needs a CUDA device, but this is cpu"),
        (["trainer.cuda_graphs=true", "trainer.compile=false"], "replays a compiled step"),
        (["trainer.cuda_graphs=maybe"], "trainer.cuda_graphs must be one of auto, true, false, but is 'maybe'"),
        (["trainer.activation_checkpointing=all"], "must be one of none, selective, block"),
    ],
)
def test_settings_of_a_step_that_cannot_be_are_refused(words: list[str], refused: str, tmp_path: Path) -> None:
    ended = tiny.run(f"run_dir={tmp_path}/run", "trainer.device=cpu", *words)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert refused in ended.err
    assert not (tmp_path / "run").exists()


def test_a_budget_of_tokens_is_so_many_micro_batches(tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path)
    ended = tiny.run(f"data.path={text}", f"run_dir={tmp_path}/run", "trainer.tokens_per_step=192", "trainer.steps=3")
    assert ended.code == 0, ended.err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["accumulate"] == 3
    assert tiny.rows(tmp_path / "run")[-1]["tokens"] == 3 * 192
