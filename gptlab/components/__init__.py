"""The parts of a layer. Importing this package registers every variant: each file below, then installed plugins."""

from __future__ import annotations

import importlib
import pkgutil

from gptlab import plugins

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
plugins.load_entry_points()
