"""Text sources: what is a document, what is refused, and that nothing depends on where the file is."""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import ConfigError, DataError
from gptlab.files import file_hash
from gptlab.registry import build, names
from gptlab.text import TextSource, classics, reading


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time: none of them may matter."""
    monkeypatch.setattr(reading, "BLOCK", request.param)
    return int(request.param)


def source(path: Path, **options: Any) -> TextSource:
    made: TextSource = build("data", {"name": "text", "path": str(path), **options})
    return made


def documents(made: TextSource) -> list[str]:
    found: list[str] = []
    for begins, piece in made.documents():
        assert piece
        found.append(piece) if begins else found.__setitem__(-1, found[-1] + piece)
    return found


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.usefixtures("block")
class TestWhateverTheBlock:
    def test_a_file_is_one_document_byte_for_byte(self, tmp_path: Path) -> None:
        content = "naïve\r\n東京 \U0001f600\n\n"
        assert documents(source(write(tmp_path / "a.txt", content))) == [content]

    def test_a_line_is_a_document_when_asked(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "één\r\n\n\ntwo\rtwo\nthree")
        assert documents(source(path, lines=True)) == ["één", "two\rtwo", "three"]

    def test_a_lone_carriage_return_at_the_end_is_text(self, tmp_path: Path) -> None:
        assert documents(source(write(tmp_path / "a.txt", "one\ntwo\n"), lines=True)) == ["one", "two"]

    def test_broken_utf8_is_named_with_its_byte(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "aé".encode() + b"b\xff")
        with pytest.raises(DataError, match=r"a\.txt must be UTF-8, but byte 4 "):
            documents(source(path))

    def test_a_cut_character_at_the_end_is_named_with_its_byte(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "ab東".encode()[:-1])
        with pytest.raises(DataError, match="byte 2 "):
            documents(source(path))

    def test_a_packed_file_is_the_same_text(self, tmp_path: Path) -> None:
        plain, packed = write(tmp_path / "a.txt", "ein Text\n"), write(tmp_path / "b.txt.gz", "ein Text\n")
        assert documents(source(packed)) == documents(source(plain))


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.py", "a.txt", "c.txt.gz", "d.gz", "e.jsonl.gz"):
        content = json.dumps({"text": name}) if "jsonl" in name else name
        write(tmp_path / "texts" / name, content)
    for ignored in ("image.png", ".git/x.txt", "archive.tar.gz", "README", "empty.txt"):
        write(tmp_path / "texts" / ignored, "" if ignored == "empty.txt" else ignored)
    expected = ["a/z.py", "a.txt", "b.md", "c.txt.gz", "d.gz", "e.jsonl.gz"]
    assert documents(source(tmp_path / "texts")) == expected


def test_a_line_of_json_is_a_document(tmp_path: Path) -> None:
    rows = [{"text": "one\ntwo"}, {"text": ""}, {"text": "three", "more": 1}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert documents(source(path)) == ["one\ntwo", "three"]
    other = write(tmp_path / "b.jsonl", '{"body": "here"}')
    assert documents(source(other, text_key="body")) == ["here"]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", "null", '{"body": "x"}', '{"text": 3}', '{"text": "\\ud800"}', "\xff"]
)
def test_a_bad_line_of_json_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.jsonl .* line 2 "):
        documents(source(path))


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    packed = gzip.compress(b"some text" * 1000)
    cases = {
        "is not there": tmp_path / "nowhere",
        r"a folder of text|A folder of text": tmp_path / "folder",
        "is empty": write(tmp_path / "empty.txt", ""),
        "not a whole .gz": tmp_path / "cut.txt.gz",
        "not a whole .gz file .Not": tmp_path / "plain.txt.gz",
        "not a whole .gz file .*CRC": tmp_path / "flipped.gz",
    }
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-20])
    (tmp_path / "plain.txt.gz").write_bytes(b"plain text")
    (tmp_path / "flipped.gz").write_bytes(packed[:-8] + b"\0\0\0\0" + packed[-4:])
    for message, path in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            documents(source(path))
        assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "x")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    made = source(path)
    monkeypatch.setattr(Path, "open", denied)
    for use in (made.fingerprint, lambda: documents(made)):
        with pytest.raises(DataError, match=r"a\.txt cannot be read: Permission denied"):
            use()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
@pytest.mark.parametrize("name", ["python", "shakespeare", "names", "text"])
def test_a_validation_share_outside_zero_and_one_is_refused(name: str, fraction: float) -> None:
    path = {"path": "x"} if name == "text" else {}
    with pytest.raises(ConfigError, match="val_fraction"):
        build("data", {"name": name, "val_fraction": fraction, **path})


def test_a_text_key_without_jsonl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text_key=body"):
        source(write(tmp_path / "a.txt", "x"), text_key="body").fingerprint()


def test_the_fingerprint_is_of_the_text_and_not_of_its_place(tmp_path: Path) -> None:
    one, same = source(write(tmp_path / "a.txt", "text")), source(write(tmp_path / "b.md", "text"))
    other = source(write(tmp_path / "c.txt", "texts"))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert source(tmp_path / "a.txt", lines=True).fingerprint() != one.fingerprint()


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "at home")
    assert documents(source(Path("~/a.txt"))) == ["at home"]


def test_pythons_library_is_modules_in_a_fixed_order() -> None:
    made = build("data", {"name": "python", "max_bytes": 300_000})
    found = documents(made)
    assert sum(len(document.encode()) for document in found) <= 300_000
    assert len(found) == len(made.files) > 3
    assert documents(build("data", {"name": "python", "max_bytes": 300_000})) == found
    for document in found:
        ast.parse(document)
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-3:-1]) for path in made.files)


def test_pythons_library_is_megabytes_by_default() -> None:
    size = sum(path.stat().st_size for path in build("data", "python").files)
    assert 3_000_000 < size <= 5_000_000


@pytest.mark.parametrize("value", [0, 1])
def test_a_share_of_the_library_that_holds_nothing_is_refused(value: int) -> None:
    with pytest.raises((ConfigError, DataError), match="max_bytes"):
        _ = build("data", {"name": "python", "max_bytes": value}).files


@pytest.mark.parametrize("name", ["shakespeare", "names"])
def test_a_copy_that_is_not_the_published_text_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.txt", "to be")
    with pytest.raises(DataError, match=rf"data={name} .*mine\.txt.*data=text data\.path="):
        build("data", {"name": name, "path": str(path)}).fingerprint()
    with pytest.raises(DataError, match="cannot be read"):
        build("data", {"name": name, "path": str(tmp_path / "none.txt")}).fingerprint()


def test_a_published_text_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write(tmp_path / "names", "anna\nbo\ncy\n")
    monkeypatch.setattr(classics.NamesSource, "url", page.as_uri())
    monkeypatch.setattr(classics.NamesSource, "sha256", file_hash(page))
    first = documents(build("data", "names"))
    assert sorted(first) == ["anna", "bo", "cy"]
    page.unlink()
    assert documents(build("data", "names")) == first


def test_the_sources_are_these() -> None:
    assert {"python", "shakespeare", "names", "text"} <= set(names("data"))


def test_a_large_file_is_read_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 100)
    path = write(tmp_path / "a.txt", "x" * 1000)
    read: Iterator[tuple[bool, str]] = source(path).documents()
    assert next(read) == (True, "x" * 100)
    assert all(len(piece) <= 100 and not begins for begins, piece in read)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is neither"):
        build("data", {"name": "text", "path": str(tmp_path / "pipe")}).files  # noqa: B018
