"""The page that follows runs: what it is told, that it tells no more, and that a browser draws it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from wsgiref.simple_server import make_server

import pytest
import tiny

from gptlab import report, watch
from gptlab.errors import ConfigError
from gptlab.watching.follow import Lines, Runs, named
from gptlab.watching.server import HOST, Quiet, Threads, application

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs in a directory."""
    folder = tmp_path_factory.mktemp("watched")
    tiny.write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        for seed in (0, 1):
            assert tiny.run(f"run_dir=runs/seed{seed}", f"seed={seed}").code == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Where a server of these runs listens."""
    server = make_server(HOST, 0, application(Runs([runs])), server_class=Threads, handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return bytes(answer.read())


def asked(url: str) -> Any:
    return json.loads(get(url))


def refused(url: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(HTTPError) as error:
        get(url, **headers)
    return error.value.code, error.value.read().decode()


def test_runs_rows_and_samples_are_those_of_the_directories(address: str, runs: Path) -> None:
    about = asked(f"{address}/api/runs")["runs"]
    assert [(run["name"], run["status"], run["step"], run["steps"]) for run in about] == [
        ("runs/seed0", "done", 12, 12),
        ("runs/seed1", "done", 12, 12),
    ]
    found = asked(f"{address}/api/rows?run=1")
    assert [row["step"] for row in found["rows"]] == [row["step"] for row in tiny.rows(runs / "seed1")]
    assert asked(f"{address}/api/rows?run=1&since={found['next']}&generation={found['generation']}")["rows"] == []
    samples = asked(f"{address}/api/samples?run=0")["samples"]
    assert [(row["step"], row["text"]) for row in samples] == [
        (row["step"], row["text"]) for row in tiny.rows(runs / "seed0", "samples.jsonl")
    ]


@pytest.mark.parametrize("view", ["attention", "lens", "statistics", "positions", "stability"])
def test_a_view_is_a_picture(address: str, view: str) -> None:
    assert get(f"{address}/look?run=0&view={view}&text=the+cat+sat").startswith(b"\x89PNG")


def test_two_runs_are_compared_on_one_text_and_tokens_have_their_losses(address: str) -> None:
    assert get(f"{address}/look?run=0&other=1&view=compare&text=the+cat").startswith(b"\x89PNG")
    tokens = asked(f"{address}/api/tokens?run=0&text=the+cat")["tokens"]
    assert "".join(token["text"] for token in tokens) == "the cat"
    assert tokens[0]["loss"] is None
    assert all(token["loss"] > 0 for token in tokens[1:])


def test_what_cannot_be_is_one_line(address: str) -> None:
    for words, told in {
        "look?run=7&view=lens": "There is no run '7' here.",
        "look?run=../secret&view=lens": "There is no run '../secret' here.",
        "look?run=0&view=nothing": "There is no view 'nothing'.",
        "look?run=0&view=compare": "choose another one",
        "look?run=0&view=lens&text=t": "A text must have 2 tokens or more",
    }.items():
        code, line = refused(f"{address}/{words}")
        assert code == 404
        assert told in line
        assert "\n" not in line


def test_nothing_but_the_runs_is_served_and_to_this_machine_alone(address: str) -> None:
    for path in ("config.yaml", "../text.txt", "watch.py", "%2e%2e/text.txt", "static/../../text.txt"):
        assert refused(f"{address}/{path}")[0] == 404
    assert refused(f"{address}/api/runs", Host="evil.example:80")[0] == 403


def test_a_run_that_goes_on_from_before_begins_again(tmp_path: Path) -> None:
    file, lines = tmp_path / "metrics.jsonl", Lines(tmp_path / "metrics.jsonl")
    assert lines.look() == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in lines.look()] == [1, 2]
    with file.open("a") as more:
        more.write('ep": 3}\n')
    assert [row["step"] for row in lines.look()] == [1, 2, 3]
    again = tmp_path / "new"
    again.write_text('{"step": 1}\n{"step": 2}\n{"step": 4}\n{"step": 5}\n')
    os.replace(again, file)
    assert [row["step"] for row in lines.look()] == [1, 2, 4, 5]
    assert lines.generation == 1


def test_a_run_that_comes_later_is_found(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed0", tmp_path / "a")
    found = Runs([tmp_path])
    assert len(found.look()) == 1
    shutil.copytree(runs / "seed1", tmp_path / "b")
    assert [run.name for run in found.look()] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="There is no directory nowhere"):
        Runs(named(["nowhere"]))


def test_a_port_that_is_taken_is_refused(address: str, runs: Path) -> None:
    ended = tiny.call(watch, str(runs), "--port", address.rpartition(":")[2])
    assert ended.code == 2
    assert "cannot be had" in ended.err


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_the_curves_and_the_samples(address: str, tmp_path: Path) -> None:
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=9000"]
    ended = subprocess.run([str(CHROMIUM), *words, "--dump-dom", address], capture_output=True, text=True, timeout=90)
    page = ended.stdout
    assert "2 runs, 0 running" in page
    assert page.count("<path d=") >= 4
    assert "-gram</text>" in page
    assert "runs/seed1, step 12" in page
    assert "Attention maps" in page
