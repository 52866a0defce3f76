"""Tokenizers: decode undoes encode, pieces equal the whole, and what is kept comes back or is refused."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from gptlab.errors import ConfigError, DataError
from gptlab.registry import build
from gptlab.tokenizer import END_OF_TEXT, GPT2_FILES, Tokenizer, load, restore

TEXT = (
    "def f(x):\n\n    return 'it''s' + x  # naïve café 東京\n\t\tx = 1234567 \r\n"
    "We'll see.  Spaces   and\x0bothers\x85here\u2003there \U0001f600\n \n  \nEnd  "
) * 7


def fitted(name: str, **options: Any) -> Tokenizer:
    tokenizer: Tokenizer = build("tokenizer", {"name": name, **options})
    tokenizer.fit(lambda: iter([TEXT]))
    return tokenizer


@pytest.fixture(params=["char", "byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return fitted(request.param)


def test_decode_undoes_encode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert min(ids) >= 0
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.encode_array(TEXT).tolist() == ids


def test_encoding_in_pieces_gives_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode(TEXT)
    draw = random.Random(0)
    for _ in range(200):
        cuts = sorted(draw.choices(range(len(TEXT) + 1), k=draw.randint(0, 8)))
        pieces = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
        assert [i for ids in tokenizer.encode_pieces(pieces) for i in ids.tolist()] == whole


def test_nothing_encodes_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_a_kept_tokenizer_comes_back_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for again in (load(tmp_path / "tokenizer.json"), restore(json.loads(json.dumps(tokenizer.state())))):
        assert again.encode(TEXT) == tokenizer.encode(TEXT)
        assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_a_flipped_bit_is_detected(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    fitted(name).save(path)
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 50)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"name": "byte"}'])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "missing.json")


def test_a_state_of_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="runes"):
        restore({"name": "runes", "options": {}, "learned": None})


def test_an_unknown_character_is_named_with_its_place_and_the_way_out() -> None:
    with pytest.raises(DataError, match=r"'ß' at position 2 .*tokenizer=byte"):
        fitted("char").encode("a\nß")


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_half_a_surrogate_pair_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="position 1"):
        fitted(name).encode("a\ud800")


@pytest.mark.parametrize("ids", [[-1], [10**6]])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(DataError, match=str(ids[0])):
        tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_half_a_character_decodes_to_a_replacement(name: str) -> None:
    tokenizer = fitted(name)
    assert tokenizer.decode([0xE6, 0x9D]) == "\ufffd"


def test_typed_text_never_becomes_the_end_of_text() -> None:
    tokenizer = fitted("bpe")
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_documents_are_separated_by_the_end_of_text_or_a_line_break() -> None:
    bpe, byte = fitted("bpe"), fitted("byte")
    assert bpe.separator_ids() == [bpe.end_of_text]
    assert byte.end_of_text is None
    assert byte.separator_ids() == [ord("\n")]


def test_a_bpe_has_the_size_asked_for_and_compresses_more_the_larger_it_is() -> None:
    small, large = fitted("bpe", vocab_size=270), fitted("bpe", vocab_size=300)
    assert (small.vocab_size, large.vocab_size) == (270, 300)
    assert len(TEXT.encode()) > len(small.encode(TEXT)) > len(large.encode(TEXT))


def test_a_bpe_of_only_bytes_is_the_bytes() -> None:
    assert fitted("bpe", vocab_size=257).encode(TEXT) == list(TEXT.encode())
    with pytest.raises(ConfigError, match="256"):
        fitted("bpe", vocab_size=256)


def test_a_poor_text_gives_a_smaller_bpe() -> None:
    tokenizer = build("tokenizer", "bpe")
    tokenizer.fit(lambda: iter(["abab"]))
    assert tokenizer.vocab_size == 258


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_an_unfitted_tokenizer_says_so(name: str) -> None:
    tokenizer = build("tokenizer", name)
    for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.vocab_size, tokenizer.state):
        with pytest.raises(DataError, match="fit"):
            use()


def test_characters_are_numbered_by_code_point() -> None:
    tokenizer = build("tokenizer", "char")
    tokenizer.fit(lambda: iter(["cb", "a\U0001f600"]))
    assert tokenizer.encode("abc\U0001f600") == [0, 1, 2, 3]


def test_gpt2_without_network_says_where_its_files_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file", _no_network)
    with pytest.raises(DataError, match=r"TIKTOKEN_CACHE_DIR .*vocab\.bpe as 6d1c.*tokenizer=bpe"):
        build("tokenizer", "gpt2").encode("a")


def test_a_wrong_cached_gpt2_file_is_named_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    cached = tmp_path / next(iter(GPT2_FILES))
    cached.write_text("not this")
    with pytest.raises(DataError, match="checksum differs"):
        build("tokenizer", "gpt2").encode("a")
    assert cached.read_text() == "not this"


def test_a_run_carries_its_gpt2_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.tokenizer._read_gpt2", lambda: [chr(value) for value in range(256)] + ["he"])
    state = build("tokenizer", "gpt2").state()
    monkeypatch.setattr("gptlab.tokenizer._read_gpt2", _no_network)
    assert restore(state).encode("he") == [256]


def _no_network(*_: object) -> bytes:
    raise ConnectionError("no network")


@pytest.mark.parametrize("module", ["tokenizer", "text", "data", "ngram"])
def test_the_module_is_imported_without_torch(module: str) -> None:
    code = f"import sys, gptlab.{module}; sys.exit('torch' in sys.modules or 'tiktoken' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
