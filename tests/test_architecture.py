"""The house stands as docs/architecture.md draws it: floors, budgets, docstrings. No budget is ever raised to pass."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptlab.help import VERBS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gptlab"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
ROW = re.compile(r"^  (\S+)\s{2,}(.+?)\s+(\d+)$", re.MULTILINE)
FLOORS = {name: int(floor) for name, _, floor in ROW.findall((ROOT / "docs" / "architecture.md").read_text("utf-8"))}
TALLEST = {"function": 60, "file": 400, "nesting": 3}
NESTS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef)


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """The row of the table that a file belongs to: itself, or the folder it is in."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


def imported(tree: ast.Module) -> set[Path]:
    """The files of the package that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {path for name in names if name.startswith("gptlab.") and (path := file_of(name))}


def file_of(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def depth(node: ast.AST, level: int = 0) -> int:
    """How deep statements nest inside a function; `elif` is no deeper than its `if`."""
    deepest = level
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            same = field == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
            deepest = max(deepest, depth(child, level + (isinstance(child, NESTS) and not same)))
    return deepest


def test_every_file_has_its_row_in_the_table_and_every_row_its_file() -> None:
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_go_down_or_stay_in_the_folder(path: Path) -> None:
    here = room(path)
    for target in imported(TREES[path]) - {path, PACKAGE / "__init__.py"}:
        there = room(target)
        assert there == here or FLOORS[there] < FLOORS[here], f"{identify(path)} must not import {identify(target)}"


def test_no_import_goes_round_in_a_circle() -> None:
    waiting = {path: imported(tree) - {path, PACKAGE / "__init__.py"} for path, tree in TREES.items()}
    # A package's own __init__ gathers its files; what they import from it is what it gathers from others of them.
    waiting = {
        path: {t for t in needed if t.parent != path.parent or t.name != "__init__.py"}
        for path, needed in waiting.items()
    }
    while ready := [path for path, needed in waiting.items() if not needed & waiting.keys()]:
        for path in ready:
            del waiting[path]
    assert not waiting, f"these import each other: {sorted(map(identify, waiting))}"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_a_file_opens_with_a_docstring_and_keeps_its_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    opening = ast.get_docstring(TREES[path])
    assert opening, "a file says first what it computes"
    assert len(opening.splitlines()) <= 4, "in at most three lines"
    assert text.count("\n") <= TALLEST["file"]
    for function in functions(TREES[path]):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= TALLEST["function"], f"{function.name} has {lines} lines"
        assert depth(function) <= TALLEST["nesting"], f"{function.name} nests {depth(function)} deep"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_every_argument_is_typed_and_every_public_name_documented(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name} needs a docstring"
    for function in functions(TREES[path]):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        for argument in arguments:
            assert argument.annotation or argument.arg in ("self", "cls"), (
                f"{function.name}({argument.arg}) needs a type"
            )
    for function in (node for node in TREES[path].body if isinstance(node, ast.FunctionDef)):
        assert function.name.startswith("_") or ast.get_docstring(function), f"{function.name} needs a docstring"


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "util", "common", "helpers", "misc"}]


def test_a_door_is_short() -> None:
    for name in VERBS.keys() - {"completion"}:
        assert (PACKAGE / f"{name}.py").read_text("utf-8").count("\n") <= 45


def test_only_the_command_line_and_the_launchers_know_hydra() -> None:
    knowing = {
        path for path in FILES if re.search(r"^\s*(from|import) (hydra|omegaconf)", path.read_text("utf-8"), re.M)
    }
    assert knowing == {PACKAGE / "cli.py", PACKAGE / "launching.py"}


def test_every_variant_cites_its_source() -> None:
    folders = [PACKAGE / "components" / slot for slot in ("attention", "position", "norm", "mlp", "block")]
    for path in (path for folder in folders for path in folder.glob("*.py")):
        if "@register(" in path.read_text("utf-8"):
            assert re.search(r"\b(19|20)\d\d\b", ast.get_docstring(TREES[path]) or ""), (
                f"{identify(path)} cites nothing"
            )


def test_a_component_file_is_named_as_it_is_registered() -> None:
    for path in (PACKAGE / "components").rglob("*.py"):
        for slot, name in re.findall(r'@register\("(\w+)", "(\w+)"\)', path.read_text("utf-8")):
            assert (path.parent.name, path.stem) == (slot, name)


def test_importing_gptlab_imports_neither_torch_nor_hydra() -> None:
    code = "import gptlab, sys; assert not {'torch', 'hydra', 'wandb', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


FAMILIES = re.compile(
    r"gpt.?[2j]|gpt.?neo|gpt.?oss|openai|llama(?!3)|mistral|mixtral|qwen|gemma|falcon|bloom|\bmpt\b|granite|cohere|olmo"
    r"|\bphi-|stablelm|deepseek|\bopt\b|bigcode",
    re.IGNORECASE,
)


def _code_lines(path: Path) -> Iterator[str]:
    """The lines of a file that are no docstring."""
    documented: set[int] = set()
    for node in ast.walk(TREES[path]):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            documented |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if number not in documented:
            yield line


PARTS = [path for path in FILES if room(path) in ("model.py", "step.py", "trainer.py", "components/")]


@pytest.mark.parametrize("path", PARTS, ids=identify)
def test_no_part_knows_a_family_of_models(path: Path) -> None:
    """Families are options and presets; llama3 is the name of a way to stretch RoPE."""
    named = [line for line in _code_lines(path) if FAMILIES.search(line) and "Llama3" not in line]
    assert named == []
