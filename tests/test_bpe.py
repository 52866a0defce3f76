"""Training of byte pairs: against a slow reference, and where a text may be cut."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gptlab import bpe


def slow_train(words: Counter[bytes], size: int) -> list[bytes]:
    """Recount every pair for every merge."""
    tokens = [bytes([value]) for value in range(256)]
    texts = {word: list(word) for word in words}
    while len(tokens) < size:
        counts: Counter[tuple[int, int]] = Counter()
        for word, repeats in words.items():
            for pair in zip(texts[word], texts[word][1:], strict=False):
                counts[pair] += repeats
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            return tokens
        merged = tokens[best[0]] + tokens[best[1]]
        if merged not in tokens:
            tokens.append(merged)
        for word, ids in texts.items():
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == best:
                    ids[i : i + 2] = [tokens.index(merged)]
                i += 1
            texts[word] = ids
    return tokens


@pytest.mark.parametrize("seed", range(5))
def test_training_gives_what_recounting_every_pair_gives(seed: int) -> None:
    draw = random.Random(seed)
    words = Counter(bytes(draw.choices(b"aabc", k=draw.randint(1, 9))) for _ in range(300))
    assert bpe.train_bpe(words, 330) == slow_train(words, 330)


def test_the_order_of_the_words_does_not_matter() -> None:
    words = Counter({b"lower": 5, b"lowest": 2, b"newer": 6, b"wider": 3})
    backwards = Counter(dict(reversed(words.items())))
    assert bpe.train_bpe(words, 280) == bpe.train_bpe(backwards, 280)


def test_overlapping_pairs_are_joined_from_the_left() -> None:
    assert bpe._join([1, 1, 1], (1, 1), 9) == [9, 1]
    assert bpe.train_bpe(Counter({b"aaaa": 2}), 300)[256:] == [b"aa", b"aaaa"]


def test_words_are_counted_across_the_borders_of_pieces() -> None:
    text = "It's 12 o'clock,\n\n  and   all's well. " * 3
    whole = bpe.count_words([text])
    assert sum(len(word) * count for word, count in whole.items()) == len(text)
    for cut in range(len(text)):
        assert bpe.count_words([text[:cut], text[cut:]]) == whole


def test_learning_stops_at_the_documented_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "FIT_CHARS", 8)
    assert bpe.count_words(["one two ", "three"]) == bpe.count_words(["one two "])


def test_a_text_without_spaces_is_counted_in_short_pieces() -> None:
    words = bpe.count_words(["x" * 1000])
    assert max(map(len, words)) == bpe.LONGEST_WORD
    assert sum(len(word) * count for word, count in words.items()) == 1000


def test_a_run_without_a_safe_place_is_cut_so_that_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "LONGEST_RUN", 10)
    cut = list(bpe.safe_pieces(["x" * 8] * 5))
    assert "".join(cut) == "x" * 40
    assert max(map(len, cut)) <= 18
