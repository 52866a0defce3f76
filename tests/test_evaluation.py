"""How good a model is: one naive pass gives the same number, whatever the batch; and the door to it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gptlab import ModelConfig, data, registry, report, rundir
from gptlab import evaluate as door
from gptlab.errors import DataError
from gptlab.evaluation import bits_per_byte, evaluate
from gptlab.model import GPT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on a small text of characters."""
    folder = tmp_path_factory.mktemp("scored")
    text = tiny.write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        assert tiny.run(f"data.path={text}", f"run_dir={folder / 'r'}", "trainer.steps=3").code == 0
    return folder / "r"


def naive(model: GPT, tokens: np.ndarray) -> float:
    """Every token but the first, one window at a time, one token at a time."""
    size, total = model.config.block_size, 0.0
    for start in range(0, len(tokens) - 1, size):
        window = torch.tensor(tokens[start : start + size + 1].astype(np.int64))
        with torch.no_grad():
            log_p = model(window[None, :-1])[0].log_softmax(-1)
        total -= sum(log_p[i, window[i + 1]].item() for i in range(len(window) - 1))
    return total / (len(tokens) - 1)


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 65, 100])
def test_a_pass_is_the_naive_pass_whatever_the_batch(n_tokens: int) -> None:
    model = GPT(ModelConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.5)).eval()
    tokens = np.random.default_rng(0).integers(11, size=n_tokens).astype(np.uint16)
    expected = naive(model, tokens)
    for batch_size in (1, 3, 32):
        assert evaluate(model, tokens, batch_size=batch_size) == pytest.approx(expected, abs=1e-5)


def test_a_pass_leaves_the_model_in_its_mode() -> None:
    model = GPT(ModelConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.5))
    tokens = np.arange(30, dtype=np.uint16) % 11
    assert evaluate(model.train(), tokens, batch_size=4) == evaluate(model.eval(), tokens, batch_size=4)
    assert not model.training
    evaluate(model.train(), tokens, batch_size=4)
    assert model.training


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_8() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256) * 2, 2.0) == pytest.approx(8)


def ask(run: Path, *flags: str) -> dict[str, float]:
    ended = tiny.call(door, str(run), "--device", "cpu", "--json", *flags)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_the_door_gives_the_loss_that_the_run_ended_with(run: Path) -> None:
    told = ask(run, "--split", "val")
    assert told["loss"] == pytest.approx(tiny.summary(run)["val_loss"], abs=1e-6)
    assert told["bpb"] == pytest.approx(tiny.summary(run)["val_bpb"], abs=1e-6)
    assert told["perplexity"] == pytest.approx(math.exp(told["loss"]))
    assert told["loss"] == ask(run, "--batch", "1")["loss"] or math.isclose(
        told["loss"], ask(run, "--batch", "1")["loss"], rel_tol=1e-6
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_and_the_same_text_from_a_file_score_the_same(split: str, run: Path, tmp_path: Path) -> None:
    config = rundir.read_config(run)
    source, tokenizer = registry.build("data", config.data), registry.build("tokenizer", config.tokenizer)
    dataset = data.prepare(source, tokenizer, report=lambda line: None)
    text = dataset.tokenizer.decode(dataset.split(split).tolist())
    (tmp_path / "split.txt").write_text(text)
    inside, outside = ask(run, "--split", split), ask(run, "--text", str(tmp_path / "split.txt"))
    assert outside["tokens"] == inside["tokens"] == len(text)
    assert outside["loss"] == pytest.approx(inside["loss"], abs=1e-6)
    assert outside["bpb"] == pytest.approx(inside["loss"] / math.log(2), abs=1e-5), "a character here is a byte"


def test_the_table_says_which_n_grams_are_beaten(run: Path) -> None:
    ended = tiny.call(door, str(run), "--device", "cpu")
    assert ended.code == 0, ended.err
    assert "nats per token" in ended.out
    assert "7-gram" in ended.out


REFUSED = {
    "": "is empty",
    "t": "A loss needs 2 tokens",
    "the Ñ": "Character 'Ñ'",
    None: "is not there",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_text_that_cannot_be_scored_is_one_line(text: str | None, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.txt"
    if text is not None:
        path.write_text(text)
    ended = tiny.call(door, str(run), "--device", "cpu", "--text", str(path))
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert REFUSED[text] in ended.err


@pytest.mark.parametrize(
    "flags, told", [("--batch 0", "--batch must be at least 1"), ("--precision fp8", "--precision must be one of")]
)
def test_a_flag_that_cannot_be_is_one_line(flags: str, told: str, run: Path) -> None:
    ended = tiny.call(door, str(run), *flags.split())
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert told in ended.err


def test_a_run_is_not_scored_on_a_text_that_has_changed(tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        assert tiny.run(f"data.path={text}", f"run_dir={tmp_path / 'r'}", "trainer.steps=3").code == 0
    text.write_text(text.read_text()[::-1])
    with pytest.raises(DataError, match="was trained on another text"):
        door.main([str(tmp_path / "r"), "--split", "train"])
