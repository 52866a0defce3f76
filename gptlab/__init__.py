"""gptlab: a laboratory for decoder-only transformers: parts swapped by name, held to laws, compared fairly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlab.config import ModelConfig as ModelConfig
    from gptlab.lab import open as open
    from gptlab.model import GPT as GPT
    from gptlab.registry import register as register
    from gptlab.rundir import load as load

__version__ = "0.1.0"
__all__ = ["GPT", "ModelConfig", "load", "open", "register"]
_HOME = {
    "GPT": "gptlab.model",
    "ModelConfig": "gptlab.config",
    "load": "gptlab.rundir",
    "open": "gptlab.lab",
    "register": "gptlab.registry",
}


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first asked for: torch costs a second."""
    if name not in _HOME:
        raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
