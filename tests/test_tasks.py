"""Tasks: every answer is checked by solving its question again from its text; a run of one is a run like any other."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from gptlab import evaluate, evaluation, sample, train
from gptlab.config import ModelConfig
from gptlab.data import IGNORE
from gptlab.errors import ConfigError, DataError
from gptlab.model import GPT
from gptlab.registry import build, names
from gptlab.sampling import Draw, generate
from gptlab.tasks import Draws, SymbolTokenizer, Task

SMALL = {  # a task, and options that make it small
    "copy": {"length": 5, "shortest": 2, "n_symbol": 4},
    "reverse": {"length": 5, "shortest": 2, "n_symbol": 4},
    "sort": {"length": 6, "n_symbol": 3},
    "parity": {"length": 6, "shortest": 3},
    "addition": {"length": 2},
    "modular": {"modulus": 7, "val_fraction": 0.3},
    "induction": {"length": 5, "n_symbol": 9, "shortest": 3},
    "mqar": {"n_pair": 3, "n_symbol": 5, "shortest": 2},
}
MORE = [
    ("parity", {"length": 5, "spelled": False}),
    ("addition", {"length": 7, "lowest_first": False, "shortest": 1}),
    *(("modular", {"modulus": 11, "operation": operation}) for operation in "+-*/"),
    ("induction", {"length": 2, "n_symbol": 40}),
    ("mqar", {"n_pair": 12, "n_symbol": 12}),
    ("sort", {"length": 9, "n_symbol": 30}),
]


def make(name: str, options: dict[str, Any] | None = None) -> Task:
    made: Task = build("data", {"name": name, **(options or SMALL[name])})
    return made


def after_equals(solve: Callable[[str], list[str]]) -> Callable[[list[str]], dict[int, str]]:
    """What is asked for where a question ends in `=`: place -> symbol."""

    def answers(words: list[str]) -> dict[int, str]:
        end = words.index("=")
        return dict(enumerate(solve(" ".join(words[:end])), start=end + 1))

    return answers


def parities(told: str) -> list[str]:
    bits = told.split()
    return [str(bits[: i + 1].count("1") % 2) for i in range(len(bits))]


def add(told: str) -> list[str]:
    a, b = (part.replace(" ", "") for part in told.split("+"))
    return list(str(int(a) + int(b)).zfill(len(a) + 1))


def modulo(told: str, modulus: int) -> list[str]:
    a, operation, b = told.split()
    if operation == "/":
        return [str(next(c for c in range(modulus) if c * int(b) % modulus == int(a)))]
    return [str(eval(f"({a} {operation} {b}) % {modulus}"))]


def what_followed(words: list[str]) -> dict[int, str]:
    """Wherever the symbol before was seen before: what stood after it."""
    found = {}
    for place in range(1, len(words)):
        before = [i for i in range(place - 1) if words[i] == words[place - 1]]
        if before:
            found[place] = words[before[-1] + 1]
    return found


def looked_up(words: list[str]) -> dict[int, str]:
    half = len(words) // 2
    values = dict(zip(words[:half:2], words[1:half:2], strict=True))
    assert sorted(words[:half:2]) == sorted(words[half::2])
    return {place + 1: values[words[place]] for place in range(half, len(words), 2)}


def solver(name: str, options: dict[str, Any]) -> Callable[[list[str]], dict[int, str]]:
    in_full, lowest_first = options.get("spelled", True), options.get("lowest_first", True)
    return {
        "copy": after_equals(str.split),
        "reverse": after_equals(lambda told: list(reversed(told.split()))),
        "sort": after_equals(lambda told: sorted(told.split(), key=int)),
        "parity": after_equals(lambda told: parities(told) if in_full else parities(told)[-1:]),
        "addition": after_equals(lambda told: add(told)[:: -1 if lowest_first else 1]),
        "modular": after_equals(lambda told: modulo(told, options.get("modulus", 97))),
        "induction": what_followed,
        "mqar": looked_up,
    }[name]


def texts(task: Task, inputs: np.ndarray, targets: np.ndarray) -> list[tuple[list[str], set[int]]]:
    """Each question from its inputs and targets: its symbols, padding left out, and the places asked for."""
    found = []
    for row, wanted in zip(inputs, targets, strict=True):
        places = set((np.flatnonzero(wanted != IGNORE) + 1).tolist())
        ids = [*row.tolist(), 0][: max(places) + 1]
        for place in places:
            if place < len(row):
                assert wanted[place - 1] == row[place]
            ids[place] = wanted[place - 1]
        found.append((SymbolTokenizer.of(task.symbols).decode(ids).split(), places))
    return found


@pytest.mark.parametrize("name, options", [*SMALL.items(), *MORE])
def test_every_answer_is_right_and_exactly_the_answers_are_asked_for(name: str, options: dict[str, Any]) -> None:
    task, solve = make(name, options), solver(name, options)
    questions = texts(task, *task.batch(seed=1, step=2, n=80)) + texts(task, *task.validation(task.length))
    for words, places in questions:
        answers = solve(words)
        assert places == answers.keys(), words
        assert all(words[place] == answer for place, answer in answers.items()), words


def test_all_tasks_are_tested_here() -> None:
    assert set(SMALL) <= set(names("data"))
    assert {cls.name for cls in subclasses(Task) if cls.__module__.startswith("gptlab.")} == set(SMALL)


def subclasses(cls: type) -> list[Any]:
    return [found for direct in cls.__subclasses__() for found in (direct, *subclasses(direct))]


@pytest.mark.parametrize("name", SMALL)
def test_no_question_is_in_training_and_in_validation(name: str) -> None:
    task = make(name)
    kept = {tuple(words) for words, _ in texts(task, *task.validation(task.length))}
    seen = {tuple(words) for step in range(60) for words, _ in texts(task, *task.batch(0, step, 64))}
    assert not kept & seen
    assert len(kept) == len(task.validation(task.length)[0]), "none twice"


@pytest.mark.parametrize("name, size", [("sort", 3**6), ("modular", 49)])
def test_a_finite_task_is_cut_in_two_with_nothing_left_over(name: str, size: int) -> None:
    task = make(name)
    kept = {tuple(words) for words, _ in texts(task, *task.validation(task.length))}
    seen = {tuple(words) for step in range(200) for words, _ in texts(task, *task.batch(0, step, 64))}
    assert len(kept) + len(seen) == size
    assert abs(len(kept) / size - task.val_fraction) < 3 * math.sqrt(task.val_fraction / size)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_depends_on_seed_and_step_alone(name: str) -> None:
    one, other = make(name), make(name)
    other.batch(5, 5, 5)
    for x, y in zip(one.batch(0, 7, 16), other.batch(0, 7, 16), strict=True):
        assert np.array_equal(x, y)
    for key in ((1, 7), (0, 8)):
        assert not np.array_equal(one.batch(0, 7, 16)[0], one.batch(*key, 16)[0])


def test_the_numbers_drawn_are_the_same_on_every_machine() -> None:
    assert Draws(2, 0, "a").below(10, 8).tolist() == [[9, 7, 8, 2, 6, 2, 1, 7], [2, 9, 5, 5, 4, 3, 2, 6]]
    assert Draws(1, 3).orders(9, 5).tolist() == [[6, 2, 1, 3, 7]]


def test_numbers_are_drawn_equally_often_and_orders_have_none_twice() -> None:
    counts = np.bincount(Draws(2000, 0).below(7, 10).ravel(), minlength=7)
    assert counts.min() > 20000 / 7 * 0.93
    assert counts.max() < 20000 / 7 * 1.07
    orders = Draws(3000, 1).orders(6, 4)
    assert all(len({*row}) == 4 for row in orders.tolist())
    assert np.bincount(orders[:, 0]).min() > 420


def test_sizes_in_training_are_all_those_from_the_shortest_on() -> None:
    task = make("copy", {"length": 6, "shortest": 3, "n_symbol": 4})
    inputs, targets = task.batch(0, 0, 200)
    asked = (targets != IGNORE).sum(axis=1)
    assert set(asked) == {3, 4, 5, 6}
    assert inputs.shape == (200, 12)
    assert not np.array_equal(asked, (task.batch(0, 1, 200)[1] != IGNORE).sum(axis=1)), "drawn anew in every step"
    assert all(not row[2 * n + 1 :].any() for row, n in zip(inputs, asked, strict=True)), "filled up with 0"
    assert set((task.validation(6)[1] != IGNORE).sum(axis=1)) == {6}


def test_the_fingerprint_is_of_the_questions() -> None:
    same = {make("copy").fingerprint(), make("copy", {**SMALL["copy"], "lengths": [9]}).fingerprint()}
    others = {make("reverse").fingerprint(), make("copy", {**SMALL["copy"], "length": 6}).fingerprint()}
    assert len(same) == 1
    assert len(same | others) == 3


WRONG = {
    ("copy", "length", 0): "sizes",
    ("copy", "shortest", 21): "data.shortest must be from 1 to the size trained on, 20, but is 21",
    ("copy", "n_symbol", 1): "2 answers to choose from",
    ("copy", "lengths", (5, 0)): "sizes",
    ("copy", "n_val", 0): "n_val",
    ("sort", "val_fraction", 1.0): "data.val_fraction must be above 0 and below 1",
    ("induction", "length", 1): "A period of 1 leaves nothing to ask for",
    ("induction", "n_symbol", 31): "data.n_symbol must cover the longest period, 32, but is 31",
    ("mqar", "n_symbol", 7): "data.n_symbol must cover all pairs, 8, but is 7",
    ("modular", "modulus", 1): "2 answers to choose from",
}


@pytest.mark.parametrize("name, option, value", WRONG)
def test_an_option_that_cannot_be_is_one_line(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as told:
        build("data", {"name": name, option: list(value) if isinstance(value, tuple) else value})
    assert WRONG[name, option, value] in str(told.value)
    assert "\n" not in str(told.value)


def test_division_needs_a_prime() -> None:
    with pytest.raises(ConfigError, match=r"needs a prime data\.modulus, but 9 is none"):
        build("data", {"name": "modular", "operation": "/", "modulus": 9})


def test_a_task_with_too_few_questions_says_so() -> None:
    with pytest.raises(DataError, match="too few questions of size 1"):
        make("copy", {"length": 1, "n_symbol": 2, "val_fraction": 0.001}).validation(1)


def test_symbols_there_and_back() -> None:
    made = SymbolTokenizer.of(["0", "1", "="])
    assert made.decode(made.encode("0 1 = 0")) == " 0 1 = 0"
    assert made.decode([]) == ""
    with pytest.raises(DataError, match="'7' is none of the 3 symbols"):
        made.encode("0 7")
    with pytest.raises(ConfigError, match="for text choose char"):
        build("tokenizer", "symbols").fit(lambda: iter(()))


def questions_and_model() -> tuple[Task, GPT]:
    task = make("copy", {"length": 2, "n_symbol": 2, "val_fraction": 0.7})
    model = GPT(ModelConfig(vocab_size=3, n_layer=1, n_head=1, n_embd=8, block_size=8, position="learned"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return task, model


def test_a_question_is_solved_where_decoding_greedily_solves_it() -> None:
    solved = []
    for length in (1, 2, 3):
        task, model = questions_and_model()
        inputs, targets = (torch.from_numpy(x) for x in task.validation(length))
        greedy = [
            [token for (token,) in generate(model, row[: length + 1].tolist(), length, draw=Draw(0))] for row in inputs
        ]
        right = [ids == row[length : 2 * length].tolist() for ids, row in zip(greedy, targets, strict=True)]
        found = evaluation.answer(model, inputs, targets, batch_size=2)
        assert found.solved == pytest.approx(sum(right) / len(right))
        solved.append(found.solved)
    assert len({0.0, *solved}) > 1, "some are solved, or nothing was tested"


def test_accuracy_and_loss_are_means_over_what_is_asked() -> None:
    task, model = questions_and_model()
    inputs, targets = (torch.from_numpy(x) for x in task.validation(3))
    model.train()
    found = evaluation.answer(model, inputs, targets, batch_size=3)
    assert model.training
    model.eval()
    right, nats = [], []
    for row, wanted in zip(inputs, targets, strict=True):
        logits = model(row[None])[0].detach().double()
        for place in range(3, 6):
            right.append(int(logits[place].argmax()) == int(wanted[place]))
            nats.append(float(logits[place].logsumexp(0) - logits[place, wanted[place]]))
    assert found.accuracy == pytest.approx(sum(right) / len(right))
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)


# Runs.

COPY = [
    "data=copy",
    "data.length=3",
    "data.shortest=2",
    "data.n_symbol=3",
    "data.lengths=[4,8]",
    "data.val_fraction=0.3",
]


def run(*words: str) -> tiny.Ended:
    """A training of a task in this process: the tiny settings, without those of text."""
    settings = [word for word in tiny.overrides(*words) if not word.startswith(("tokenizer=", "data.path="))]
    return tiny.call(train, *settings, *(word for word in words if word.startswith("tokenizer=")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_of_a_task_leaves_its_accuracies(home: Path) -> None:
    ended = run(*COPY, "run_dir=r")
    assert ended.code == 0, ended.err
    assert "chance 0.3333, 1.0986 nats" in ended.out
    told, last = tiny.summary("r"), tiny.rows("r")[-1]
    assert {f"val/{what}{at}" for what in ("loss", "accuracy", "solved") for at in ("", "@4", "@8")} <= last.keys()
    assert told["accuracy"] == {
        f"{what}{at}": last[f"val/{what}{at}"] for what in ("accuracy", "solved") for at in ("", "@4", "@8")
    }
    assert told["chance"] == {"loss": pytest.approx(math.log(3)), "accuracy": pytest.approx(1 / 3)}
    assert (told["ruler"], "val_bpb" in told, told["val_loss"]) == ({}, False, last["val/loss"])
    assert told["tokens"] == 12 * 4 * 6, "steps, questions, and the tokens of the longest"
    assert told["variants"]["tokenizer"] == "symbols"
    lines = tiny.rows("r", "samples.jsonl")[-1]["text"].splitlines()
    assert len(lines) == 4, "questions"
    assert all(line.endswith(("right", "wrong")) and " = " in line for line in lines)


def test_a_run_of_a_task_goes_on_to_the_same_bits(home: Path) -> None:
    assert run(*COPY, "run_dir=whole").code == 0
    shutil.copytree("whole", "r")
    shutil.rmtree("r/checkpoints/step_00000012")
    assert tiny.call(train, "resume=r").code == 0
    tiny.must_be_same("r", "whole")
    assert tiny.summary("r")["signature"] == tiny.summary("whole")["signature"]
    assert tiny.summary("r")["accuracy"] == tiny.summary("whole")["accuracy"]


def test_a_part_of_validation_is_a_half_of_its_questions(home: Path) -> None:
    for part in ("all", "first", "second"):
        assert run(*COPY, f"run_dir={part}", f"trainer.eval_part={part}", "data.n_val=4").code == 0
    whole, first, second = (tiny.rows(part)[-1] for part in ("all", "first", "second"))
    for key in ("val/loss", "val/accuracy@8", "val/solved"):
        assert (first[key] + second[key]) / 2 == pytest.approx(whole[key], rel=1e-5)


REFUSED = {
    ("trainer.tokens_per_step=4096", "model.block_size=64"): "trainer.tokens_per_step counts sequences of",
    ("tokenizer=char",): "data=copy brings its own symbols, so tokenizer=char cannot choose others: leave it out.",
    ("tokenizer=byte",): "so tokenizer=byte cannot choose others",
    ("model.block_size=5",): "model.block_size must cover a question of data=copy, 6 tokens, but is 5: raise it to 6",
    (
        "position=learned",
        "model.block_size=15",
    ): "those of size 8 have 16 tokens, but this position encoding ends at 15",
    ("model.document_mask=true",): "data=copy has no documents: leave model.document_mask out",
    ("trainer.sample_prompt=1",): "data=copy samples its own questions",
    ("data.length=0",): "sizes",
    ("data.lenth=4",): "length",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_with_a_task_is_one_line_and_leaves_nothing(words: tuple[str, ...], home: Path) -> None:
    ended = run(*COPY, *words, "run_dir=r")
    assert ended.code == 2, ended.out
    assert REFUSED[words] in ended.err
    assert ended.err.count("\n") == 1
    assert not (home / "r").exists()


def test_positions_that_end_are_judged_on_rows_that_were_never_trained(home: Path) -> None:
    assert run(*COPY, "position=learned", "model.block_size=16", "run_dir=r").code == 0
    table = tiny.newest("r").tensors["model"]["position.table.weight"]
    fresh = GPT(ModelConfig(vocab_size=4, n_layer=0, n_head=2, n_embd=16, block_size=16, position="learned"))
    decayed = table[6:] / fresh.position.state_dict()["table.weight"][6:]
    assert torch.allclose(decayed, decayed[0, 0].expand_as(decayed), rtol=1e-4), "only ever decayed"


def test_a_text_cannot_have_the_tokenizer_of_a_task(home: Path) -> None:
    tiny.write_text(home)
    ended = tiny.run("tokenizer=symbols", "run_dir=r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "for text choose char, byte or bpe" in ended.err


def test_the_doors_take_a_run_of_a_task(home: Path) -> None:
    assert run(*COPY, "run_dir=r").code == 0
    ended = tiny.call(sample, "r", "--prompt", "2 0 1 =", "--tokens", "3", "--greedy")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("2 0 1 = ")
    assert len(ended.out.split()) == 7
    ended = tiny.call(evaluate, "r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "data=copy is a task" in ended.err


def test_weights_of_another_vocabulary_cannot_begin_a_task(home: Path) -> None:
    tiny.write_text(home)
    assert tiny.run("run_dir=text").code == 0
    assert run(*COPY, "run_dir=task").code == 0
    assert run(*COPY, "init=task", "run_dir=more", "optimizer.lr=1e-4").code == 0
    ended = run(*COPY, "init=text", "run_dir=r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "brings its own symbols" in ended.err


PLUGIN = '''"""A task of mine."""
from typing import Annotated, Any
from gptlab.registry import register
from gptlab.tasks import Draws, Questions, Task

@register("data", "swap")
class Swap(Task):
    """A task: two symbols the other way round."""
    name = "swap"

    def __init__(self, *, n_symbol: Annotated[int, "different symbols"] = 5, **options: Any) -> None:
        super().__init__([*"abcdefgh"[:n_symbol], "="], n_symbol, 2, **options)

    def questions(self, draws: Draws, length: int) -> Questions:
        told = draws.below(self.n_answer, length)
        return self.answered(told, told[:, ::-1])
'''


def test_a_task_from_a_plugin_is_one_file(home: Path) -> None:
    (home / "swap.py").write_text(PLUGIN)
    ended = run("data=swap", "data.n_symbol=8", "plugins=[./swap.py]", "run_dir=r", "data.lengths=[3]")
    assert ended.code == 0, ended.err
    assert "val/accuracy@3" in tiny.rows("r")[-1]


def test_sorting_is_learnt(home: Path) -> None:
    words = ["data=sort", "data.length=3", "model.n_embd=32", "model.dropout=0", "optimizer.lr=0.01"]
    more = ["trainer.steps=150", "trainer.batch_size=32", "trainer.sample_every=0", "trainer.log_every=50"]
    assert run(*words, *more, "trainer.eval_every=0", "trainer.save_every=0", "position=learned", "run_dir=r").code == 0
    assert tiny.summary("r")["accuracy"] == {"accuracy": 1.0, "solved": 1.0}
