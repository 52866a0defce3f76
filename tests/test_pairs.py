"""Pairs: files read or refused by their line, rows of tokens, batches by step; runs that learn targets alone."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from gptlab import evaluate, evaluation, rundir, sample, train
from gptlab.data import IGNORE
from gptlab.errors import ConfigError, DataError, GptlabError
from gptlab.pairs import Pairs
from gptlab.registry import build
from gptlab.sampling import Draw, generate
from gptlab.text import PairSource

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def lines(n: int = 60) -> list[tuple[str, str]]:
    """Two numbers in words, and in digits."""
    return [(f"{WORDS[i % 10]} {WORDS[i // 10]}", f"{i % 10}{i // 10}") for i in range(n)]


def write(path: Path, pairs: list[tuple[str, str]] | None = None) -> Path:
    """A file of pairs, in the format of its name."""
    as_json = ".jsonl" in path.name
    made = lines() if pairs is None else pairs
    text = "".join((json.dumps({"source": s, "target": t}) if as_json else f"{s}\t{t}") + "\n" for s, t in made)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def source(path: Path, **options: Any) -> PairSource:
    made: PairSource = build("data", {"name": "pairs", "path": str(path), **options})
    return made


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.tsv.gz", "a.jsonl.gz"])
def test_a_file_is_read_in_its_order_whatever_its_format(name: str, tmp_path: Path) -> None:
    found = list(source(write(tmp_path / name)).pairs())
    assert [pair[:2] for pair in found] == lines()
    assert [pair.line for pair in found] == list(range(1, 61))


def test_empty_lines_and_carriage_returns_are_passed_over_and_keys_may_differ(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("x\ty\r\n\n \nä b\tü\r\n".encode())
    assert [tuple(pair) for pair in source(tmp_path / "a.tsv").pairs()] == [("x", "y", 1), ("ä b", "ü", 4)]
    (tmp_path / "a.jsonl").write_text('{"q": "x", "a": "y", "n": 3}\n')
    asked = source(tmp_path / "a.jsonl", source_key="q", target_key="a")
    assert [tuple(pair) for pair in asked.pairs()] == [("x", "y", 1)]


BAD = {
    "a.tsv": {
        b"x y": "a source, a tab and a target, but line 2 of {} is not (ValueError: it has 1 columns)",
        b"x\ty\tz": "line 2 of {} is not (ValueError: it has 3 columns)",
        b"x\t": "'' is no text",
        b"\xff\ty": "line 2 of {} is not (UnicodeDecodeError",
    },
    "a.jsonl": {
        b"{": "a JSON object with text under source and target, but line 2 of {} is not (JSONDecodeError",
        b'{"source": "x"}': "line 2 of {} is not (KeyError: 'target')",
        b'{"source": "x", "target": 3}': "3 is no text",
        b'["x", "y"]': "line 2 of {} is not (TypeError",
        b'{"source": "x", "target": "\\ud800"}': "line 2 of {} is not (UnicodeEncodeError",
        b'{"source": "", "target": "y"}': "'' is no text",
    },
}


@pytest.mark.parametrize("name, line, told", [(name, *each) for name, cases in BAD.items() for each in cases.items()])
def test_a_bad_line_is_one_line_with_file_and_number(name: str, line: bytes, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, lines(1))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError) as refused:
        source(path).split()
    assert told.format(path) in str(refused.value)
    assert str(refused.value).endswith("mend it.")
    assert "\n" not in str(refused.value)


def test_no_source_is_in_both_splits_and_the_order_of_the_file_decides_nothing(tmp_path: Path) -> None:
    twice = [(f"number {i % 500}", str(i)) for i in range(1000)]
    train, val = source(write(tmp_path / "a.tsv", twice), val_fraction=0.2).split()
    assert not {pair.source for pair in train} & {pair.source for pair in val}
    assert 60 < len({pair.source for pair in val}) < 140
    again = source(write(tmp_path / "b.tsv", twice[::-1]), val_fraction=0.2).split()
    assert [{pair[:2] for pair in split} for split in again] == [{pair[:2] for pair in split} for split in (train, val)]
    assert [pair.source for pair in again[1]] == [pair.source for pair in val]
    assert [pair.source for pair in val] != sorted(pair.source for pair in val)


@pytest.mark.parametrize("tokenizer", ["char", "byte", {"name": "bpe", "vocab_size": 280}], ids=str)
def test_rows_are_source_separator_target_end_and_targets_alone_are_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    made = Pairs(source(write(tmp_path / "a.tsv")), build("tokenizer", tokenizer))
    text = made.tokenizer
    inputs, targets = made.batch(seed=1, step=2, n=50)
    assert inputs.shape == targets.shape == (50, made.width)
    known = dict(lines())
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        border = row.index(made.separator)
        said = text.decode(row[:border])
        answer = [*text.encode(known[said]), made.end]
        assert wanted == [IGNORE] * border + answer + [IGNORE] * (made.width - border - len(answer))
        assert row[border + 1 : border + len(answer)] == answer[:-1]
        assert made.prompt(said) == row[: border + 1]
    assert made.end == (text.end_of_text if text.end_of_text is not None else text.encode("\n")[0])


def test_a_batch_is_a_function_of_seed_and_step_row_by_row(tmp_path: Path) -> None:
    made = Pairs(source(write(tmp_path / "a.tsv")), build("tokenizer", "char"))
    whole = made.batch(3, 4, 32)
    for rows in (slice(0, 8), slice(8, 32, 2)):
        for part, all_ in zip(made.batch(3, 4, 32, rows), whole, strict=True):
            assert np.array_equal(part, all_[rows])
    assert np.array_equal(made.batch(3, 4, 12)[0], whole[0][:12])
    for other in (made.batch(3, 5, 32), made.batch(4, 4, 32)):
        assert not np.array_equal(other[0], whole[0])
    drawn = {tuple(row) for step in range(60) for row in made.batch(0, step, 32)[0].tolist()}
    assert len(drawn) == len(made.train), "every pair comes"


def test_pairs_that_differ_have_other_fingerprints(tmp_path: Path) -> None:
    def fingerprint(pairs: list[tuple[str, str]], **options: Any) -> str:
        return Pairs(source(write(tmp_path / "a.tsv", pairs), **options), build("tokenizer", "byte")).fingerprint()

    first = fingerprint(lines())
    assert fingerprint(lines()) == first
    assert fingerprint([*lines()[:-1], ("ten ten", "1")]) != first
    assert fingerprint(lines(), val_fraction=0.5) != first
    assert fingerprint(lines(), separator=":") != first


REFUSED: list[tuple[str, dict[str, Any], Any, str]] = [
    ("x: y\tz", {"separator": ": "}, "char", "data.separator=': ' must be one token, but tokenizer 'char' makes 2"),
    ("x:y\tz", {"separator": ":"}, "char", "No source may hold the separator, but that of line 61 of"),
    ("é\tz", {}, "fitted", "a.tsv: Character 'é' at position 0 is not among"),
]


@pytest.mark.parametrize("line, options, tokenizer, told", REFUSED)
def test_a_pair_that_cannot_be_a_row_is_refused(
    line: str, options: dict[str, Any], tokenizer: str, told: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tsv")
    text = build("tokenizer", "char")
    if tokenizer == "fitted":
        Pairs(source(path), text)
    path.write_text(path.read_text() + f"{line}\n")
    with pytest.raises(GptlabError) as refused:
        Pairs(source(path, **options), text)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_target_with_a_line_break_needs_a_tokenizer_with_an_end_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*lines(), ("poem", "roses\nviolets")])
    with pytest.raises(DataError, match=r"line 61 of .* has a line break: take it out, or choose tokenizer=bpe"):
        Pairs(source(path), build("tokenizer", "char"))
    made = Pairs(source(path), build("tokenizer", {"name": "bpe", "vocab_size": 300}))
    assert made.end == 299 or made.end == made.tokenizer.vocab_size - 1


def test_too_few_pairs_and_odd_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"but get 1 and 0 of those in"):
        source(write(tmp_path / "a.tsv", lines(1)), val_fraction=0.001).split()
    with pytest.raises(DataError, match="cannot be read"):
        source(tmp_path / "none.tsv").split()
    for options, told in (
        ({"path": "a.csv"}, "must be a .jsonl or .tsv file"),
        ({"path": "a.tsv", "source_key": "q"}, "are about .jsonl"),
        ({"path": "a.tsv", "val_fraction": 1.0}, "below 1"),
        ({"path": "a.tsv", "n_val": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            build("data", {"name": "pairs", **options})


# Runs.

PAIRS = ["data=pairs", "data.path=a.tsv", "data.val_fraction=0.2", "model.block_size=24", "model.dropout=0"]
LEARN = ["trainer.steps=150", "trainer.batch_size=32", "optimizer.lr=0.01", "model.n_embd=32", "trainer.log_every=50"]
ONCE = ["trainer.eval_every=0", "trainer.save_every=0", "trainer.sample_every=0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tsv")
    return tmp_path


@pytest.mark.parametrize("attention", ["flash", "vanilla", "flex", "softmax"])
def test_targets_are_learnt_with_a_source_seen_both_ways(attention: str, home: Path) -> None:
    words = [f"model/attention={attention}", "model.attention.causal=prefix", "run_dir=r"]
    ended = tiny.run(*PAIRS, *LEARN, *ONCE, *words)
    assert ended.code == 0, ended.err
    told, last = tiny.summary("r"), tiny.rows("r")[-1]
    assert {"val/loss", "val/accuracy", "val/solved"} <= last.keys()
    assert told["accuracy"] == {"accuracy": last["val/accuracy"], "solved": last["val/solved"]}
    assert last["val/accuracy"] > 0.5
    model, text = rundir.load("r")
    assert model.config.source_end == text.encode("\t")[0]


def test_a_run_shows_what_it_says_and_the_door_asks_more(home: Path) -> None:
    assert tiny.run(*PAIRS, *LEARN, *ONCE, "run_dir=r", "model.attention.causal=prefix").code == 0
    shown = tiny.rows("r", "samples.jsonl")[-1]["text"].splitlines()
    assert len(shown) == 4
    known, wrong = dict(lines()), 0
    for line in shown:
        asked, _, rest = line.partition(" -> ")
        said, _, verdict = rest.partition("   ")
        assert verdict == ("right" if said == known[asked] else f"not {known[asked]}")
        ended = tiny.call(sample, "r", "--prompt", asked, "--greedy")
        assert ended.out.startswith(f"{asked}\t{said.removesuffix('...')}"), ended.err
        wrong += verdict != "right"
    assert wrong < 4
    ended = tiny.call(sample, "r", "--greedy")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--prompt must be a source" in ended.err
    ended = tiny.call(sample, "r", "--prompt", 10 * next(iter(known)), "--greedy")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "fits in model.block_size=24 with its separator" in ended.err


def test_solved_is_the_share_that_greedy_decoding_says_exactly(home: Path) -> None:
    assert tiny.run(*PAIRS, *LEARN, *ONCE, "trainer.steps=60", "run_dir=r").code == 0
    model, text = rundir.load("r")
    made = Pairs(source(home / "a.tsv", val_fraction=0.2), text)
    right = []
    for pair in made.val:
        answer = [*text.encode(pair.target), made.end]
        drawn = generate(model, made.prompt(pair.source), len(answer), draw=Draw(temperature=0))
        right.append([token for (token,) in drawn] == answer)
    found = evaluation.answer(model, *(torch.from_numpy(x) for x in made.validation()), batch_size=4)
    assert found.solved == pytest.approx(sum(right) / len(right))
    assert found.solved == tiny.summary("r")["accuracy"]["solved"]


def test_a_run_goes_on_to_the_same_bits(home: Path) -> None:
    assert tiny.run(*PAIRS, "model.attention.causal=prefix", "run_dir=whole").code == 0
    shutil.copytree("whole", "r")
    shutil.rmtree("r/checkpoints/step_00000012")
    assert tiny.call(train, "resume=r").code == 0
    tiny.must_be_same("r", "whole")
    assert tiny.summary("r")["signature"] == tiny.summary("whole")["signature"]


def test_a_task_that_ends_in_equals_has_a_source_too(home: Path) -> None:
    settings = [word for word in tiny.overrides("data=copy") if not word.startswith("tokenizer=")]
    ended = tiny.call(train, *settings, "model.attention.causal=prefix", "data.length=3", "run_dir=r")
    assert ended.code == 0, ended.err
    model, text = rundir.load("r")
    assert model.config.source_end == text.encode("=")[0]
    settings = [word for word in tiny.overrides("data=mqar") if not word.startswith("tokenizer=")]
    ended = tiny.call(train, *settings, "model.attention.causal=prefix", "model.block_size=64", "run_dir=s")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "have no = to end one" in ended.err


@pytest.mark.parametrize(
    "words, told",
    [
        (["model.block_size=8"], "model.block_size must cover every pair, but is 8, and line "),
        (["model.document_mask=true"], "data=pairs has no documents: leave model.document_mask out"),
        (["trainer.sample_prompt=x"], "data=pairs samples its own questions"),
        (["data.path=none.tsv"], "none.tsv cannot be read"),
        (["data.path=a.txt"], "data.path must be a .jsonl or .tsv file"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(words: list[str], told: str, home: Path) -> None:
    ended = tiny.run(*PAIRS, *words, "run_dir=r")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert told in ended.err
    assert not Path("r").exists()


def test_a_run_on_pairs_is_not_scored_as_a_text(home: Path) -> None:
    assert tiny.run(*PAIRS, "run_dir=r").code == 0
    ended = tiny.call(evaluate, "r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "data=pairs is a task, not a text" in ended.err


def test_weights_go_on_with_other_pairs(home: Path) -> None:
    assert tiny.run(*PAIRS, "run_dir=r", "tokenizer=byte").code == 0
    ended = tiny.run(*PAIRS, "init=r", "run_dir=more", "tokenizer=byte", "data.separator=:")
    assert ended.code == 0, ended.err
