"""The registered variants, read from source without running it, so that help and completion need no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Entry:
    """One registered class: its slot, name, first docstring line and option names."""

    slot: str
    name: str
    meaning: str
    options: tuple[str, ...]


def entries(files: Iterable[Path] = ()) -> list[Entry]:
    """Every `@register(slot, name)` class of the package and of `files`, by slot and name."""
    trees = [_parse(path) for path in (*sorted(PACKAGE.rglob("*.py")), *files)]
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = [
        Entry(slot, name, (ast.get_docstring(node) or "").partition("\n")[0], _options(node, classes))
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for slot, name in _registrations(node)
    ]
    return sorted(found, key=lambda entry: (entry.slot, entry.name))


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # a plugin that cannot be read is an error where it is imported
        return ast.Module(body=[], type_ignores=[])


def _registrations(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("register") and len(call.args) == 2:
            slot, name = (argument.value if isinstance(argument, ast.Constant) else None for argument in call.args)
            if isinstance(slot, str) and isinstance(name, str):
                yield slot, name


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> tuple[str, ...]:
    """The keyword-only arguments of the class's `__init__`, or of the nearest base's that has one."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return tuple(argument.arg for argument in item.args.kwonlyargs)
    bases = (classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes)
    return next((found for base in bases if base is not node and (found := _options(base, classes))), ())
