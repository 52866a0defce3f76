"""Pages from templates: what is filled in is escaped, and a name that nobody gave is an error.

All extend base.html, which has the colours and what pages share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def fill(template: Path, **values: Any) -> str:
    """The text of a template, which may extend base.html, with the values in their places."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
