"""Where conf/ is: named by GPTLAB_CONF, beside the package in a checkout, or inside the installed package."""

from __future__ import annotations

import os
from pathlib import Path

from gptlab.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


def find() -> Path:
    """The directory of presets, absolute. ConfigError when there is none."""
    named = os.environ.get("GPTLAB_CONF")
    places = [Path(named).expanduser().absolute()] if named else [PACKAGE.parent / "conf", PACKAGE / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise ConfigError(
        f"The presets need a directory with train.yaml, but {places[-1]} has none: unset GPTLAB_CONF or reinstall."
    )
