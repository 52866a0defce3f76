"""Token files and batches: the split, the reuse, two at once, and what a batch depends on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab import data
from gptlab.data import Dataset, open_dataset, part_of, prepare, sample_batch, windows
from gptlab.errors import ConfigError, DataError
from gptlab.registry import build


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(tmp_path: Path, content: str, tokenizer: Any = "byte", **options: Any) -> Dataset:
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    return prepare(build("data", {"name": "text", "path": str(path), **options}), build("tokenizer", tokenizer))


def folder_of(tmp_path: Path, *contents: str) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number}.txt").write_text(content)
    return folder


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_an_ascii_file_is_cut_where_nanogpt_cuts_it(tokenizer: str, tmp_path: Path) -> None:
    content = "".join(map(str, range(1000)))
    made = make(tmp_path, content, tokenizer)
    n = int(0.9 * len(content))
    assert made.tokenizer.decode(made.train) == content[:n]
    assert made.tokenizer.decode(made.val) == content[n:]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_a_cut_never_falls_into_a_character(fraction: float, tmp_path: Path) -> None:
    content = "aé東\U0001f600" * 50
    made = make(tmp_path, content, "char", val_fraction=fraction)
    train, val = made.tokenizer.decode(made.train), made.tokenizer.decode(made.val)
    assert train + val == content
    target = int((1 - fraction) * len(content.encode()))
    assert 0 <= len(train.encode()) - target < 4


@pytest.mark.parametrize("block", [1, 5, 64])
def test_the_cut_does_not_depend_on_the_size_of_pieces(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tmp_path, "aé東 \U0001f600\n" * 50, "bpe")
    monkeypatch.setattr("gptlab.text.reading.BLOCK", block)
    shutil.rmtree(whole.directory)
    assert make(tmp_path, "aé東 \U0001f600\n" * 50, "bpe").fingerprint == whole.fingerprint


def test_validation_begins_with_a_document_where_there_are_several(tmp_path: Path) -> None:
    made = make(tmp_path, "one\ntwo\nthree\nfour\nfive\nsix\n", lines=True, val_fraction=0.4)
    assert made.tokenizer.decode(made.train) == "one\ntwo\nthree\nfour"
    assert made.tokenizer.decode(made.val) == "five\nsix"
    assert made.meta["splits"]["train"]["documents"] == 4


def test_a_last_document_that_is_too_long_is_cut_itself(tmp_path: Path) -> None:
    source = build("data", {"name": "text", "path": str(folder_of(tmp_path, "short", "x" * 95))})
    made = prepare(source, build("tokenizer", "byte"))
    assert made.tokenizer.decode(made.train) == "short\n" + "x" * 85
    assert made.tokenizer.decode(made.val) == "x" * 10


def test_documents_are_separated_by_the_end_of_text(tmp_path: Path) -> None:
    made = make(tmp_path, "one two\none two\none two\none two\n", "bpe", lines=True, val_fraction=0.5)
    end = made.tokenizer.end_of_text
    assert made.train.tolist() == [*made.tokenizer.encode("one two"), end, *made.tokenizer.encode("one two")]


def test_bpe_learns_from_the_training_split_only(tmp_path: Path) -> None:
    made = make(tmp_path, "abc " * 90 + "xyz " * 10, "bpe")
    learned = made.tokenizer.learned[256:]
    assert any("abc" in token for token in learned)
    assert not any("x" in token or "y" in token for token in learned)


def test_char_knows_the_characters_of_validation_too(tmp_path: Path) -> None:
    assert "z" in make(tmp_path, "a" * 99 + "z", "char").tokenizer.learned


def test_bytes_per_token_counts_a_border_as_one_byte(tmp_path: Path) -> None:
    for tokenizer in ("byte", "char", "bpe"):
        made = make(tmp_path, "aé\n" * 20, tokenizer, lines=True, val_fraction=0.5)
        assert made.bytes_per_token("train") * len(made.train) == pytest.approx(39)  # 10 of 3 bytes, 9 borders
    with pytest.raises(ConfigError, match="train or val"):
        made.bytes_per_token("test")


@pytest.mark.parametrize(("tokenizer", "dtype"), [("byte", "uint16"), ("wide", "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(
    tokenizer: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tokenizer == "wide":
        monkeypatch.setattr("gptlab.tokenizer.ByteTokenizer.vocab_size", 70_000)
    assert make(tmp_path, "some text").train.dtype == dtype


def test_the_same_text_is_found_again_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path, "some text " * 20, "bpe")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.delattr(data, "_make")
    again = make(tmp_path / "elsewhere", "some text " * 20, "bpe")
    assert again.directory == first.directory
    assert again.tokenizer.encode("some") == first.tokenizer.encode("some")


def test_whatever_changes_the_tokens_makes_another_folder(tmp_path: Path) -> None:
    content = "line one\nline two\n" * 10
    made = [
        make(tmp_path, content),
        make(tmp_path, content + "x"),
        make(tmp_path, content, val_fraction=0.2),
        make(tmp_path, content, lines=True),
        make(tmp_path, content, "char"),
        make(tmp_path, content, "bpe"),
        make(tmp_path, content, {"name": "bpe", "vocab_size": 260}),
    ]
    assert len({one.directory for one in made}) == len(made)


def test_a_fitted_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, "abcabc " * 30, "char").tokenizer
    path = tmp_path / "other.txt"
    path.write_text("cab " * 10)
    made = prepare(build("data", {"name": "text", "path": str(path)}), tokenizer)
    assert made.tokenizer.learned == tokenizer.learned
    path.write_text("cab? " * 10)
    with pytest.raises(DataError, match=r"'\?'"):
        prepare(build("data", {"name": "text", "path": str(path)}), tokenizer)


@pytest.mark.parametrize("damage", ["train.bin", "val.bin", "meta.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_damaged_folder_is_made_again_and_it_is_said(damage: str, how: str, tmp_path: Path) -> None:
    first = make(tmp_path, "some text " * 20)
    path = first.directory / damage
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-2])
    with pytest.raises(DataError):
        open_dataset(first.directory)
    told: list[str] = []
    source = build("data", {"name": "text", "path": str(tmp_path / "text.txt")})
    again = prepare(source, build("tokenizer", "byte"), report=told.append)
    assert again.fingerprint == first.fingerprint
    assert "Making it again" in told[0]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 50 + b"\xff")
    with pytest.raises(DataError, match="byte 50"):
        prepare(build("data", {"name": "text", "path": str(path)}), build("tokenizer", "byte"))
    assert list((cache / "tokens").iterdir()) == []


def test_what_dead_processes_left_is_swept_and_the_living_are_not(tmp_path: Path, cache: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home = cache / "tokens"
    home.mkdir(parents=True)
    here = platform.node()
    names = {"dead": f"k.{here}.{dead.pid}.x.tmp", "alive": f"k.{here}.{os.getpid()}.x.tmp", "far": "k.far.off.1.x.tmp"}
    for name in names.values():
        (home / name).mkdir()
    (home / "k.far.off.2.x.tmp").mkdir()
    os.utime(home / "k.far.off.2.x.tmp", (1, 1))
    (home / "stranger.tmp").mkdir()
    made = make(tmp_path, "some text")
    left = {path.name for path in home.iterdir()} - {made.directory.name}
    assert left == {names["alive"], names["far"], "stranger.tmp"}


def test_the_loser_of_a_race_uses_the_winners_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = data._make

    def slowly(folder: Path, *arguments: Any) -> None:
        original(folder, *arguments)
        monkeypatch.setattr(data, "_make", original)
        winner.append(make(tmp_path, "some text " * 20))  # another process is faster

    winner: list[Dataset] = []
    monkeypatch.setattr(data, "_make", slowly)
    loser = make(tmp_path, "some text " * 20)
    assert loser.directory == winner[0].directory
    assert [path.name for path in loser.directory.parent.iterdir()] == [loser.directory.name]


def test_four_processes_at_once_agree(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "text.txt").write_text("some text and more " * 2000)
    code = (
        "from gptlab.data import prepare; from gptlab.registry import build\n"
        f"s = build('data', {{'name': 'text', 'path': {str(tmp_path / 'text.txt')!r}}})\n"
        "print(prepare(s, build('tokenizer', 'bpe')).fingerprint)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1
    assert all(process.returncode == 0 for process in running)
    assert len(list((cache / "tokens").iterdir())) == 1


def test_an_unwritable_cache_names_the_way_out(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="GPTLAB_CACHE"):
        make(tmp_path, "some text")


def test_a_text_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_survey", lambda source: data._Survey(1000, 1, 900))
    with pytest.raises(DataError, match="changed"):
        make(tmp_path, "short")


def test_a_split_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train gets none"):
        make(tmp_path, "x")


def test_a_text_shorter_than_a_block_is_refused_with_the_way_out(tmp_path: Path) -> None:
    made = make(tmp_path, "x" * 100)
    made.require(9)
    with pytest.raises(DataError, match=r"val split needs model\.block_size \+ 1 = 11 tokens, but it has 10"):
        made.require(10)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PROGRESS", 0)
    monkeypatch.setattr("gptlab.text.reading.BLOCK", 50)
    told: list[str] = []
    (tmp_path / "a.txt").write_text("x" * 1000)
    prepare(
        build("data", {"name": "text", "path": str(tmp_path / "a.txt")}), build("tokenizer", "bpe"), report=told.append
    )
    assert "1,000 bytes" in told[0]
    assert any("50%" in line for line in told)


def test_the_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    made = make(tmp_path, "some text " * 20)
    meta = json.loads((made.directory / "meta.json").read_text())
    assert made.fingerprint == meta["fingerprint"]
    assert made.fingerprint != make(tmp_path, "some texT " * 20).fingerprint
    assert made.split("train") is made.train


TOKENS = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_next_tokens() -> None:
    x, y = sample_batch(TOKENS, seed=0, step=0, n=8, block_size=16)
    assert x.shape == y.shape == (8, 16)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    def rows(seed: int, step: int, n: int = 8) -> torch.Tensor:
        return sample_batch(TOKENS, seed=seed, step=step, n=n, block_size=16)[0]

    assert torch.equal(rows(1, 2), rows(1, 2))
    assert not torch.equal(rows(1, 2), rows(1, 3))
    assert not torch.equal(rows(1, 2), rows(2, 2))
    assert not torch.equal(rows(1, 12), rows(11, 2))
    assert torch.equal(rows(1, 2, 16)[:8], rows(1, 2))


def test_ranks_and_micro_batches_take_slices_of_one_batch() -> None:
    whole, _ = sample_batch(TOKENS, seed=3, step=4, n=12, block_size=8)
    parts = [sample_batch(TOKENS, seed=3, step=4, n=12, block_size=8, rows=slice(i, i + 3))[0] for i in range(0, 12, 3)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_place_is_drawn_equally_often_ends_included() -> None:
    x, _ = sample_batch(np.arange(20), seed=0, step=0, n=11_000, block_size=9)
    drawn = torch.bincount(x[:, 0])
    assert len(drawn) == 11  # 0 .. 20 - 9 - 1
    assert ((drawn - 1000).abs() < 150).all()


@pytest.mark.parametrize("n", [2, 9, 16, 17, 33, 100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pass_has_every_token_but_the_first_as_a_target_once(n: int, batch_size: int) -> None:
    batches = list(windows(np.arange(n), block_size=8, batch_size=batch_size))
    assert {x.shape for x, _ in batches} == {y.shape for _, y in batches} == {(batch_size, 8)}
    x, y = (torch.cat(parts).flatten() for parts in zip(*batches, strict=True))
    counted = y != -100
    assert y[counted].tolist() == list(range(1, n))
    assert torch.equal(x[counted] + 1, y[counted])
    assert len(y) - (n - 1) < 8 * batch_size


@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_the_halves_of_a_split_have_every_target_of_it_once(n: int) -> None:
    tokens = np.arange(n)
    halves = [part_of(tokens, part) for part in ("first", "second")]
    assert [token for half in halves for token in half[1:].tolist()] == tokens[1:].tolist()
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert part_of(tokens, "all") is tokens


def test_a_task_is_no_text_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data=copy is a task"):
        prepare(build("data", "copy"), build("tokenizer", "byte"))
