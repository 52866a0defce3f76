"""Where variants are written, read without running it: what a class says of itself, and a hash of what decides it."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
JUDGED = ("components", "conformance", "model.py")  # what a verdict on a variant is about
CONTRACTS = {PACKAGE / "components" / "attention" / "mixer.py", PACKAGE / "components" / "position" / "hooks.py"}


@dataclass(frozen=True)
class Source:
    """A class and the file that it is in."""

    path: Path
    node: ast.ClassDef

    def says(self, name: str) -> Any:
        """The value of a class attribute, its own or inherited, where it is a literal; None where there is none."""
        for cls in self.lineage():
            for item in cls.node.body:
                if isinstance(item, ast.Assign | ast.AnnAssign) and name in _targets(item):
                    return _literal(item.value)
        return None

    @property
    def checked_against(self) -> str:
        """What the class's docstring says it is checked against; empty where it does not say."""
        found = re.search(r"Checked against (.+?)\.\s*$", ast.get_docstring(self.node) or "", re.DOTALL)
        return " ".join(found[1].split()) if found else ""

    def defines(self, method: str) -> bool:
        """Whether the class or one that it extends has a method, the bases of its slot (Attention, Position) aside."""
        functions = (item.name for cls in self.lineage() for item in cls.node.body if isinstance(item, ast.FunctionDef))
        return method in functions

    def lineage(self) -> Iterator[Source]:
        """The class and those that it extends, but for the contract of its slot."""
        if self.path in CONTRACTS:
            return
        yield self
        for base in self.node.bases:
            found = _find_class(self.path, ast.unparse(base))
            yield from found.lineage() if found and found.node is not self.node else ()


def find(slot: str, name: str, files: Iterable[Path] = ()) -> Source | None:
    """Where a variant is registered: in `files` or in the package."""
    usual = (PACKAGE / "components" / slot / f"{name}.py", PACKAGE / f"{slot}.py", PACKAGE / slot / f"{name}.py")
    for path in (*files, *(place for place in usual if place.is_file()), *sorted(PACKAGE.rglob("*.py"))):
        for node in _read(path).classes.values():
            if any(_registers(decorator, slot, name) for decorator in node.decorator_list):
                return Source(path, node)
    return None


def digest(slot: str, source: Source) -> str:
    """A hash of all files that a verdict on the variant is about.

    Its own and those that it builds on, the model, the laws, the plain variants it is judged among, and for an
    attention all positions, since it meets each of them.
    """
    plain = _literal(_read(PACKAGE / "conformance" / "cases.py").assigned.get("PLAIN")) or {}
    beside = [PACKAGE / "components" / other / f"{name}.py" for other, name in plain.items()]
    met = (PACKAGE / "components" / "position").glob("*.py") if slot == "attention" else ()
    begin = {source.path, PACKAGE / "model.py", *(PACKAGE / "conformance").glob("*.py"), *beside, *met}
    read: set[Path] = set()
    while begin - read:
        path = (begin - read).pop()
        read.add(path)
        begin |= {target for target in _imported(path) if _judged(target)}
    hashed = hashlib.sha256()
    for path in sorted(path for path in read if path.is_file()):
        hashed.update(path.name.encode() + b"\0" + _read(path).text.encode() + b"\0")
    return hashed.hexdigest()[:12]


@dataclass(frozen=True)
class _Read:
    """What a file holds: its text, its classes by name, and the modules that names are imported from."""

    text: str
    classes: dict[str, ast.ClassDef]
    imports: dict[str, str]
    assigned: dict[str, ast.expr | None]


@functools.cache
def _read(path: Path) -> _Read:
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (OSError, SyntaxError, ValueError):  # a plugin that cannot be read is an error where it is imported
        return _Read("", {}, {}, {})
    statements = [inner for node in body for inner in (node.body if isinstance(node, ast.If) else [node])]
    return _Read(
        text,
        {node.name: node for node in statements if isinstance(node, ast.ClassDef)},
        {a.name: n.module for n in statements if isinstance(n, ast.ImportFrom) and n.module for a in n.names},
        {t: n.value for n in statements if isinstance(n, ast.Assign | ast.AnnAssign) for t in _targets(n)},
    )


def _registers(decorator: ast.expr, slot: str, name: str) -> bool:
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("register"):
        return False
    return [_literal(argument) for argument in decorator.args] == [slot, name]


def _find_class(path: Path, name: str) -> Source | None:
    """The class that a file knows by a name: one of its own, or one that it imports from the package."""
    read = _read(path)
    if name in read.classes:
        return Source(path, read.classes[name])
    return next((_find_class(there, name) for there in _files_of(read.imports.get(name, ""))), None)


@functools.cache
def _imported(path: Path) -> frozenset[Path]:
    """The files of the package that a file imports at its top."""
    pairs = _read(path).imports.items()
    return frozenset(there for name, module in pairs for m in (module, f"{module}.{name}") for there in _files_of(m))


@functools.cache
def _files_of(module: str) -> list[Path]:
    """The file of a module of the package; none for a module of another."""
    if not module.startswith("gptlab."):
        return []
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return [place for place in (path.with_suffix(".py"), path / "__init__.py") if place.is_file()]


def _judged(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] in JUDGED


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    return [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]


def _literal(node: ast.expr | None) -> Any:
    """A literal's value; `frozenset({...})` counts as one."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset":
        return frozenset(_literal(node.args[0]) if node.args else ())
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:  # computed
        return None
