"""Folders that are made once: each process works in its own, and a finished one gets its name in one step.

What a process that is gone has left is gone on with by the next that wants the same, or swept.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from gptlab.files import sync

PROGRESS_FILE = "progress.json"  # a half-made folder that has it can be gone on with
STALE = 86_400  # seconds after which a half-made folder is abandoned


def open_workspace(home: Path, key: str) -> Path:
    """A folder of this process for making `key`: what a process that is gone has left of it, or a new one."""
    for left in home.glob(f"{key}.*.tmp"):
        if (left / PROGRESS_FILE).is_file() and not _in_use(left):
            mine = _name(home, key)
            try:
                mine.rmdir()
                os.rename(left, mine)
            except OSError:
                continue  # another process was faster
            return mine
    return _name(home, key)


def _name(home: Path, key: str) -> Path:
    """A new folder whose name says which process of which machine works in it."""
    made = Path(tempfile.mkdtemp(prefix=f"{key}.{platform.node()}.{os.getpid()}.", suffix=".tmp", dir=home))
    made.chmod(0o755)  # mkdtemp makes it private, but a cache may be shared
    return made


def close_workspace(folder: Path) -> None:
    """Remove what was not finished, unless it can be gone on with: then it is left to whoever comes."""
    if (folder / PROGRESS_FILE).is_file():
        key, *_, last, suffix = folder.name.split(".")
        os.rename(folder, folder.with_name(f"{key}.{platform.node()}.left.{last}.{suffix}"))
    else:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, directory: Path) -> None:
    """Give a finished folder its name, unless another process was first: then its twin is as good."""
    (made / PROGRESS_FILE).unlink(missing_ok=True)
    sync(made)
    try:
        os.rename(made, directory)
    except OSError:
        if not directory.exists():
            raise
    sync(directory.parent)


def remove(directory: Path) -> None:
    """Out of the way in one step, then gone: another process never meets half of it."""
    aside = _name(directory.parent, directory.name)
    os.rename(directory, aside / "data")
    shutil.rmtree(aside, ignore_errors=True)


def sweep(home: Path) -> None:
    """Remove what processes that are gone have left half made, at once or, where it can be gone on with, in a day."""
    for folder in home.glob("*.*.*.*.tmp"):
        try:
            old = time.time() - max(path.stat().st_mtime for path in (folder, *folder.glob(PROGRESS_FILE))) > STALE
        except FileNotFoundError:
            continue  # its maker was faster
        if old or not (_in_use(folder) or (folder / PROGRESS_FILE).is_file()):
            shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether the process that a folder is named after may still be at work: of another machine it is not known."""
    _, *host, pid, _, _ = folder.name.split(".")  # a host's name may have dots
    return ".".join(host) != platform.node() or _alive(pid)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
