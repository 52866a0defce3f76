"""Pages from templates: what is filled in is escaped, and a name that nobody gave is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def fill(template: Path, **values: Any) -> str:
    """The text of a template, which may include others of its folder, with the values in their places."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
