"""Byte-pair encoding learned from text: the pair of tokens seen most often becomes a token, again and again.

Sennrich et al. 2016, arXiv:1508.07909; on bytes, within GPT-2's words: Radford et al. 2019.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

# GPT-2's split into words: a contraction; letters, digits or signs after at most one space; white space, of which
# the last leaves a space to the word that follows.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
FIT_CHARS = 64_000_000  # BPE learns from at most so much of the training text, which keeps its memory flat
LONGEST_WORD = 256  # bytes; longer words are counted in pieces, or a text without spaces would be one word
LONGEST_RUN = 1 << 22  # characters; text with no safe place to cut is cut after so many


def safe_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, cut only before a space or line break that follows a character which is neither.

    There every word of `WORDS` ends, whatever comes after, so that the pieces encode to the ids of the whole. Only a
    run of more than LONGEST_RUN characters without such a place is cut elsewhere.
    """
    last_cut = re.compile(r"(?s).*\S(?=[ \n])")  # greedy: looks from the end backwards
    rest = ""
    for piece in pieces:
        rest += piece
        found = last_cut.match(rest)
        cut = found.end() if found else len(rest) if len(rest) > LONGEST_RUN else 0
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def count_words(pieces: Iterable[str]) -> Counter[bytes]:
    """How often each word of `WORDS` occurs in the first FIT_CHARS characters."""
    import regex  # type: ignore[import-untyped]  # GPT-2's pattern needs \\p{L}, which re does not know

    words: Counter[str] = Counter()
    room = FIT_CHARS
    for piece in safe_pieces(pieces):
        words.update(regex.findall(WORDS, piece[:room]))
        room -= len(piece)
        if room <= 0:
            break
    counts: Counter[bytes] = Counter()
    for word, count in words.items():
        raw = word.encode()
        for start in range(0, len(raw), LONGEST_WORD):
            counts[raw[start : start + LONGEST_WORD]] += count
    return counts


def train_bpe(words: Counter[bytes], size: int) -> list[bytes]:
    """The 256 bytes and the tokens merged from them, at most `size`, in the order of merging.

    The most frequent pair first; of equal ones the pair with the smallest ids, so that the order of words is no matter.
    """
    pairs = _Pairs(words)
    tokens = [bytes([value]) for value in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    while len(tokens) < size and (pair := pairs.most_frequent()) is not None:
        merged = tokens[pair[0]] + tokens[pair[1]]
        if merged not in ids:  # two pairs can spell the same bytes; they are one token
            ids[merged] = len(tokens)
            tokens.append(merged)
        pairs.merge(pair, ids[merged])
    return tokens


Pair = tuple[int, int]


class _Pairs:
    """Counts of adjacent ids over all words; after a merge only the words that had the pair are looked at again."""

    def __init__(self, words: Counter[bytes]) -> None:
        self.words = [list(word) for word in words]
        self.repeats = list(words.values())
        self.counts: Counter[Pair] = Counter()
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that have, or once had, the pair
        for place, (word, repeats) in enumerate(zip(self.words, self.repeats, strict=True)):
            for pair in pairwise(word):
                self.counts[pair] += repeats
                self.places[pair].add(place)
        self.queue = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.queue)

    def most_frequent(self) -> Pair | None:
        """The pair seen most often, at least twice; None when there is none left."""
        while self.queue:
            negative, pair = heapq.heappop(self.queue)
            count = self.counts[pair]
            if count == -negative:
                return pair if count > 1 else None
            if count > 0:  # it has become rarer since it was queued
                heapq.heappush(self.queue, (-count, pair))
        return None

    def merge(self, pair: Pair, new: int) -> None:
        """Replace the pair by the id `new` in every word."""
        grown: set[Pair] = set()
        for place in self.places.pop(pair):
            word, repeats = self.words[place], self.repeats[place]
            joined = _join(word, pair, new)
            for old in pairwise(word):
                self.counts[old] -= repeats
            for now in pairwise(joined):
                self.counts[now] += repeats
                if new in now:
                    self.places[now].add(place)
                    grown.add(now)
            self.words[place] = joined
        for now in grown:
            heapq.heappush(self.queue, (-self.counts[now], now))


def _join(word: list[int], pair: Pair, new: int) -> list[int]:
    joined: list[int] = []
    for token in word:
        if joined and (joined[-1], token) == pair:
            joined[-1] = new
        else:
            joined.append(token)
    return joined
