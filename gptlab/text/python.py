"""The running Python's own standard library as text."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from gptlab.errors import ConfigError, DataError
from gptlab.registry import register
from gptlab.text.source import TextSource, ValFraction, by_hash


@register("data", "python")
class PythonSource(TextSource):
    """The running Python's own standard library: real text that every machine already has.

    One document per module, without tests, tables and bundled programs; the order is that of the sha256 of their
    names, so that validation is not the end of the alphabet. Modules are taken while they fit into `max_bytes`.
    """

    name = "python"
    left_out: ClassVar[frozenset[str]] = frozenset(
        {"test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
        | {"site-packages", "dist-packages", "__pycache__"}
    )

    def __init__(
        self,
        *,
        max_bytes: Annotated[int, "bytes of modules taken at most"] = 5_000_000,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(val_fraction)
        if max_bytes < 1:
            raise ConfigError(f"data.max_bytes must be at least 1, but is {max_bytes}.")
        self.max_bytes = max_bytes

    @cached_property
    def files(self) -> list[Path]:
        library = Path(sysconfig.get_paths()["stdlib"])
        taken, room = [], self.max_bytes
        for name in sorted(self._modules(library), key=by_hash):
            size = (library / name).stat().st_size
            if 0 < size <= room and _is_utf8(library / name):
                taken.append(library / name)
                room -= size
        if not taken:
            raise DataError(f"No module of {library} fits data.max_bytes={self.max_bytes}: raise it or use data=text.")
        return taken

    def _modules(self, library: Path) -> Iterator[str]:
        for folder, inside, names in os.walk(library):
            inside[:] = set(inside) - self.left_out  # os.walk goes on with what is left here
            place = Path(folder).relative_to(library)
            for name in names:
                # The build's own settings, _sysconfigdata..., are a table of this machine.
                if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                    yield (place / name).as_posix()


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True
