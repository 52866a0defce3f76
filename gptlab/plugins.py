"""Variants from outside: modules, files and the entry-point group `gptlab.components`, treated like ours."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from gptlab.errors import ConfigError, GptlabError

ENTRY_POINTS = "gptlab.components"


def load(plugins: Iterable[str]) -> list[str]:
    """Import each plugin, `pkg.mod` or `./file.py`, and return them with absolute file paths. ConfigError, one line."""
    return [_load_file(Path(plugin)) if _is_path(plugin) else _load_module(plugin) for plugin in plugins]


def load_entry_points() -> None:
    """Import what installed packages announce under `gptlab.components`. A broken one is a warning, not the end."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # somebody else's package must not keep gptlab from starting
            warnings.warn(f"Plugin {entry.name!r} ({entry.value}) was not loaded: {_in_a_line(error)}", stacklevel=2)


def _is_path(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin or "\\" in plugin


def _load_file(path: Path) -> str:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"A plugin is a file or an importable module, but there is no file {path}.")
    name = f"gptlab_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return str(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"A plugin file is Python source, but {path} is not.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return str(path)


def _load_module(name: str) -> str:
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script does not look in the current directory; `python -m` does
    try:
        importlib.import_module(name)
    except Exception as error:
        raise _failed(name, error) from error
    return name


def _failed(plugin: str, error: Exception) -> ConfigError:
    way_out = "" if isinstance(error, GptlabError) else " Import it by itself to see the whole error."
    return ConfigError(f"Plugin {plugin} could not be imported: {_in_a_line(error)}{way_out}")


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, GptlabError) else f"{type(error).__name__}: {text}."
