"""Two small published texts: Karpathy's tiny shakespeare (char-rnn) and names (makemore), downloaded on request."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from gptlab.errors import DataError
from gptlab.files import cache_dir, fetch, file_hash
from gptlab.registry import register
from gptlab.text.reading import Piece
from gptlab.text.source import TextSource, ValFraction, by_hash


class Download(TextSource):
    """A published file, known by its sha256, downloaded once; or the user's own copy of it."""

    url: ClassVar[str]
    sha256: ClassVar[str]

    def __init__(self, path: str | None, val_fraction: float) -> None:
        super().__init__(val_fraction)
        self.path = path

    @cached_property
    def files(self) -> list[Path]:
        if self.path is None:
            kept = cache_dir() / "downloads" / f"{self.name}.txt"
            if not kept.is_file():
                fetch(self.url, self.sha256, kept)
        else:
            kept = Path(self.path).expanduser()
        if file_hash(kept) != self.sha256:
            raise DataError(
                f"data={self.name} is a published text, but {kept} is not that (its sha256 differs): "
                f"remove it to download it again, or read it with data=text data.path={kept}"
            )
        return [kept]


@register("data", "shakespeare")
class ShakespeareSource(Download):
    """Tiny shakespeare, 1.1 MB in one document: the text that nanoGPT's character models are measured on."""

    name = "shakespeare"
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def __init__(
        self,
        *,
        path: Annotated[str | None, "a copy of the file; null = download it once"] = None,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(path, val_fraction)


@register("data", "names")
class NamesSource(Download):
    """32,033 first names, a document each, in the order of their sha256: makemore's text."""

    name = "names"
    by_line = True
    url = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
    sha256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"

    def __init__(
        self,
        *,
        path: Annotated[str | None, "a copy of the file; null = download it once"] = None,
        val_fraction: ValFraction = 0.1,
    ) -> None:
        super().__init__(path, val_fraction)

    def read(self, path: Path) -> Iterator[Piece]:
        # The file is sorted by how frequent a name is, so its end would be no fair validation.
        names = path.read_text(encoding="utf-8").split()
        return ((True, name) for name in sorted(names, key=by_hash))
