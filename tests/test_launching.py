"""Where points run: side by side, killed and gone on with, on others' launchers; the numbers are the same anywhere."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gptlab import cli, launching, points, report
from gptlab.errors import ConfigError, Interrupted
from gptlab.launching import launch
from gptlab.points import Order
from gptlab.studies import declare

LAUNCH = "import sys; from pathlib import Path; from gptlab import exits, launching; exits.run(lambda files: "
LAUNCH += "launching.launch([*map(Path, files)], ['hydra.launcher.jobs=2'], None, print))"
STEPS = 60  # of a point that is to be caught at work
TOY = "import sys, pathlib; file = pathlib.Path(sys.argv[1]); "  # a process in the place of a point's


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory but for a small text."""
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
    return tmp_path


def plan(n: int, steps: int = 12, study: str = "study") -> list[Order]:
    """Written orders of n tiny runs that differ in their seed."""
    tree = cli.compose(tiny.overrides(f"trainer.steps={steps}", f"trainer.save_every={steps}"))
    orders = [Order(Path(study).absolute(), "test", "a=b,c", k, {**tree, "seed": k}, 1) for k in range(n)]
    for order in orders:
        order.write()
    return orders


def files(orders: Sequence[Order]) -> list[Path]:
    return [order.file for order in orders]


def uninterrupted(n: int, steps: int) -> list[Order]:
    """The same points, run in this process one after the other."""
    orders = plan(n, steps, "whole")
    launch(files(orders), ["hydra/launcher=basic"], None, print)
    return orders


def parent(orders: Sequence[Order]) -> subprocess.Popen[str]:
    """A process that launches, two points at a time; a group of its own, as a terminal makes one."""
    command, pipe = [sys.executable, "-c", LAUNCH, *map(str, files(orders))], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def until(holds: Callable[[], Any], seconds: float = 90) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes(order: Order) -> list[int]:
    """The processes that are at a point, or about to be."""
    found = subprocess.run(["pgrep", "-f", f"gptlab.points {order.file}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def must_be_same(orders: Sequence[Order], whole: Sequence[Order]) -> None:
    for order, other in zip(orders, whole, strict=True):
        assert order.status() == other.status() == "done", order.error()
        tiny.must_be_same(order.run_dir, other.run_dir)


def toy(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need no torch, in the place of points."""
    monkeypatch.setattr(launching, "command", lambda file, ranks: [sys.executable, "-c", TOY + body, str(file)])


def test_processes_give_the_numbers_of_one_process_and_a_failure_costs_itself(home: Path) -> None:
    orders, whole = plan(2), uninterrupted(2, 12)
    bad = Order(home / "study", "test", "bad", 0, {**orders[0].config, "init": "/nowhere"}, 1)
    bad.write()
    launch(files([bad, *orders]), ["hydra/launcher=processes"], 2, print)
    must_be_same(orders, whole)
    assert bad.status() == "failed"
    assert "/nowhere" in (bad.error() or "")
    assert bad.log.read_text().splitlines()[-1] == bad.error()


def test_what_is_done_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = uninterrupted(1, 12)
    monkeypatch.setattr(launching, "_start", lambda *_: pytest.fail("it is done"))
    launch(files(orders), [], None, print)
    launch([], [], None, print)


def test_a_point_that_is_killed_costs_itself_and_is_run_again() -> None:
    orders, whole = plan(2, STEPS), uninterrupted(2, STEPS)
    first = parent(orders)
    until(lambda: orders[0].status() == "running")
    time.sleep(random.random())
    os.kill(processes(orders[0])[0], signal.SIGKILL)
    assert tiny.finish(first).code == 0
    assert orders[0].error() == "Its process was killed by SIGKILL, for want of memory perhaps."
    assert orders[0].log.read_text().splitlines()[-1] == orders[0].error()
    must_be_same(orders[1:], whole[1:])
    launch(files(orders), [], 2, print)
    must_be_same(orders, whole)


def test_after_the_parent_is_killed_its_points_end_and_the_next_launch_finishes() -> None:
    orders, whole = plan(3, STEPS), uninterrupted(3, STEPS)
    first = parent(orders)
    until(lambda: any(order.status() == "running" for order in orders))
    time.sleep(2 * random.random())
    first.kill()
    tiny.finish(first)
    launch(files(orders), [], 2, print)  # at once, while those of the first may still be there
    must_be_same(orders, whole)
    until(lambda: not any(processes(order) for order in orders))


def test_two_parents_do_not_collide() -> None:
    orders, whole = plan(2), uninterrupted(2, 12)
    both = [parent(orders), parent(orders)]
    assert [tiny.finish(one).code for one in both] == [0, 0]
    must_be_same(orders, whole)
    for order in orders:
        assert order.log.read_text().count("step 12/12") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_passed_on_and_what_was_in_progress_saves(number: signal.Signals) -> None:
    orders = plan(3, 1_000_000)
    first = parent(orders)
    until(lambda: all((order.run_dir / "metrics.jsonl").exists() for order in orders[:2]))
    os.killpg(first.pid, number)
    ended = tiny.finish(first)
    assert (ended.code, ended.err) == (130, "")
    assert "Stopping after this step" in ended.out
    assert [order.status() for order in orders] == ["begun", "begun", "waiting"]
    for order in orders[:2]:
        assert tiny.summary(order.run_dir)["status"] == "interrupted"
        assert tiny.newest(order.run_dir).step == tiny.summary(order.run_dir)["step"] > 0


def test_a_second_stop_ends_at_once_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    (order,), sleep = plan(1), time.sleep
    mark = order.file.with_suffix(".pid")
    deaf = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    toy(f"{deaf} file.with_suffix('.pid').write_text(str(os.getpid())); time.sleep(60)", monkeypatch)

    def stop_after_sleep(seconds: float) -> None:
        sleep(seconds)
        if mark.exists() and mark.read_text():
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(launching.time, "sleep", stop_after_sleep)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        launch([order.file], [], 1, told.append)
    assert len(told) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_at_most_so_many_are_at_work_and_each_has_its_threads_and_gpu(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    toy("import os, time; began = time.time(); time.sleep(0.3); file.with_suffix('.toy').write_text(' '.join("
        "[str(began), str(time.time()), os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']]))",
        monkeypatch)  # fmt: skip
    orders = [Order(home / "study", "test", "a", k, {}, 3) for k in range(5)]
    for order in orders:
        order.write()
    launch(files(orders), [], None, print)  # two GPUs: two at a time
    lines = [order.file.with_suffix(".toy").read_text().split() for order in orders]
    assert {threads for _, _, threads, _ in lines} == {"3"}
    spans = [(float(began), float(ended), gpu) for began, ended, _, gpu in lines]
    assert {gpu for _, _, gpu in spans} == {"4", "6"}
    for began, _, gpu in spans:
        beside = [other for start, end, other in spans if start <= began < end]
        assert len(beside) == len(set(beside)) <= 2, gpu


def test_so_many_points_fit_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [launching.at_a_time(threads) for threads in (1, 3, 9)] == [8, 2, 1]
    assert declare.threads_of(["hydra/launcher=basic"]) == 8, "of a machine that may have more"
    assert declare.threads_of(["hydra.launcher.jobs=3"]) == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launching.at_a_time(1) == 4


@pytest.mark.parametrize("body, told", [
    ("sys.exit(3)", "Its process ended with exit code 3 before it was done."),
    ("import os; os.kill(os.getpid(), 9)", "Its process was killed by SIGKILL, for want of memory perhaps."),
    ("import os; os.kill(os.getpid(), 15)", "Its process was killed by SIGTERM."),
])  # fmt: skip
def test_what_a_process_could_not_say_is_said_for_it(body: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(body, monkeypatch)
    (order,) = plan(1)
    launch([order.file], [], None, print)
    assert (order.status(), order.error()) == ("failed", told)


def test_several_ranks_are_a_group_of_torchruns() -> None:
    alone, group = (launching.command(Path("/x/seed0.json"), ranks) for ranks in (1, 4))
    assert alone == [sys.executable, "-m", "gptlab.points", "/x/seed0.json"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert group == [sys.executable, *torchrun, "-m", "gptlab.points", "/x/seed0.json"]


REFUSED = {
    "hydra/launcher=procesess": "There is no launcher 'procesess'. Did you mean 'processes'?",
    "hydra/launcher=foo": "There is no launcher 'foo'. Choose one of: basic, joblib, processes, ray, submitit_local",
    "hydra.launcher.jbs=2": "There is no setting 'hydra.launcher.jbs'. Did you mean 'hydra.launcher.jobs'?",
    "hydra.launcher.jobs=x": "hydra.launcher.jobs must be a whole number or null, but 'x' is not.",
    "hydra.launcher.jobs=0": "hydra.launcher.jobs must be at least 1, but is 0.",
    "hydra.launcher.ranks=0": "hydra.launcher.ranks must be at least 1, but is 0.",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_start_is_known_before_there_is_anything_to_start(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launching.verify([word])
    assert str(refused.value).startswith(REFUSED[word])


def test_what_can_start_is_left_alone(home: Path) -> None:
    before = sorted(home.rglob("*"))
    for words in ([], ["hydra/launcher=basic"], ["hydra/launcher=processes", "hydra.launcher.jobs=3"]):
        launching.verify(words)
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("word", REFUSED)
def test_a_launcher_that_cannot_start_is_one_line(word: str) -> None:
    (order,) = plan(1)
    with pytest.raises(ConfigError) as refused:
        launch([order.file], [word], None, print)
    assert str(refused.value).startswith(REFUSED[word])
    assert "\n" not in str(refused.value)
    assert order.status() == "waiting"


def test_a_launcher_that_is_not_installed_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.ConfigStore.instance(), "list", lambda _: ["basic.yaml", "processes.yaml"])
    for name, extra in launching.BROUGHT_BY.items():
        told = f"^The launcher {name} needs pip install '{extra}'. Installed are basic, processes.$".replace("[", r"\[")
        with pytest.raises(ConfigError, match=told):
            launch(files(plan(1)), [f"hydra/launcher={name}"], None, print)


def test_jobs_is_for_launchers_that_can() -> None:
    with pytest.raises(ConfigError, match="basic has no option for 2 points at a time"):
        launch(files(plan(1)), ["hydra/launcher=basic"], 2, print)


def test_a_stop_in_this_process_is_meant_for_all_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Path] = []
    monkeypatch.setattr(points, "carry_out", lambda file: (run.append(file), "interrupted")[1])
    orders = plan(2)
    with pytest.raises(Interrupted):
        launch(files(orders), ["hydra/launcher=basic"], None, print)
    assert run == [orders[0].file]


def test_where_a_launcher_gives_up_over_a_killed_point_the_others_are_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs gptlab[slurm]")
    orders, asked = plan(3), []

    def run_hydra(left: Sequence[Order], words: object) -> None:
        asked.append([order.seed for order in left])
        for order in left[1:] if len(asked) > 1 else left[:1]:
            points.carry_out(order.file)
        if len(asked) == 1:
            orders[1].log.touch()  # it was killed at its very beginning
            raise RuntimeError("a job\ndisappeared")

    monkeypatch.setattr(launching, "_run_hydra", run_hydra)
    launch(files(orders), ["hydra/launcher=submitit_local"], None, print)
    assert asked == [[0, 1, 2], [2]]
    assert orders[0].status() == "done"
    assert orders[1].error() == "Its process ended before it was done."


def test_a_launcher_that_starts_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_hydra(left: object, words: object) -> None:
        raise RuntimeError("no such\ncluster")

    monkeypatch.setattr(launching, "_run_hydra", run_hydra)
    with pytest.raises(ConfigError, match=r"^The launcher basic could not start: no such cluster$"):
        launch(files(plan(1)), ["hydra/launcher=basic"], None, print)


def test_submitit_runs_points_on_this_machine(home: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs gptlab[slurm]")
    orders, whole = plan(2), uninterrupted(2, 12)
    bad = Order(home / "study", "test", "bad", 0, {**orders[0].config, "init": "/nowhere"}, 1)
    bad.write()
    launch(files([bad, *orders]), ["hydra/launcher=submitit_local"], None, print)
    must_be_same(orders, whole)
    assert "/nowhere" in (bad.error() or "")


def _pretend_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of Slurm, for one job on machines that are all this one; its script is kept as job.sh."""
    commands = {
        "sbatch": """
            text = pathlib.Path(sys.argv[1]).read_text()
            (here / "job.sh").write_text(text)
            nodes, each = (int(re.search(f"--{name}=(.+)", text)[1]) for name in ("nodes", "ntasks-per-node"))
            job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": nodes * each, "SLURM_JOB_NUM_NODES": nodes,
                   "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes), "SLURM_NTASKS_PER_NODE": each}
            env = {**os.environ, **{key: str(value) for key, value in job.items()}}
            subprocess.Popen(["bash", sys.argv[1]], env=env, stdout=-3, stderr=-3, start_new_session=True)
            print("Submitted batch job 7")
        """,
        "srun": """
            n, each = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
            tasks = [{"SLURM_PROCID": i, "SLURM_LOCALID": i % each, "SLURM_NODEID": i // each} for i in range(n)]
            words = sys.argv[sys.argv.index(sys.executable):]
            envs = [{**os.environ, **{key: str(value) for key, value in task.items()}} for task in tasks]
            for process in [subprocess.Popen(words, env=env) for env in envs]:
                process.wait()
            (here / "ended").touch()
        """,
        "sacct": """
            state = "COMPLETED" if (here / "ended").exists() else "RUNNING"
            print("JobID|State|NodeList", f"7|{state}|here", sep="\\n")
        """,
    }
    for name, body in commands.items():
        head = f"#!{sys.executable}\nimport os, pathlib, re, subprocess, sys\nhere = pathlib.Path({str(folder)!r})\n"
        (folder / name).write_text(head + textwrap.dedent(body))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_slurm_starts_a_point_on_two_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs gptlab[slurm]")
    (slurm := tmp_path / "slurm").mkdir()
    _pretend_slurm(slurm, monkeypatch)
    orders, whole = plan(1), plan(1, study="whole")
    for order in (*orders, *whole):
        order.config["model"]["dropout"] = 0.0  # which two micro-batches draw otherwise than one
        order.write()
    launch(files(whole), ["hydra/launcher=basic"], None, print)
    size = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1", "hydra.launcher.timeout_min=30"]
    launch(files(orders), ["hydra/launcher=submitit_slurm", *size, "hydra.launcher.partition=gpu"], None, print)
    script = (slurm / "job.sh").read_text()
    for line in ("--nodes=2", "--ntasks-per-node=1", "--time=30", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in script
    assert orders[0].status() == "done"
    assert tiny.summary(orders[0].run_dir)["hardware"]["ranks"] == 2
    one, two = (tiny.rows(order.run_dir)[-1]["val/loss"] for order in (whole[0], orders[0]))
    assert two == pytest.approx(one, rel=1e-5)


def test_joblib_runs_points_side_by_side() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    orders, whole = plan(2), uninterrupted(2, 12)
    launch(files(orders), ["hydra/launcher=joblib"], 2, print)
    must_be_same(orders, whole)


def test_ray_runs_points_on_this_machine() -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs gptlab[ray]")
    orders, whole = plan(2), uninterrupted(2, 12)
    launch(files(orders), ["hydra/launcher=ray"], None, print)
    must_be_same(orders, whole)
