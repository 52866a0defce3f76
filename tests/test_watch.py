"""The page that follows runs: what it is told, that it tells no more, and that a browser draws it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from wsgiref.simple_server import make_server

import chromium
import pytest
import tiny

import gptlab
from gptlab import report, watch
from gptlab.errors import ConfigError
from gptlab.inside import losses
from gptlab.rundir import read_config
from gptlab.watching import follow, looks
from gptlab.watching import statistics as module
from gptlab.watching.follow import Lines, Runs, named
from gptlab.watching.looks import Looks
from gptlab.watching.server import HOST, Quiet, Threads, application
from gptlab.watching.statistics import statistics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of experts in a directory; each keeps the checkpoints of steps 9 and 12."""
    folder = tmp_path_factory.mktemp("watched")
    tiny.write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        for seed in (0, 1):
            assert tiny.run(f"run_dir=runs/seed{seed}", f"seed={seed}", "model/mlp=moe").code == 0
    return folder / "runs"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Where a server of the runs in a directory listens."""
    server = make_server(HOST, 0, application(Runs([folder])), server_class=Threads, handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Where a server of these runs listens."""
    with served(runs) as found:
        yield found


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
    assert asked(f"{address}/api/rows?run=1&since=many&generation=0")["rows"] == found["rows"]
    samples = asked(f"{address}/api/samples?run=0")["samples"]
    assert [(row["step"], row["text"]) for row in samples] == [
        (row["step"], row["text"]) for row in tiny.rows(runs / "seed0", "samples.jsonl")
    ]


@pytest.mark.parametrize("view", ["attention", "lens", "statistics", "positions", "stability", "experts"])
def test_a_view_is_a_picture(address: str, view: str) -> None:
    assert get(f"{address}/look?run=0&view={view}&text=the+cat+sat").startswith(b"\x89PNG")


def test_two_runs_are_compared_on_one_text_and_tokens_have_their_losses(address: str) -> None:
    assert get(f"{address}/look?run=0&other=1&view=compare&text=the+cat").startswith(b"\x89PNG")
    tokens = asked(f"{address}/api/tokens?run=0&text=the+cat")["tokens"]
    assert "".join(token["text"] for token in tokens) == "the cat"
    assert tokens[0]["loss"] is None
    assert all(token["loss"] > 0 for token in tokens[1:])


def test_a_view_is_of_the_step_that_is_asked_for_and_of_the_newest_where_none_is(address: str, runs: Path) -> None:
    assert [run["checkpoints"] for run in asked(f"{address}/api/runs")["runs"]] == [[9, 12], [9, 12]]
    found: dict[str, Any] = {}
    for step in ("9", "12", ""):
        for words in ("view=lens&run=0", "view=statistics&run=0", "view=compare&run=0&other=1"):
            with urllib.request.urlopen(f"{address}/look?{words}&step={step}&text=the", timeout=60) as answer:
                found[words, step] = answer.read()
                assert answer.headers["X-Step"] == (step or "12")
        told = asked(f"{address}/api/tokens?run=0&text=the+cat&step={step}")
        found["tokens", step] = [token["loss"] for token in told["tokens"]]
        assert told["step"] == int(step or 12)
    for words in {words for words, _ in found}:
        assert found[words, "12"] == found[words, ""] != found[words, "9"]
    lab = gptlab.open(runs / "seed0", step=9)
    ids = lab.read("the cat")
    known = losses.token_losses(lab.model, ids[:, :-1], ids[:, 1:])[0].tolist()
    assert found["tokens", "9"] == [None, *known]


def test_the_optimizer_of_statistics_is_that_of_the_step(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed0", tmp_path / "then")
    shutil.rmtree(tmp_path / "then" / "checkpoints" / "step_00000012")
    then = statistics(gptlab.open(tmp_path / "then")).updates
    assert then == statistics(gptlab.open(runs / "seed0", step=9)).updates
    assert then != statistics(gptlab.open(runs / "seed0")).updates


def test_models_and_pictures_that_are_held_are_few(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "MODELS", 2)
    found = Looks()
    for step in (9, 12, None, 9):
        found.picture(runs / "seed0", "rope", None, step=step)
    assert [key[1] for key in found.labs] == [None, 9]
    assert len(found.pictures) == 3


def test_what_cannot_be_is_one_line(address: str) -> None:
    for words, told in {
        "look?run=7&view=lens": "There is no run '7' here.",
        "look?run=../secret&view=lens": "There is no run '../secret' here.",
        "look?run=0&view=nothing": "There is no view 'nothing'.",
        "look?run=0&view=compare": "choose another one",
        "look?run=0&view=lens&step=3": "keeps no checkpoint of step 3, but of 9, 12",
        "api/tokens?run=0&step=3": "keeps no checkpoint of step 3, but of 9, 12",
        "look?run=0&view=lens&step=-1": "A step is a number, but '-1' is none.",
        "look?run=0&view=lens&text=t": "A text must have 2 tokens or more",
        "look?run=0&view=attention&layer=one": "A layer is a number, but 'one' is none.",
        "look?run=0&view=attention&layer=1": "layer 1 has none",
        "look?run=0&view=attention&head=2": "A head is from 0 to 1 here, but 2 is none of them.",
        "look?run=%ff&view=lens": "codec can't decode",
        f"look?run={'9' * 5000}&view=lens": "4300 digits",
    }.items():
        code, line = refused(f"{address}/{words}")
        assert code == 404
        assert told in line
        assert "\n" not in line


def test_nothing_but_the_runs_is_served_and_to_this_machine_alone(address: str) -> None:
    for path in ("config.yaml", "../text.txt", "watch.py", "%2e%2e/text.txt", "static/../../text.txt"):
        assert refused(f"{address}/{path}")[0] == 404
    assert refused(f"{address}/api/runs", Host="evil.example:80")[0] == 403
    assert refused(f"{address}/api/runs", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0] == 403
    assert get(address, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).startswith(b"<!doctype html>")


def test_the_map_of_one_head_is_a_picture_of_its_own(address: str) -> None:
    places = ("", "&layer=0", "&head=0", "&head=1", "&layer=0&head=1")
    every, layer, first, second, both = (get(f"{address}/look?run=0&view=attention&text=the{at}") for at in places)
    assert every == layer
    assert second == both
    assert len({every, first, second}) == 3


def test_a_row_without_a_finite_number_keeps_the_rest(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed0", tmp_path / "runs" / "a")
    with (tmp_path / "runs" / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/loss": null, "lr": 0.5}\n{"step": 14, "train/loss": NaN, "lr": 0.25}\n')
    with served(tmp_path / "runs") as address:
        rows = asked(f"{address}/api/rows?run=0")["rows"]
    assert rows[-2:] == [{"step": 13, "lr": 0.5}, {"step": 14, "lr": 0.25}]


def test_rows_that_were_told_do_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    lines = Lines(path)
    _, told = lines.look()
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    assert [row["step"] for row in lines.look()[1]] == [1, 2]
    assert [row["step"] for row in told] == [1]


def test_when_a_run_was_last_written_is_told(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "two")
    os.utime(tmp_path / "two" / "seed0" / "metrics.jsonl", (1000, 1000))
    os.remove(tmp_path / "two" / "seed1" / "metrics.jsonl")
    assert [run.about()["changed"] for run in Runs([tmp_path / "two"]).look()] == [1000, 0]


def test_a_run_that_is_trained_for_longer_is_told_so(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed0", tmp_path / "a")
    (found,) = Runs([tmp_path]).look()
    assert found.about()["steps"] == 12
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    (tmp_path / "a" / "summary.json").write_text(json.dumps({**summary, "steps": 40}))
    assert found.about()["steps"] == 40


def test_updates_are_those_of_one_clipped_step(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, config = gptlab.open(runs / "seed0"), read_config(runs / "seed0")
    config.optimizer = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    config.trainer.clip = 0.01
    monkeypatch.setattr(module, "read_config", lambda path: config)
    monkeypatch.setattr(module.memory, "restore", lambda *_: None)
    found = statistics(lab)
    weights = {name: p.detach() for name, p in lab.model.named_parameters()}
    norms = {name: found.gradients[name] * p.numel() ** 0.5 for name, p in weights.items() if name in found.gradients}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    assert total > 0.01
    for name, norm in norms.items():
        wanted = 0.5 * norm * 0.01 / total / float(weights[name].norm())
        assert found.updates[name] == pytest.approx(wanted, rel=0.01), name


def test_a_run_that_goes_on_from_before_begins_again(tmp_path: Path) -> None:
    file, lines = tmp_path / "metrics.jsonl", Lines(tmp_path / "metrics.jsonl")
    assert lines.look() == (0, [])
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in lines.look()[1]] == [1, 2]
    with file.open("a") as more:
        more.write('ep": 3}\n')
    assert [row["step"] for row in lines.look()[1]] == [1, 2, 3]
    again = tmp_path / "new"
    again.write_text('{"step": 1}\n{"step": 2}\n{"step": 4}\n{"step": 5}\n')
    os.replace(again, file)
    generation, rows = lines.look()
    assert ([row["step"] for row in rows], generation) == ([1, 2, 4, 5], 1)


def test_two_pages_that_look_at_once_read_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n')
    parsed, lines = follow._parsed, Lines(file)
    monkeypatch.setattr(follow, "_parsed", lambda text: (time.sleep(0.05), parsed(text))[1])
    threads = [threading.Thread(target=lines.look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["step"] for row in lines.rows] == [1, 2]


def test_a_run_that_comes_later_is_found(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed0", tmp_path / "a")
    found = Runs([tmp_path])
    assert len(found.look()) == 1
    shutil.copytree(runs / "seed1", tmp_path / "b")
    assert [run.name for run in found.look()] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="There is no directory nowhere"):
        Runs(named(["nowhere"]))


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, runs: Path) -> None:
    ended = tiny.call(watch, str(runs), f"--port={port}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


def test_a_port_that_is_taken_is_refused(address: str, runs: Path) -> None:
    ended = tiny.call(watch, str(runs), "--port", address.rpartition(":")[2])
    assert ended.code == 2
    assert "cannot be had" in ended.err


BROWSER = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium")


@BROWSER
def test_a_browser_draws_the_curves_and_the_samples(address: str, tmp_path: Path) -> None:
    with chromium.Page(tmp_path, address) as page:
        page.wait("document.querySelectorAll('#curves path, #inside .tokens').length >= 3")
        shown = page.run("document.documentElement.outerHTML")
        assert "2 runs, 0 running" in shown
        assert shown.count("<path d=") >= 4
        assert "-gram</text>" in shown
        assert "runs/seed1, step 12" in shown
        metrics = page.run("[...document.querySelectorAll('#metric option')].map((option) => option.value)")
        assert {"train/moe/max_load", "train/moe/min_load"} <= set(metrics)


def shown_at(page: chromium.Page, step: int, what: str = "img") -> None:
    """Wait until every card holds something at a step."""
    done = f"cards.every((card) => card.querySelector('{what}') && card.innerText.includes('step {step}'))"
    cards = "[...document.querySelectorAll('#inside:not(.busy) > div')]"
    page.wait(f"(() => {{ const cards = {cards}; return cards.length && {done}; }})()")


def choose(page: chromium.Page, label: str, value: object) -> None:
    """As a hand does: the value, and the events that follow."""
    events = "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind))"
    page.run(f"(() => {{ const e = document.getElementById('{label}'); e.value = '{value}'; {events} }})()")


@BROWSER
def test_a_browser_looks_at_any_kept_checkpoint_and_goes_on_with_the_newest(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    one, two = (tmp_path / "runs" / f"seed{seed}" / "checkpoints" for seed in (0, 1))
    with served(tmp_path / "runs") as address, chromium.Page(tmp_path / "browser", address) as page:
        shown_at(page, 12, "pre")
        assert page.run("document.getElementById('at').textContent") == "the newest"
        choose(page, "view", "experts")
        shown_at(page, 12)
        choose(page, "step", 0)
        shown_at(page, 9)
        assert page.run("document.getElementById('at').textContent") == "step 9"
        for view in ("attention", "lens", "statistics", "compare"):
            choose(page, "view", view)
            shown_at(page, 9)
        for checkpoints in (one, two):  # as a run does that goes on with trainer.keep=2
            shutil.copytree(checkpoints / "step_00000012", checkpoints / "step_00000015")
            shutil.rmtree(checkpoints / "step_00000009")
        page.wait("document.getElementById('at').textContent === 'step 9, no longer kept'")
        assert page.run("[step.value, step.max]") == ["0", "3"]  # 9, which is left behind; 12; 15; the newest
        shown_at(page, 9)  # what was drawn stays
        choose(page, "view", "lens")
        line = page.wait("document.querySelector('#inside .wrong')?.textContent")
        assert line.endswith("keeps no checkpoint of step 9, but of 12, 15: trainer.keep=N keeps N.")
        choose(page, "step", 3)
        page.wait("document.getElementById('at').textContent === 'the newest'")
        shown_at(page, 12)  # the manifest says so: the copy is called otherwise
        assert page.run("[step.value, step.max]") == ["2", "2"]
        page.run("document.querySelector('#inside img').id = 'before'")
        for checkpoints in (one, two):
            shutil.copytree(checkpoints / "step_00000012", checkpoints / "step_00000018")
        page.wait("document.querySelectorAll('#inside img').length === 2 && !document.getElementById('before')")
        assert page.run("[step.value, step.max]") == ["3", "3"]


@BROWSER
@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_is_no_wider_than_its_screen(address: str, tmp_path: Path, width: int) -> None:
    with chromium.Page(tmp_path, address, width=width) as page:
        shown_at(page, 12, "pre")
        for view in ("attention", "experts", "statistics"):
            choose(page, "view", view)
            shown_at(page, 12)
            assert page.run("document.documentElement.scrollWidth") <= width
