"""Files that are whole or not there: the cache folder, atomic writes, content hashes and downloads of known content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from gptlab.errors import DataError

REMEMBERED = 1 << 25  # bytes; the hash of a larger file is kept, so that it is not read again at every start
WAY_OUT = "make room there, or choose another folder (GPTLAB_CACHE for data, run_dir for a run)."


def cache_dir() -> Path:
    """Where prepared and downloaded data are kept: GPTLAB_CACHE, or gptlab in the user's cache folder."""
    chosen = os.environ.get("GPTLAB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gptlab"


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes. That of a large file is remembered by path, size and time of change."""
    try:
        about = path.stat()
        large = about.st_size >= REMEMBERED
        place = str(path.resolve())
        seen = [place, about.st_size, about.st_mtime_ns]
        note = cache_dir() / "hashes" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
        known = _remembered(note, seen) if large else None
        if known is None:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if large:
        write_atomically(note, json.dumps([*seen, known]).encode())
    return known


def _remembered(note: Path, seen: list[object]) -> str | None:
    try:
        *before, known = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    return str(known) if before == seen else None


def fetch(url: str, sha256: str, path: Path) -> None:
    """Download a file of known hash to `path`. DataError with the way out when that fails."""
    import urllib.request

    way_out = f"put {url} there yourself, or use data=text data.path=FILE"
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{path} could not be downloaded ({reason}): {way_out}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"What came from {url} is not the published file (its sha256 differs): {way_out}")
    write_atomically(path, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it is whole or not there. DataError when it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path} cannot be written ({error.strerror or error}): {WAY_OUT}") from None


def sync(path: Path) -> None:
    """Wait until `path` is on the disk, so that power cut after the rename finds it whole."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
