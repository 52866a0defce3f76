"""Cache folder, atomic writes, hashes and downloads."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path

import pytest

from gptlab import files
from gptlab.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", "~/here")
    assert files.cache_dir() == Path.home() / "here"
    monkeypatch.delenv("GPTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert files.cache_dir() == Path("/xdg/gptlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_dir() == Path.home() / ".cache" / "gptlab"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*GPTLAB_CACHE"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_hash_of_a_large_file_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REMEMBERED", 4)
    path = tmp_path / "large"
    path.write_bytes(b"12345")
    first = files.file_hash(path)
    assert first == hashlib.sha256(b"12345").hexdigest()
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "file_digest")
        assert files.file_hash(path) == first
    path.write_bytes(b"54321")
    os.utime(path, ns=(1, 1))
    assert files.file_hash(path) == hashlib.sha256(b"54321").hexdigest()


def test_a_small_file_is_always_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"1")
    files.file_hash(path)
    assert not cache.exists()


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"content")
    right = hashlib.sha256(b"content").hexdigest()
    files.fetch(page.as_uri(), right, tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"content"
    with pytest.raises(DataError, match="sha256 differs"):
        files.fetch(page.as_uri(), "0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_without_network_the_error_gives_the_address_the_place_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataError, match=r"kept .*not known.*https://x/y.*data=text data\.path=FILE") as caught:
        files.fetch("https://x/y", "0" * 64, tmp_path / "kept")
    assert "\n" not in str(caught.value)
