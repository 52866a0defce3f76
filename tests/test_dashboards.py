"""A run on W&B: the rows of metrics.jsonl to the last digit, a study as a group, nothing that asks or ends a run."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import studies_on_disk as disk
import tiny
import yaml
from test_runlog import Watcher, row

from gptlab import cli, conf_dir, dashboards, run
from gptlab.comparison import page, runs
from gptlab.comparison.verdict import judge
from gptlab.config import from_dict
from gptlab.dashboards import open_wandb
from gptlab.errors import ConfigError
from gptlab.runlog import RunLog, read_rows
from gptlab.studies import dashboard

KEY = "0" * 40
VIEW = Path(__file__).resolve().parent.parent / "scripts" / "wandb_workspace.py"
STUDY = {"dir": "runs/mlps/2026-01-01_study", "phase": "test", "arm": "swiglu", "seed": 3, "hash": "ab" * 8, "id": "p7"}


@pytest.fixture
def wandb_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """W&B as on a machine where nobody has used it; its settings and its service end with the test."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path / "run"
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, parts with a seven-byte head)."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as messages

    wandb.teardown()  # as at the end of a process: everything is in the file after it
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little left of a block for a head: filled up with zeros
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or the last part of one
            yield messages.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The rows W&B wrote offline, in the order of their files."""
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                found.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    return [{key: json.loads(value) for key, value in each.items()} for each in found]


def by_kind(run_dir: Path) -> dict[str, list[Any]]:
    """All records of the one offline run of `run_dir`, by what they are."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[Any]] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def told(items: Any) -> dict[str, Any]:
    """What a record says of a config or a summary."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def by_leet(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of the one offline run as W&B's own reader tells them."""
    pytest.importorskip("wandb", minversion="0.31")
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    lines = map(json.loads, printed.stdout.splitlines())
    return [line["history"]["item"] for line in lines if line["type"] == "history"]


class Quiet(Watcher):
    """One that a whole run can be shown to."""

    def start(self, *arguments: Any, **more: Any) -> None:
        pass


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of numbers, without what W&B adds of its own."""
    kept = ({key: value for key, value in each.items() if not key.startswith("_")} for each in rows)
    return [each for each in kept if "seconds" in each]


def start(run_dir: Path, watcher: Watcher, logger: str = "auto", study: dict[str, Any] | None = None) -> RunLog:
    run_dir.mkdir(exist_ok=True)
    about: dict[str, Any] = {"name": "n", "project": "p", "config": {"model": {"attention": {"name": "flash"}}}}
    return RunLog(run_dir, display=watcher, wandb=open_wandb(logger, run_dir, note=watcher.note, study=study, **about))


def test_offline_wandb_has_the_rows_of_metrics_jsonl_and_says_how_to_sync(
    wandb_alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watcher = Watcher()
    log = start(wandb_alone, watcher)
    for step in range(1, 400):
        log.metrics(row(step, **{"val/loss": 3.0} if step % 100 == 0 else {}))
    log.sample(399, "<b>text</b>")
    log.close({"status": "done", "ruler": {1: 3.3}})
    found = history(wandb_alone)
    kept = [{key: value for key, value in each.items() if not key.startswith("_")} for each in found]
    assert kept[:399] == read_rows(wandb_alone / "metrics.jsonl")
    assert kept[399]["step"] == 399
    assert kept[399]["sample/_type"] == "html-file"
    assert len(kept) == 401
    (table,) = wandb_alone.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [[399, "<b>text</b>"]]
    assert watcher.notes == [
        f"W&B offline: no API key (wandb login). To upload: wandb sync {wandb_alone}/wandb/offline-run-*"
    ]
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_is_one_wandb_run(wandb_alone: Path) -> None:
    ids = []
    for first in (1, 3):
        log = start(wandb_alone, Watcher())
        for step in (first, first + 1, first + 2):
            log.metrics(row(step))
        log.close({"status": "interrupted"})
        ids += [path.name for path in wandb_alone.glob("wandb/offline-run-*/*.wandb")]
        time.sleep(1.1)  # W&B names its directories by the second
    assert len(set(ids)) == 1
    assert ids[0] == f"run-{(wandb_alone / 'wandb_id').read_text()}.wandb"
    # Rows that are written twice after a resume are all there: nothing hangs on W&B's own step.
    assert [each["step"] for each in history(wandb_alone) if "train/loss" in each] == [1, 2, 3, 3, 4, 5]


def test_the_config_and_the_axes_reach_wandb(wandb_alone: Path) -> None:
    log = start(wandb_alone, Watcher())
    log.metrics(row(1))
    log.close({"status": "done", "best_val_loss": 1.5})
    found = by_kind(wandb_alone)
    assert found["run"][0].display_name == "n"
    assert found["run"][0].run_group == found["run"][0].job_type == ""
    assert told(found["run"][0].config.update)["model"] == {"attention": {"name": "flash"}}
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in found["metric"]}
    assert axes == {"*": "tokens", "tokens": "", "flops": "", "seconds": "", "step": ""}
    assert {k: v for each in found["summary"] for k, v in told(each.update).items()}["best_val_loss"] == 1.5


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_point_is_in_the_group_of_its_study_under_its_arm_and_phase(wandb_alone: Path) -> None:
    start(wandb_alone, Watcher(), study=STUDY).close({"status": "done"})
    found = by_kind(wandb_alone)["run"][0]
    assert (found.run_group, found.job_type, list(found.tags)) == ("2026-01-01_study", "swiglu", ["test"])
    assert (found.run_id, found.display_name, found.project) == ("p7", "swiglu seed 3", "p")
    config = told(found.config.update)
    assert config["study"] == STUDY
    assert config["model"] == {"attention": {"name": "flash"}}


def test_a_point_tried_again_is_the_same_wandb_run(wandb_alone: Path, tmp_path: Path) -> None:
    ids = []
    for attempt in ("one", "two"):
        start(tmp_path / attempt, Watcher(), study=STUDY).close({"status": "failed"})
        ids.append(by_kind(tmp_path / attempt)["run"][0].run_id)
    start(tmp_path / "other", Watcher(), study={**STUDY, "seed": 4, "id": "p8"}).close({"status": "done"})
    assert ids == ["p7", "p7"]
    assert by_kind(tmp_path / "other")["run"][0].run_id == "p8"


def test_a_point_that_goes_on_by_hand_is_the_same_wandb_run(wandb_alone: Path) -> None:
    start(wandb_alone, Watcher(), study=STUDY).close({"status": "interrupted"})
    assert (wandb_alone / "wandb_id").read_text() == "p7"


def test_names_are_cut_to_what_the_server_takes_and_stay_apart(wandb_alone: Path) -> None:
    places = [
        dashboards.place({**STUDY, "arm": "model.layers=" + 200 * "x" + end, "phase": "tune"}, {}) for end in "ab"
    ]
    for each in places:
        assert (len(each["job_type"]), len(each["name"])) == (64, 128)
    assert places[0]["job_type"] != places[1]["job_type"]
    assert places[0]["name"] != places[1]["name"]
    assert dashboards.place({**STUDY, "phase": "screen1"}, {})["name"] == "swiglu seed 3 screen1"
    assert dashboards.place({**STUDY, "phase": "tune", "lr": 0.003}, {})["name"] == "swiglu seed 3 lr 0.003 tune"


def test_a_study_that_cannot_be_told_costs_a_line_and_no_training(wandb_alone: Path) -> None:
    log = start(wandb_alone, watcher := Watcher(), study={"dir": "runs/x"})
    log.metrics(row(1))
    log.close({"status": "done"})
    assert watcher.notes == ["W&B could not be started ('arm'); the files have everything."]


def test_a_trained_point_has_the_rows_of_metrics_jsonl_number_by_number(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_text(Path.cwd())
    monkeypatch.setattr(run.report, "draw_curve", lambda run_dir, ruler: run_dir)
    config = cli.compose(tiny.overrides("logger=auto", f"run_dir={wandb_alone}", "name=mlps"))
    run.start(from_dict(config), {"overrides": [], "study": STUDY}, display=Quiet())
    rows = read_rows(wandb_alone / "metrics.jsonl")
    summary = tiny.summary(wandb_alone)
    assert len(rows) >= 6
    assert [each["flops"] for each in rows] == [each["tokens"] * summary["flops_per_token"] for each in rows]
    assert measured(history(wandb_alone)) == rows
    assert measured(by_leet(wandb_alone)) == rows
    found = by_kind(wandb_alone)
    assert (found["run"][0].run_group, found["run"][0].job_type, found["run"][0].project) == (
        Path(STUDY["dir"]).name,
        "swiglu",
        "mlps",
    )
    closing = {key: value for each in found["summary"] for key, value in told(each.update).items()}
    assert closing["val_loss"] == summary["val_loss"] == rows[-1]["val/loss"]


@pytest.fixture
def judged(wandb_alone: Path) -> runs.Comparison:
    """A study of two arms at three seeds, with its page."""
    study = disk.write_plan(wandb_alone.parent / "2026-01-01_study", {"gelu": [], "swiglu": ["model/mlp=swiglu"]})
    for seed, end in enumerate((2.01, 2.0, 2.02)):
        disk.write_point(study, "gelu", seed, end, tree=disk.config(seed, name="mlps"))
        disk.write_point(study, "swiglu", seed, end - 0.1 - seed / 1000, tree=disk.config(seed, name="mlps"))
    comparison = runs.read_study(study)
    page.write(comparison, study)
    return comparison


def publish(comparison: runs.Comparison, logger: str = "auto") -> list[str]:
    """The lines that were said."""
    verdict = judge(comparison.values(), comparison.baseline, margin=comparison.margin)
    dashboard.publish(comparison, verdict, comparison.path, logger, (watcher := Watcher()).note)
    return watcher.notes


def test_a_verdict_is_a_run_in_the_group_of_its_points(judged: runs.Comparison) -> None:
    study = judged.path
    (said,) = publish(judged)
    assert said.startswith("W&B offline: no API key")
    found = by_kind(study)
    about = found["run"][0]
    assert (about.run_group, about.job_type, list(about.tags)) == (study.name, "verdict", ["verdict"])
    assert (about.display_name, about.project) == ("verdict", "mlps")
    assert told(about.config.update)["question"] == judged.title
    (held,) = study.glob("wandb/offline-run-*/files/media/table/*.json")
    shown = json.loads(held.read_text())
    with (study / "table.csv").open() as file:
        written = list(csv.DictReader(file))
    assert shown["columns"] == list(written[0])
    for mine, theirs in zip(shown["data"], written, strict=True):
        for value, text in zip(mine, theirs.values(), strict=True):
            assert ("" if value is None else str(value)) == text or float(text) == value
    (forest,) = study.glob("wandb/offline-run-*/files/media/images/*.png")
    assert forest.read_bytes() == (study / "figures" / "forest.png").read_bytes()
    closing = {key: value for each in found["summary"] for key, value in told(each.update).items()}
    (effect,) = json.loads((study / "verdict.json").read_text())["effects"]
    swiglu = closing["arms"]["swiglu"]
    assert (swiglu["effect"], swiglu["low"], swiglu["high"]) == (effect["mean"], effect["low"], effect["high"])
    assert (swiglu["verdict"], swiglu["mean"]) == ("better", pytest.approx(2.01 - 0.101))
    assert closing["arms"]["gelu"]["verdict"] == "baseline"


def test_a_verdict_that_is_read_again_is_the_same_wandb_run(judged: runs.Comparison) -> None:
    publish(judged)
    time.sleep(1.1)  # W&B names its directories by the second
    publish(judged)
    names = [path.name for path in judged.path.glob("wandb/offline-run-*/*.wandb")]
    assert len(names) == 2
    assert len(set(names)) == 1


def test_the_points_that_wait_offline_are_named_with_the_verdict(judged: runs.Comparison) -> None:
    record = judged.arms["gelu"][0]
    start(record.path, Watcher(), study=STUDY).close({"status": "done"})
    *_, said = publish(judged)
    pattern = said.removeprefix("W&B has 1 points offline: wandb sync ")
    assert [path.name for path in Path("/").glob(pattern[1:])] == [
        path.name for path in record.path.glob("wandb/offline-run-*")
    ]


def test_nothing_of_wandb_stops_a_verdict(judged: runs.Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    assert publish(judged, "none") == []
    assert not (judged.path / "wandb").exists()
    (judged.path / "figures" / "forest.png").write_bytes(b"no picture")
    assert publish(judged)[1].startswith("W&B is off from here on (")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert publish(judged) == [
        "W&B could not be started (import of wandb halted; None in sys.modules); the files have everything."
    ]


# --- sweeps and views of W&B's own ------------------------------------------------------------------------------------

SWEEPS = sorted((conf_dir.find() / "sweep").glob("*.yaml"))


def values(parameter: dict[str, Any]) -> list[Any]:
    """What a parameter of a sweep may be: all of its values, or the ends of its range."""
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def command(sweep: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """What W&B's agent would run for a point, after the interpreter."""
    from wandb.sdk.launch.sweeps import utils

    told = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    env, interpreter, *rest = utils.create_sweep_command(list(sweep["command"]))
    assert (env, interpreter) == ("${env}", "${interpreter}")
    return [word for part in rest for word in (told["args_no_hyphens"] if part == "${args_no_hyphens}" else [part])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_is_a_training(path: Path, wandb_alone: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# Question: ")
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    at = {"position": "model.position.name"}
    first = {key: values(parameter)[0] for key, parameter in sweep["parameters"].items()}
    for point in ({**first, key: value} for key in first for value in values(sweep["parameters"][key])):
        module, door, *words = command(sweep, point)
        assert (module, door) == ("-m", "gptlab.train")
        config = cli.compose(words)
        for key, value in point.items():
            node: Any = config
            for part in at.get(key, key).split("."):
                node = node[part]
            assert node == (yaml.safe_load(value) if isinstance(value, str) else value)
        assert config["name"] == sweep["project"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_is_what_wandb_takes_for_one(path: Path) -> None:
    """By the schema and the search that W&B gives away: pip install sweeps."""
    sweeps = pytest.importorskip("sweeps")
    sweep = yaml.safe_load(path.read_text())
    assert sweeps.schema_violations_from_proposed_config(sweep) == []
    point = {key: found["value"] for key, found in sweeps.next_run(sweep, []).config.items()}
    assert point.keys() == sweep["parameters"].keys()
    cli.compose(command(sweep, point)[2:])


def test_the_run_of_an_agent_is_the_one_that_it_made(wandb_alone: Path) -> None:
    sweep = yaml.safe_load((conf_dir.find() / "sweep" / "rates.yaml").read_text())
    point = {"optimizer.lr": 0.002, "optimizer.weight_decay": 0.05}
    words = [word for word in command(sweep, point) if not word.startswith("experiment=")]  # too much for a test
    tiny.write_text(home := Path.cwd())
    (home / "point.yaml").write_text(yaml.safe_dump({key: {"value": value} for key, value in point.items()}))
    of_agent = {"SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "rates", "SWEEP_PARAM_PATH": str(home / "point.yaml")}
    environment = {"WANDB_MODE": "offline", **{f"WANDB_{key}": value for key, value in of_agent.items()}}
    more = tiny.overrides("logger=wandb", f"run_dir={wandb_alone}", "trainer.steps=4")
    ended = tiny.finish(tiny.spawn(*words, *more, cwd=home, **environment))
    assert (ended.code, ended.err) == (0, "")
    found = by_kind(wandb_alone)
    assert (found["run"][0].sweep_id, found["run"][0].run_id, found["run"][0].project) == ("s1", "r1", "rates")
    assert (wandb_alone / "wandb_id").read_text() == "r1"  # for who goes on with it where there is no agent
    config = told(found["run"][0].config.update)
    assert config["optimizer"]["lr"] == config["optimizer.lr"] == 0.002
    assert measured(history(wandb_alone)) == read_rows(wandb_alone / "metrics.jsonl")
    closing = {key: value for each in found["summary"] for key, value in told(each.update).items()}
    assert closing["val/loss"] == closing["val_loss"]  # what the search goes by


def view(*words: str) -> dict[str, Any]:
    """What scripts/wandb_workspace.py would save."""
    pytest.importorskip("wandb_workspaces")
    ended = tiny.finish(tiny.spawn(str(VIEW), "--entity", "e", "--project", "p", *words, "--dry-run", cwd=Path.cwd()))
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)["section"]


def test_a_view_shows_what_a_run_logs_by_arm(wandb_alone: Path) -> None:
    section = view()
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["jobType"]
    assert runs["filters"]["filters"] == []
    shown = [panel["config"] for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    over = [(each["metrics"][0], each["xAxis"]) for each in shown]
    assert [axis for key, axis in over if key == "val/loss"] == ["tokens", "flops", "seconds"]
    assert {"val/bpb", "lr", "tokens_per_second", "grad_norm"} < {key for key, _ in over}
    tiny.write_text(Path.cwd())
    assert tiny.run(f"run_dir={wandb_alone}").code == 0
    logged = {key for each in read_rows(wandb_alone / "metrics.jsonl") for key in each}
    assert {word for pair in over for word in pair} <= logged


def test_a_view_of_a_study_opens_with_its_verdict(wandb_alone: Path) -> None:
    section = view("--study", "2026-01-01_study")
    (runs,) = section["runSets"]
    asked = {each["key"]["name"]: each["value"] for each in runs["filters"]["filters"]}
    assert asked == {"group": "2026-01-01_study", "tags": ["test", "verdict"]}
    first = section["panelBankConfig"]["sections"][0]
    assert first["name"] == "Verdict"
    assert "verdict" in json.dumps(first["panels"][0])
    assert first["panels"][1]["config"]["mediaKeys"] == ["forest"]


@pytest.mark.parametrize(("without", "line"), [("", "there is no API key"), ("wandb_workspaces", "gptlab[workspaces]")])
def test_a_view_that_cannot_be_saved_is_one_line_and_no_question(wandb_alone: Path, without: str, line: str) -> None:
    if not without:
        pytest.importorskip("wandb_workspaces")
    code = f"import sys, runpy; sys.modules[{without!r}] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    spawned = tiny.spawn("-c", code, str(VIEW), "--entity", "e", "--project", "p", cwd=Path.cwd())
    ended = tiny.finish(spawned)
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1


# --- what may go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("logger", "mode"), [("none", "online"), ("auto", "disabled")])
def test_none_and_disabled_leave_no_trace(wandb_alone: Path, monkeypatch: Any, logger: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    start(wandb_alone, watcher := Watcher(), logger).close({"status": "done"})
    assert [path.name for path in wandb_alone.iterdir()] == ["summary.json"]
    assert watcher.notes == []


def test_a_wandb_that_was_asked_for_and_is_not_there_is_said_loudly(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for logger, loud in (("wandb", True), ("auto", False)):
        watcher = Watcher()
        log = start(wandb_alone, watcher, logger)
        log.metrics(row(1))
        assert len(watcher.notes) == 1
        assert watcher.notes[0].startswith("WARNING: logger=wandb was asked for") == loud
    monkeypatch.setenv("WANDB_MODE", "disabled")
    start(wandb_alone, watcher := Watcher(), "wandb")
    assert "WANDB_MODE=disabled wins" in watcher.notes[0]


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        open_wandb("wandbb", tmp_path, name="n", project="p", config={}, note=print)


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_a_key_without_a_network_falls_back_to_offline(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    with socket.socket() as listener:  # a port that nobody answers on
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        if where == "environment":
            monkeypatch.setenv("WANDB_API_KEY", KEY)
        else:
            (wandb_alone.parent / "netrc").write_text(f"machine {host} login user password {KEY}\n")
        monkeypatch.setattr(dashboards, "INIT_SECONDS", 1)
        watcher = Watcher()
        began = time.monotonic()
        log = start(wandb_alone, watcher)
        assert time.monotonic() - began < 15
    log.metrics(row(1))
    log.close({"status": "done"})
    assert [each["step"] for each in history(wandb_alone)] == [1]
    assert watcher.notes[0].startswith("W&B offline: not reachable (")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "key", "why"), [("offline", KEY, "WANDB_MODE=offline"), ("online", "", "no API key (wandb login)")]
)
def test_the_mode_wins_over_a_key_and_a_missing_key_over_the_mode(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch, mode: str, key: str, why: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    watcher = Watcher()
    start(wandb_alone, watcher).close({"status": "done"})
    assert watcher.notes[0].startswith(f"W&B offline: {why}. To upload: wandb sync ")


def test_a_wandb_that_breaks_is_said_once_and_left_alone(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def log(self, row: Any) -> None:
            self.calls += 1
            raise RuntimeError("the service died\nwith details")

    run, watcher = Broken(), Watcher()
    log = RunLog(tmp_path, display=watcher, wandb=dashboards.WandbLog(run, tmp_path, watcher.note))  # type: ignore[arg-type]
    for step in (1, 2, 3):
        log.metrics(row(step))
    log.sample(3, "text")
    log.close({"status": "done"})
    assert run.calls == 1
    assert watcher.notes == ["W&B is off from here on (the service died); the files go on."]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3
