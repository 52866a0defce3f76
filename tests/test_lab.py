"""A run opened: views are figures with their numbers, `gptlab look` is a page of them; one line for what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

import gptlab
from gptlab import evaluate, export, look, report, sample, steer, train
from gptlab.errors import CheckpointError, ConfigError, DataError
from gptlab.inside import VIEWS
from gptlab.lab import Lab, visible
from gptlab.rundir import kept

WITHOUT = ("patch", "compare")  # views that need another text or run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with rope and experts, and two checkpoints. Beside it: one of another seed, no softmax, bytes, a task."""
    folder = tmp_path_factory.mktemp("looked")
    text = tiny.write_text(folder)
    runs = {
        "rope": [f"data.path={text}", "model.n_layer=2", "model/mlp=moe", "trainer.steps=6"],
        "other": [f"data.path={text}", "model.n_layer=2", "trainer.steps=3", "trainer.keep=1", "seed=1"],
        "linear": [f"data.path={text}", "position=learned", "model/attention=linear", "trainer.steps=3"],
        "bytes": [f"data.path={text}", "tokenizer=byte", "trainer.steps=3"],
        "task": ["data=copy", "data.length=4", "trainer.steps=3", "model.n_layer=2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        for name, words in runs.items():
            settings = tiny.overrides(*words, f"run_dir={folder / name}")
            if name == "task":  # which brings its own symbols
                settings = [word for word in settings if not word.startswith(("tokenizer=", "data.path="))]
            ended = tiny.call(train, *settings)
            assert ended.code == 0, ended.err
    return folder / "rope"


@pytest.fixture(scope="module")
def lab(run: Path) -> Lab:
    return gptlab.open(run)


def test_every_view_of_a_lab_is_a_figure_with_numbers(lab: Lab) -> None:
    texts = {"patch": ("the cat sat", "the mat sat", "s", "a"), "compare": (lab.path.with_name("other"), "the cat sat")}
    for view in VIEWS:
        figure = getattr(lab, view)(*texts.get(view, ()))
        assert isinstance(figure, Figure)
        assert figure.numbers is not None
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_lab_reads_a_text_or_the_beginning_of_validation(lab: Lab) -> None:
    maps = lab.attention("the cat sat").numbers
    assert [each.weights.shape for each in maps] == [(1, 2, 11, 11)] * 2
    assert len(lab.attention("the cat", layer=1).numbers) == 1
    assert lab.read(None).shape == (1, 16)
    assert torch.equal(lab.read(None), lab.validation(1)[0])
    tokens, targets = lab.validation(64)
    assert tokens.shape == targets.shape
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_the_numbers_of_a_lab_are_those_of_its_model(lab: Lab) -> None:
    tokens = lab.read("the cat sat")
    with torch.no_grad():
        logits = lab.model(tokens)
    assert torch.equal(lab.lens("the cat sat").numbers.logits[-1], logits)
    given = lab.attribution("the cat sat").numbers
    at = logits[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0] - logits[0, :-1].mean(-1)
    torch.testing.assert_close((given.given.sum(0) + given.rest)[0, :-1], at.double(), atol=1e-4, rtol=1e-4)
    best = logits[0, -1].max() - logits[0, -1].mean()
    torch.testing.assert_close((given.given.sum(0) + given.rest)[0, -1], best.double(), atol=1e-4, rtol=1e-4)
    patched = lab.patch("the cat", "the mat", right="s", wrong=" ").numbers
    right, wrong = lab.tokenizer.encode("s ")
    with torch.no_grad():
        last = lab.model(lab.read("the cat"))[0, -1]
    assert patched.clean == pytest.approx(float(last[right] - last[wrong]), abs=1e-5)
    against = lab.attribution("the cat sat", against="s").numbers
    total = (against.given.sum(0) + against.rest)[0, 0]
    torch.testing.assert_close(total, (logits[0, 0, tokens[0, 1]] - logits[0, 0, right]).double(), atol=1e-4, rtol=1e-4)


def test_a_run_compared_with_itself_does_not_differ(lab: Lab) -> None:
    assert not lab.compare(lab, "the cat sat").numbers.any()
    assert lab.compare(lab.path.with_name("other")).numbers.any()
    with pytest.raises(ConfigError, match="has another tokenizer"):
        lab.compare(lab.path.with_name("bytes"))


def test_a_run_of_a_task_is_looked_at_by_its_questions(run: Path) -> None:
    lab = Lab(run.with_name("task"))
    assert lab.positions().numbers.mean.isnan().any()
    assert lab.lens("1 2 3").numbers.logits.shape[2] == 3
    for view in set(VIEWS) - {*WITHOUT, "experts"}:
        getattr(lab, view)()


def test_a_run_of_pairs_is_looked_at_by_its_pairs_until_they_are_others(tmp_path: Path) -> None:
    sums = tmp_path / "sums.tsv"
    sums.write_text("".join(f"{a}+{b}\t{a + b}\n" for a in range(12) for b in range(12)))
    small = tiny.overrides("data=pairs", f"data.path={sums}", "trainer.steps=3", f"run_dir={tmp_path / 'r'}")
    assert tiny.call(train, *small, "model.attention.causal=prefix").code == 0
    lab = Lab(tmp_path / "r")
    source, _, target = lab.tokenizer.decode(lab.read(None)[0].tolist()).partition("\t")
    assert sum(map(int, source.split("+"))) == int(target)  # the end of a row, and what fills it up, is left out
    for view in set(VIEWS) - set(WITHOUT) - {"rope", "experts"}:
        getattr(lab, view)()
    with pytest.raises(ConfigError, match="causal=prefix lets it see"):
        lab.compare(lab)
    texts = ("--positive", str(sums), "--negative", str(sums))
    assert "causal=prefix lets it see" in tiny.call(steer, str(lab.path), *texts).err
    with sums.open("a") as file:
        file.write("1+1+1\t3\n")
    with pytest.raises(DataError, match="was trained on other pairs than"):
        lab.positions()


def test_any_checkpoint_that_is_kept_is_opened_by_its_step(run: Path, lab: Lab) -> None:
    earlier = gptlab.open(run, step=3)
    assert (earlier.step, lab.step) == (3, 6)
    assert torch.equal(gptlab.open(run, step=6).model.token_embedding.weight, lab.model.token_embedding.weight)
    held = load_file(run / "checkpoints" / "step_00000003" / "model.safetensors")
    assert torch.equal(earlier.model.token_embedding.weight, held["token_embedding.weight"])
    assert torch.equal(gptlab.load(run, step=3)[0].token_embedding.weight, held["token_embedding.weight"])
    assert not torch.equal(lab.model.token_embedding.weight, held["token_embedding.weight"])
    assert lab.compare(earlier, "the cat sat").numbers.any()
    with pytest.raises(ConfigError, match=r"keeps no checkpoint of step 4, but of 3, 6: trainer\.keep"):
        gptlab.open(run, step=4)


def test_every_command_about_a_run_takes_a_step(run: Path, tmp_path: Path) -> None:
    losses = []
    for step in ("3", "6"):
        ended = tiny.call(evaluate, str(run), "--step", step, "--json")
        assert ended.code == 0, ended.err
        losses.append(json.loads(ended.out)["loss"])
    assert losses[0] != losses[1] == json.loads(tiny.call(evaluate, str(run), "--json").out)["loss"]
    assert (
        tiny.call(export, str(run), "--to", "hf", str(tmp_path / "exported"), "--custom-code", "--step", "3").code == 0
    )
    held = load_file(run / "checkpoints" / "step_00000003" / "model.safetensors")["token_embedding.weight"]
    assert any(torch.equal(held, tensor) for tensor in load_file(tmp_path / "exported" / "model.safetensors").values())
    for door, words in (
        (sample, []),
        (evaluate, []),
        (export, ["--to", "hf", str(tmp_path / "e")]),
        (steer, ["--direction", "x"]),
    ):
        ended = tiny.call(door, str(run), *words, "--step", "4")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "keeps no checkpoint of step 4, but of 3, 6" in ended.err


def test_the_best_checkpoint_is_kept_too(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "best" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000003")
    assert list(kept(tmp_path / "run")) == [3, 6]
    assert gptlab.open(tmp_path / "run", step=3).step == 3
    shutil.rmtree(tmp_path / "run" / "best")
    assert list(kept(tmp_path / "run")) == [6]


def test_expert_load_is_of_validation_or_of_a_text(lab: Lab) -> None:
    assert [each.layer for each in lab.experts().numbers] == [0, 1]
    assert lab.experts("the cat").numbers[0].chosen.mul(14).sum() == pytest.approx(14)  # two experts for each letter
    with pytest.raises(ConfigError, match="no MLP here has one"):
        gptlab.open(lab.path.with_name("other")).experts()


def test_look_is_at_a_step_and_compares_with_the_same_of_the_other_run(run: Path, tmp_path: Path) -> None:
    other = str(run.with_name("other"))
    ended = looked(run, "--step", "3", "--view", "compare", "--other", other, "--out", str(tmp_path))
    assert ended.code == 0, ended.err
    assert "rope, step 3" in (tmp_path / "index.html").read_text("utf-8")
    ended = looked(run, "--step", "6", "--view", "compare", "--other", other, "--out", str(tmp_path))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "other keeps no checkpoint of step 6, but of 3" in ended.err


def test_an_opened_run_is_named_like_any_other(run: Path) -> None:
    with pytest.raises(CheckpointError, match="A run directory holds"):
        gptlab.open(run.parent / "nowhere")
    assert "open" in gptlab.__all__


@pytest.mark.parametrize(
    "token, shown",
    [("a", "a"), (" the", "␣the"), ("\n", "⏎"), ("\x1b", "�"), ("international", "interna…"), ("é", "é")],
)
def test_a_token_is_written_so_that_it_is_seen(token: str, shown: str) -> None:
    assert visible(token) == shown


def looked(run: Path, *words: str) -> tiny.Ended:
    return tiny.call(look, str(run), *words)


def test_look_writes_a_picture_for_each_view_and_a_page_that_needs_nothing_else(run: Path) -> None:
    answers = ("--corrupted", "the mat sat", "--right", "s", "--wrong", "a")
    ended = looked(run, "--step", "3", "--text", "the cat sat", *answers, "--other", str(run.with_name("other")))
    assert (ended.code, ended.out.strip()) == (0, str(run / "look" / "index.html")), ended.err
    assert {path.name for path in (run / "look").iterdir()} == {"index.html", *(f"{view}.png" for view in VIEWS)}
    page = (run / "look" / "index.html").read_text("utf-8")
    assert "the cat sat" in page
    assert page.count("data:image/png;base64,") == len(VIEWS)
    assert not re.findall(r"""<script|<link|(?:src|href)=(?!"data:|"#)""", page)
    for view, title in VIEWS.items():
        assert f'id="{view}"' in page
        assert title in page


def test_look_writes_what_is_asked_for_where_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    ended = looked(run, "--view", "lens", "--view", "rope", "--out", str(tmp_path / "out"))
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "lens.png", "rope.png"}


def test_what_a_model_does_not_have_is_said_on_the_page_or_refused_when_asked_for(run: Path, tmp_path: Path) -> None:
    linear = run.with_name("linear")
    ended = looked(linear, "--text", "the cat", "--out", str(tmp_path))
    assert ended.code == 0, ended.err
    assert not (tmp_path / "rope.png").exists()
    assert "is no rotary encoding" in (tmp_path / "index.html").read_text("utf-8")
    ended = looked(linear, "--view", "rope")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "words, told",
    [
        ("--view patch", "--view patch needs --corrupted"),
        ("--view compare", "--view compare needs --other"),
        ("--view nothing", "invalid choice"),
        ("--corrupted mat", "--corrupted is a --text with a change"),
        ("--text the --corrupted then --right s --wrong a --view patch", "as many tokens"),
        ("--text the --corrupted cat --right s --wrong s --view patch", "Both answers are 's'"),
        ("--text the --corrupted cat --right th --view patch", "An answer is one token"),
        ("--text the --corrupted cat --view lens", "--corrupted is about the view patch, which is not drawn"),
        ("--text the --view lens --right s", "--right is about the view patch, which is not drawn"),
        ("--text the --wrong s", "ask for it with --corrupted, or leave --wrong out"),
        ("--view lens --other nowhere", "ask for it with --other and --view compare, or leave --other out"),
        ("--step 5", "rope keeps no checkpoint of step 5, but of 3, 6"),
        ("--step few", "invalid int value"),
        ("--text t", "A text must have 2 tokens"),
        ("--text ÑÑ", "Character 'Ñ'"),
        ("--other nowhere", "holds a config.yaml"),
    ],
)
def test_what_cannot_be_is_one_line(run: Path, words: str, told: str) -> None:
    ended = looked(run, *words.split())
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert told in ended.err


def test_a_run_with_a_plugin_is_opened_and_looked_at(tmp_path: Path, run: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    places = [f"plugins=[{tmp_path}/mine.py]", f"run_dir={tmp_path}/run", f"data.path={run.parent}/text.txt"]
    ended = tiny.run(*places, "model/attention=mine", "trainer.steps=3")
    assert ended.code == 0, ended.err
    lab = gptlab.open(tmp_path / "run")
    (found,) = lab.attention("the cat").numbers
    assert found.by_softmax
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 2, 7))
    assert tiny.call(sample, str(tmp_path / "run"), "--tokens", "3").code == 0


PLUGIN = '''
"""Attention in thirty lines."""

import torch.nn as nn
import torch.nn.functional as F

from gptlab import register
from gptlab.components.attention import Attention


@register("attention", "mine")
class Mine(Attention):
    """Softmax attention of heads, fused."""

    honours = frozenset({"rotate"})

    def __init__(self, shape, position):
        super().__init__(shape, position)
        self.n_head, self.position = shape.n_head, position
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)

    def forward(self, x, context, cache=None):
        q, k, v = (x.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for x in self.qkv(x).chunk(3, -1))
        q, k = self.position.rotate(q, k, context.positions)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))
'''
