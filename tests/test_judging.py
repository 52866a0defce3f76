"""lm-evaluation-harness on a run: what it is told is what our own evaluation and sampling say."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

pytest.importorskip("lm_eval", reason="needs the extra: pip install 'gptlab[eval]'")

from gptlab import evaluate as door
from gptlab.config import ModelConfig
from gptlab.evaluation import evaluate
from gptlab.harness import Judged
from gptlab.model import GPT
from gptlab.registry import build
from gptlab.rundir import load
from gptlab.sampling import Draw, generate
from gptlab.tokenizer import Tokenizer

BLOCK = 16


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained run `r`, tasks in `tasks`, and Hugging Face's cache apart and offline."""
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "hf"))
        tiny.write_text(folder)
        ended = tiny.run("run_dir=r", "tokenizer=byte", "trainer.steps=30", "optimizer.lr=1e-2")
        assert ended.code == 0, ended.err
        write_tasks(folder / "tasks")
        yield folder


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    choices = [
        {"question": "the cat", "choices": [" sat on a mat", " zzz", " qqqq"], "answer": 0},
        {"question": "then it ran far", "choices": [" xx", " away from all of us"], "answer": 1},
        {"question": "all", "choices": [" of us", " JJJJ", " of them and then some who were not there"], "answer": 0},
    ]
    pages = [{"page": "the cat sat on a mat and then it ran far away"}, {"page": "all of us\nran\n"}]
    asked = [{"question": "the cat sat on", "answer": " a mat"}, {"question": "all of", "answer": " us"}]
    for name, rows in (("choices", choices), ("pages", pages), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(name: str, rows: str, **settings: Any) -> None:
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{rows}.jsonl")}}}
        whole = {"task": name, **data, "test_split": "test", "metadata": {"version": 1}, **settings}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))

    task(
        "tiny_choices", "choices", output_type="multiple_choice", doc_to_text="{{question}}",
        doc_to_choice="{{choices}}", doc_to_target="{{answer}}", target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    task(
        "tiny_pages", "pages", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{page}}",
        metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )  # fmt: skip
    task(
        "tiny_asked", "asked", output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(home: Path) -> tuple[GPT, Tokenizer]:
    return load(home / "r", note=str)


@pytest.fixture(scope="module")
def judged(run: tuple[GPT, Tokenizer]) -> Judged:
    return Judged(*run, batch_size=4)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def log_probabilities(model: GPT, ids: list[int]) -> list[float]:
    """Of each token but the first, given all before it; in one window, alone."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0].double()
    return [logits[i].log_softmax(-1)[token].item() for i, token in enumerate(ids[1:])]


def test_the_likelihood_of_a_continuation_is_the_sum_over_its_tokens(
    judged: Judged, run: tuple[GPT, Tokenizer]
) -> None:
    pairs = [("the cat", " sat"), ("a", " m"), ("then it", " ran far"), ("", "all of us"), ("on ", "a mat")]
    told = judged.loglikelihood(requests(*pairs), disable_tqdm=True)
    model, text = run
    for (given, scored), (total, _) in zip(pairs, told, strict=True):
        ids = text.encode((given or "\n") + scored)
        n = len(text.encode(scored)) + len(given) - len(given.rstrip())
        assert total == pytest.approx(sum(log_probabilities(model, ids)[-n:]), abs=1e-4)


@pytest.mark.parametrize(("given", "scored"), [("", "\nall of us"), (" ", "cat"), ("\n ", "cat")])
def test_where_no_more_than_spaces_is_given_every_token_is_scored(
    given: str, scored: str, judged: Judged, run: tuple[GPT, Tokenizer]
) -> None:
    """They are scored. A line break that begins them is text, though it is also what a text begins after."""
    ((total, _),) = judged.loglikelihood(requests((given, scored)), disable_tqdm=True)
    ids = run[1].encode("\n" + given + scored)
    assert total == pytest.approx(sum(log_probabilities(run[0], ids)), abs=1e-4)


def test_nothing_is_as_likely_as_can_be(judged: Judged) -> None:
    assert judged.loglikelihood(requests(("", ""), ("a", "")), disable_tqdm=True) == [(0.0, True)] * 2


def test_what_is_longer_than_a_block_keeps_its_end(judged: Judged, run: tuple[GPT, Tokenizer]) -> None:
    ((total, _),) = judged.loglikelihood(requests(("far away from all of us and then", " it ran")), disable_tqdm=True)
    ids = run[1].encode("far away from all of us and then it ran")[-BLOCK - 1 :]
    assert total == pytest.approx(sum(log_probabilities(run[0], ids)[-7:]), abs=1e-4)


def test_greedy_is_what_greedy_decoding_says(judged: Judged) -> None:
    best = judged.generate_until(requests(("the ca", {"max_gen_toks": 5})))[0]
    other = best[:-1] + ("x" if best[-1] != "x" else "y")
    told = judged.loglikelihood(requests(("the ca", best), ("the ca", other), ("the ca", best[:2])), disable_tqdm=True)
    assert [greedy for _, greedy in told] == [True, False, True]


@pytest.mark.parametrize("length", [1, BLOCK, 2 * BLOCK, 5 * BLOCK])
def test_a_rolling_likelihood_is_minus_the_sum_of_our_losses(
    length: int, judged: Judged, run: tuple[GPT, Tokenizer]
) -> None:
    model, text = run
    page = (" ".join(tiny.WORDS) * 9)[:length]
    (total,) = judged.loglikelihood_rolling(requests((page,)))
    tokens = np.array(text.encode("\n" + page))
    assert total == pytest.approx(-evaluate(model, tokens, batch_size=2) * (len(tokens) - 1), rel=1e-5)


def test_windows_are_the_harness_own_and_score_each_token_once(judged: Judged) -> None:
    from lm_eval.utils import get_rolling_token_windows

    for n in range(1, 60):
        theirs = get_rolling_token_windows(list(range(n)), prefix_token=99, max_seq_len=BLOCK, context_len=1)
        ours = list(judged._windows([99], list(range(n))))
        assert [(tokens[:-1], tokens[-scored:]) for tokens, scored in ours] == list(theirs)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_is_asked_together_does_not_matter(batch_size: int, run: tuple[GPT, Tokenizer], judged: Judged) -> None:
    pairs = [(list(range(1, n)), list(range(n, n + m))) for n in (2, 9, 30) for m in (1, 5, 40)]
    alone = [judged.score([pair])[0] for pair in pairs]
    together = Judged(*run, batch_size=batch_size).score(pairs)
    assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_an_answer_ends_before_its_stop(judged: Judged, run: tuple[GPT, Tokenizer]) -> None:
    model, text = run
    whole = text.decode([token for (token,) in generate(model, text.encode("the cat"), 12, draw=Draw(temperature=0))])
    told = judged.generate_until(
        requests(
            ("the cat", {"max_gen_toks": 12}),
            ("the cat", {"max_gen_toks": 12, "until": [whole[4:6], "never"]}),
            ("the cat", {"max_new_tokens": 3, "until": "never"}),
            ("the cat", {"max_gen_toks": 12, "until": [], "temperature": 0.7}),  # not sampled unless do_sample says so
        )
    )
    assert told == [whole, whole[: whole.index(whole[4:6])], whole[:3], whole]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_do_not_depend_on_what_else_is_asked(batch_size: int, run: tuple[GPT, Tokenizer]) -> None:
    long = {"max_gen_toks": 9}
    asked = [("the cat", long), ("all", long), ("then it ran far away", {**long, "until": ["a"]}), ("", long)]
    alone = [Judged(*run, batch_size=1).generate_until(requests(one))[0] for one in asked]
    assert Judged(*run, batch_size=batch_size).generate_until(requests(*asked)) == alone


def test_sampling_is_drawn_where_the_task_asks_for_it(judged: Judged) -> None:
    hot = {"max_gen_toks": 20, "do_sample": True, "temperature": 5.0}
    first, again = judged.generate_until(requests(("the cat", hot), ("the cat", hot)))
    assert first == again != judged.generate_until(requests(("the cat", {"max_gen_toks": 20})))[0]


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"top_k": None}, {"until": ["", None]}], ids=str)
def test_what_others_write_for_no_filter_and_no_stop_is_none(off: dict[str, Any], judged: Judged) -> None:
    sampled = {"max_gen_toks": 20, "do_sample": True, "temperature": 5.0}
    plain, same = judged.generate_until(requests(("the cat", sampled), ("the cat", {**sampled, **off})))
    assert plain == same
    greedy = {"max_gen_toks": 5, "top_k": 0, "top_p": 0.0, "temperature": 0.0}
    plain, same = judged.generate_until(requests(("the cat", {"max_gen_toks": 5}), ("the cat", greedy)))
    assert plain == same


def test_the_ids_of_padding_are_no_text() -> None:
    config = ModelConfig(vocab_size=512, block_size=BLOCK, n_layer=1, n_head=2, n_embd=16, head_bias=True)
    model = GPT(config).eval()
    model.head.bias.data[256:] = 9.0
    sampled = {"max_gen_toks": 100, "do_sample": True}
    (text,) = Judged(model, build("tokenizer", "byte"), batch_size=2).generate_until(requests(("a", sampled)))
    assert len(text) < 50


@pytest.mark.parametrize("given", ["a", "the cat sat on a mat and then it ran"])
def test_a_position_encoding_with_an_end_is_not_asked_beyond_it(given: str) -> None:
    config = ModelConfig(vocab_size=256, block_size=BLOCK, n_layer=1, n_head=2, n_embd=16, position="learned")
    judged = Judged(GPT(config).eval(), build("tokenizer", "byte"), batch_size=2)
    (text,) = judged.generate_until(requests((given, {"max_gen_toks": 100})))
    assert text
    assert math.isfinite(judged.loglikelihood_rolling(requests((given,)))[0])


def ask(home: Path, *words: str) -> tiny.Ended:
    return tiny.call(door, str(home / "r"), "--tasks-dir", str(home / "tasks"), "--device", "cpu", *words)


def test_tasks_of_ones_own_are_judged_offline(home: Path, judged: Judged) -> None:
    ended = ask(home, "--tasks", "tiny_choices,tiny_pages,tiny_asked", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert set(told) == {"tiny_choices", "tiny_pages", "tiny_asked"}
    choices = [json.loads(line) for line in (home / "tasks" / "choices.jsonl").read_text().splitlines()]
    right = 0
    for row in choices:
        totals = judged.loglikelihood(requests(*((row["question"], c) for c in row["choices"])), disable_tqdm=True)
        right += max(range(len(totals)), key=lambda i: totals[i][0]) == row["answer"]
    assert told["tiny_choices"]["acc,none"] == pytest.approx(right / 3)
    pages = [json.loads(line)["page"] for line in (home / "tasks" / "pages.jsonl").read_text().splitlines()]
    nats = -sum(judged.loglikelihood_rolling(requests(*((page,) for page in pages))))
    bits = nats / math.log(2) / sum(len(page.encode()) for page in pages)
    assert told["tiny_pages"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    rows = [json.loads(line) for line in (home / "tasks" / "asked.jsonl").read_text().splitlines()]
    answers = judged.generate_until(requests(*((r["question"], {"until": ["\n"], "max_gen_toks": 6}) for r in rows)))
    hits = sum(answer == row["answer"] for answer, row in zip(answers, rows, strict=True))
    assert told["tiny_asked"]["exact_match,none"] == pytest.approx(hits / len(rows))


def test_a_table_is_printed_and_limits_are_kept(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = ask(home, "--tasks", "tiny_choices", "--limit", "2", "--shots", "1", "--batch", "3")
    assert ended.code == 0, ended.err
    assert ended.out.split()[:2] == ["tiny_choices", "acc"]
    assert float(ended.out.split()[2]) in (0.0, 0.5, 1.0)
    assert "git" not in capfd.readouterr().err  # which the harness asks for a commit, wherever one stands


@pytest.mark.parametrize(
    "words",
    [
        ("--tasks", "tiny_choises"),
        ("--tasks", "tiny_choices", "--tasks-dir", "nowhere"),
        ("--tasks", "tiny_choices", "--limit", "0"),
        ("--tasks", "tiny_choices", "--shots", "-1"),
        ("--tasks", "tiny_choices", "--split", "train"),
        ("--tasks", ""),
        ("--limit", "3"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    monkeypatch.setattr(tasks.manager, "__file__", str(home / "tasks" / "x.py"))  # the harness's own take seconds
    ended = ask(home, *words)
    assert ended.code == 2
    assert ended.err.strip()
    assert "Traceback" not in ended.err
    if "tiny_choises" in words:
        assert "Did you mean 'tiny_choices'?" in ended.err


def test_questions_out_of_reach_are_one_line(home: Path) -> None:
    (home / "tasks" / "far.yaml").write_text(
        "task: far\ndataset_path: someone/questions\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: q\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    ended = ask(home, "--tasks", "far")
    assert ended.code == 2
    assert "gptlab: The questions of far cannot be read" in ended.err


def test_without_the_extra_it_is_said_how_to_get_it(home: Path) -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None; from gptlab import evaluate, exits; exits.run(evaluate.main,"
        " sys.argv[1:])"
    )
    ended = tiny.finish(tiny.spawn("-c", code, "r", "--tasks", "x", cwd=home, PATH=os.environ["PATH"]))
    assert ended.code == 2
    assert "pip install 'gptlab[eval]'" in ended.err
