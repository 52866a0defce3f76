"""Exported tokenizers: AutoTokenizer gives the ids and texts of ours, on texts that nobody would write."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import ConfigError
from gptlab.registry import build
from gptlab.tokenizer import END_OF_TEXT, CharTokenizer, Tokenizer
from gptlab.weights.tokenizers import WRITTEN, fast, merges, save

PIECES = [
    *"abcdeghinorstTHE'smdtl0123456789.,;:!?(){}[]<>|_-+=/\\\"", *"\n\r\t\x0b\x0c\x00\x01\x1c\x1f\x7f\x85\xa0\u200b",
    *"\u2028\u3000\u180e\ufeff\u0301é東京日本語한국어ßſİıµ½²①٣𝟙𝒜😀🇩🇪", "👩\u200d👩\u200d👧", " ", "  ", "   ", "\n\n",
    " \n ", "the ", " cat", "don't", "'LL", "We've", " 've", END_OF_TEXT, "<|endof", "text|>", "<unk>", "<s>", "Ġ", "Ċ",
    "##",
]  # fmt: skip


def fuzz(n: int, seed: int, pieces: Sequence[str]) -> Iterator[str]:
    """Nothing; mixtures of `pieces`; characters of all planes."""
    draw = random.Random(seed)
    yield ""
    for i in range(n):
        length = draw.randint(1, 50)
        points = (draw.randrange(draw.choice((0x80, 0x800, 0x10000, 0x110000))) for _ in range(length))
        anything = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        yield anything if i % 3 == 0 else "".join(draw.choices(pieces, k=length))


CORPUS = " ".join(fuzz(300, 0, PIECES))


def fitted(name: str, **options: Any) -> Tokenizer:
    tokenizer: Tokenizer = build("tokenizer", {"name": name, **options})
    tokenizer.fit(lambda: iter([CORPUS]))
    return tokenizer


def like_gpt2() -> Tokenizer:
    """As many tokens as GPT-2 has and its order of bytes, but merges of ours, and tokens that no merging reaches."""
    learned = fitted("bpe", vocab_size=2000).state()["learned"]
    tokens = [*sorted(learned[:256], key=lambda byte: WRITTEN[ord(byte)]), *learned[256:]]
    spare = (f"{chr(0xF5 + i % 11)}{chr(i // 11 % 256)}{chr(0xC0 + i // 2816)}" for i in range(50256 - len(tokens)))
    tokenizer: Tokenizer = build("tokenizer", "gpt2")
    tokenizer.learned = [*tokens, *spare]
    return tokenizer


KINDS = {
    "byte": lambda: fitted("byte"),
    "char": lambda: fitted("char"),
    "bpe": lambda: fitted("bpe", vocab_size=1024),
    "bpe of bytes alone": lambda: fitted("bpe", vocab_size=257),
    "bpe without a pair left": lambda: fitted("bpe", vocab_size=30000),
    "gpt2": like_gpt2,
}


@pytest.fixture(scope="module", params=KINDS)
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def theirs(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Read as a person would, beside the config of a model whose own tokenizer splits otherwise."""
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    save(ours, path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def test_it_is_a_fast_one_with_as_many_ids(ours: Tokenizer, theirs: Any) -> None:
    assert theirs.is_fast
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == ours.end_of_text
    assert theirs.unk_token is None


def test_ids_and_texts_are_equal_on_a_fuzzed_corpus(ours: Tokenizer, theirs: Any) -> None:
    known = [*ours.learned] if isinstance(ours, CharTokenizer) else PIECES
    for text in fuzz(1500, 1, known):
        if isinstance(ours, CharTokenizer):
            text = "".join(char for char in text if char in ours.learned)
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == text


def test_any_ids_decode_to_equal_texts(ours: Tokenizer, theirs: Any) -> None:
    draw = random.Random(2)
    for _ in range(1000):
        ids = draw.choices(range(ours.vocab_size), k=draw.randint(0, 12))
        assert theirs.decode(ids) == ours.decode(ids), ids


def test_the_end_of_text_is_written_by_id_alone(ours: Tokenizer, theirs: Any) -> None:
    if ours.end_of_text is None:
        pytest.skip("it has none")
    assert ours.end_of_text not in theirs(f"a{END_OF_TEXT}b")["input_ids"]
    assert theirs.decode([ours.end_of_text]) == END_OF_TEXT
    assert theirs.decode([ours.end_of_text], skip_special_tokens=True) == ""


def test_a_character_outside_the_vocabulary_is_refused_as_with_us() -> None:
    tokenizer = fitted("char")
    with pytest.raises(Exception, match="Missing"):
        fast(tokenizer).encode("a\U00012345")


def test_a_tokenizer_of_a_plugin_is_refused_in_one_line(tmp_path: Path) -> None:
    class Other(Tokenizer):
        name = "other"

    with pytest.raises(ConfigError, match="'other' has none"):
        save(Other(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_token_that_two_pairs_spell_is_merged_from_the_one_that_comes_about() -> None:
    """ab is merged before bc, so abc is ab and c; no merging of its bytes ever makes xyz."""
    tokens = [b"a", b"b", b"c", b"x", b"y", b"z", b"ab", b"bc", b"abc", b"xyz"]
    assert merges(tokens) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]


def test_a_word_that_is_a_token_is_found_though_no_merging_makes_it() -> None:
    tokenizer = build("tokenizer", {"name": "bpe", "vocab_size": 258})
    tokenizer.learned = [*(chr(byte) for byte in range(256)), "xyz"]
    for text, ids in (("xyz", [256]), (" xyz", [32, 120, 121, 122]), ("xyz1", [256, 49])):
        assert fast(tokenizer).encode(text).ids == tokenizer.encode(text) == ids
