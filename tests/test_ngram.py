"""The ruler: against a slow Kneser-Ney, against plain counting, and what it says of a loss."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gptlab import ngram
from gptlab.errors import DataError
from gptlab.ngram import DISCOUNT, counted_bigram, kneser_ney, measure, ruler


def zipf_walk(n: int, vocab: int, seed: int) -> np.ndarray:
    """Tokens that depend on the two before them, so that every order has something to say."""
    draw = np.random.default_rng(seed)
    tokens = [0, 0]
    for noise in draw.zipf(1.6, size=n):
        tokens.append((2 * tokens[-1] + tokens[-2] + int(noise)) % vocab)
    return np.array(tokens, dtype=np.uint16)


class SlowKneserNey:
    """The definition, with dictionaries of tuples."""

    def __init__(self, train: list[int], vocab_size: int, order: int) -> None:
        self.vocab_size = vocab_size
        grams = {k: Counter(tuple(train[i : i + k]) for i in range(len(train) - k + 1)) for k in range(1, order + 1)}
        self.counts = {k: Counter(gram[1:] for gram in grams[k + 1]) for k in range(1, order)}
        self.counts[order] = grams[order]

    def probability(self, gram: tuple[int, ...]) -> float:
        """Of the last token of `gram` after the others."""
        if not gram:
            return 1 / self.vocab_size
        lower = self.probability(gram[1:])
        same = {g: c for g, c in self.counts[len(gram)].items() if g[:-1] == gram[:-1]}
        total = sum(same.values())
        if not total:
            return lower
        return (max(same.get(gram, 0) - DISCOUNT, 0) + DISCOUNT * len(same) * lower) / total


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_is_kneser_ney_by_its_definition(order: int) -> None:
    train, val = zipf_walk(300, 7, 0), zipf_walk(80, 9, 1)  # two tokens that training never saw
    *_, scores = kneser_ney(train, val, 11, max_order=order)
    slow = SlowKneserNey(train.tolist(), 11, order)
    for i in range(order - 1, len(val)):
        gram = tuple(val[i - order + 1 : i + 1].tolist())
        assert scores.val[i] == pytest.approx(slow.probability(gram), rel=1e-12)
    every = [tuple(train[i : i + order].tolist()) for i in range(len(train) - order + 1)]
    assert scores.train_loss == pytest.approx(-np.mean([math.log(slow.probability(g)) for g in every]), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_over_the_vocabulary(order: int) -> None:
    vocab, train = 9, zipf_walk(500, 7, 2)
    for context in ([1, 2, 3, 4], [0, 0, 0, 0], [8, 8, 8, 8], train[100:104].tolist(), train[:4].tolist()):
        total = 0.0
        for token in range(vocab):
            *_, scores = kneser_ney(train, np.array([*context, token]), vocab, max_order=order)
            total += scores.val[-1]
        assert total == pytest.approx(1, rel=1e-12)


def test_the_first_tokens_are_scored_on_the_context_they_have() -> None:
    train, val = zipf_walk(300, 7, 0), zipf_walk(30, 7, 1)
    by_order = list(kneser_ney(train, val, 7, max_order=5))
    assert by_order[4].val[2] == by_order[3].val[2]  # two tokens before it: neither order has its full context
    assert (by_order[4].val > 0).all()


def test_the_counted_bigram_is_what_counting_gives() -> None:
    train, val = zipf_walk(400, 6, 3), zipf_walk(200, 8, 4)
    pairs, firsts = Counter(itertools.pairwise(train)), Counter(train[:-1])
    ones = [-math.log((pairs[a, b] + 1) / (firsts[a] + 8)) for a, b in itertools.pairwise(val)]
    least = [-math.log(pairs[a, b] / firsts[a]) for a, b in itertools.pairwise(train)]
    got = counted_bigram(train, val, 8)
    assert got[1] == pytest.approx(np.mean(ones))
    assert got[2] == pytest.approx(np.mean(least))
    assert got[0] > got[2]


def test_a_predictable_text_scores_near_zero_and_noise_near_the_uniform() -> None:
    cycle = np.arange(20_000) % 16
    assert measure(cycle, cycle, 16, max_order=3).val[1] < 0.01
    noise = np.random.default_rng(0).integers(0, 16, 200_000)
    assert measure(noise[:150_000], noise[150_000:], 16, max_order=2).val[0] == pytest.approx(math.log(16), rel=1e-3)


@pytest.mark.parametrize(("vocab", "highest"), [(65, 7), (256, 7), (1024, 6), (4096, 5), (50_257, 4)])
def test_the_order_is_as_high_as_64_bits_allow(vocab: int, highest: int) -> None:
    tokens = np.arange(vocab)  # every token is used
    assert measure(tokens, tokens[:10], vocab).max_order == highest


def test_a_full_vocabulary_at_the_highest_order_does_not_overflow() -> None:
    train = np.concatenate([np.arange(256), np.full(50, 255)])
    *_, scores = kneser_ney(train, train, 256, max_order=7)
    slow = SlowKneserNey(train.tolist(), 256, 7)
    assert scores.val[-1] == pytest.approx(slow.probability((255,) * 7), rel=1e-12)


def test_too_short_a_split_is_refused() -> None:
    with pytest.raises(DataError, match="2 tokens"):
        measure(np.arange(5), np.arange(1), 5)


@dataclass
class Prepared:
    directory: Path
    train: np.ndarray
    val: np.ndarray
    vocab_size: int


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path, zipf_walk(500, 7, 0), zipf_walk(100, 7, 1), 7)


def test_it_is_measured_once_and_told_as_it_goes(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    first = ruler(prepared, max_order=3, report=told.append)
    assert len(told) == 3
    with monkeypatch.context() as patch:
        patch.delattr(ngram, "measure")
        assert ruler(prepared, max_order=3) == first
    assert ruler(prepared, max_order=2).max_order == 2  # other settings: measured again


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"settings": 1}', "null"])
def test_a_damaged_ruler_is_measured_again(prepared: Prepared, content: str) -> None:
    good = ruler(prepared)
    (prepared.directory / "ngram.json").write_text(content)
    assert ruler(prepared) == good


def test_only_the_documented_part_of_a_large_text_is_used(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "MAX_TRAIN", 200)
    monkeypatch.setattr(ngram, "MAX_VAL", 50)
    measured = ruler(prepared, max_order=2)
    assert (measured.train_tokens, measured.val_tokens) == (200, 50)
    assert measured == measure(prepared.train[:200], prepared.val[:50], 7, max_order=2)
