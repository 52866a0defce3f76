"""The registered variants, read from source without running it, so that help and completion need no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Written:
    """An option as its signature writes it: name, type, default (empty where it has none) and meaning."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """One registered class: its slot, name, first docstring line and options."""

    slot: str
    name: str
    meaning: str
    options: tuple[Written, ...]


def entries(files: Iterable[Path] = ()) -> list[Entry]:
    """Every `@register(slot, name)` class of the package and of `files`, by slot and name."""
    trees = [_parse(path) for path in (*sorted(PACKAGE.rglob("*.py")), *files)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    hints = {ast.unparse(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
    found = [
        Entry(slot, name, (ast.get_docstring(node) or "").partition("\n")[0], _options(node, classes, hints))
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


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef], hints: dict[str, ast.expr]) -> tuple[Written, ...]:
    """The keyword-only arguments of the class's `__init__`; without one, or after `**options`, those of its base."""
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    own: tuple[Written, ...] = ()
    if init is not None:
        given = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
        own = tuple(_written(argument, default, hints) for argument, default in given)
        if init.args.kwarg is None:
            return own
    bases = (classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes)
    rest = next((found for base in bases if base is not node and (found := _options(base, classes, hints))), ())
    names = {option.name for option in own}
    return own + tuple(option for option in rest if option.name not in names)


def _written(argument: ast.arg, default: ast.expr | None, hints: dict[str, ast.expr]) -> Written:
    """One option; a type that has a name of its own (`X = Annotated[...]`) is looked up."""
    hint, meaning = argument.annotation, ""
    if isinstance(hint, ast.Name):
        hint = hints.get(hint.id, hint)
    if isinstance(hint, ast.Subscript) and isinstance(hint.slice, ast.Tuple) and ast.unparse(hint.value) == "Annotated":
        hint, said = hint.slice.elts[:2]
        meaning = str(said.value) if isinstance(said, ast.Constant) else ""
    kind = ast.unparse(hint) if hint else ""
    return Written(argument.arg, kind, ast.unparse(default) if default else "", meaning)
