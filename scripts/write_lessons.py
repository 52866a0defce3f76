"""Write into docs/learn/ the code and settings that its pages show: `python scripts/write_lessons.py`.

A page marks the place by `<!-- from FILE NAME -->` (a function, a class or a method), or `<!-- from FILE -->`, and
`<!-- end -->`; what stands between is taken from the file.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "learn"
MARKED = re.compile(r"(<!-- from (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml"}


def filled(page: str) -> str:
    """A page with what its sources say today."""
    return MARKED.sub(lambda mark: f"{mark[1]}{excerpt(ROOT / mark[2], mark[3])}{mark[4]}", page)


def excerpt(path: Path, name: str | None) -> str:
    """What a file says, or one name in it, as a block of code with a link. LookupError where there is no such name."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if name is None:
        shown = [line for line in lines if not line.startswith("#")]
    else:
        node = _find(ast.parse(text).body, name.split("."), f"{path.relative_to(ROOT)} has no {name}")
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        shown = lines[first - 1 : node.end_lineno]
    code = textwrap.dedent("\n".join(shown)).strip()
    place = path.relative_to(ROOT)
    return f"```{LANGUAGES[path.suffix]}\n{code}\n```\n\nFrom [{place}](../../{place}).\n"


def _find(body: Sequence[ast.stmt], names: Sequence[str], otherwise: str) -> ast.FunctionDef | ast.ClassDef:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == names[0]:
            return _find(node.body, names[1:], otherwise) if len(names) > 1 else node
    raise LookupError(otherwise)


def main() -> None:
    """Every page anew."""
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
