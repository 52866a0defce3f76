"""What `gptlab look` was asked for: views of a run as PNG files, and a page that holds them all."""

from __future__ import annotations

import argparse
import base64
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from gptlab import pages
from gptlab.config import require
from gptlab.errors import GptlabError
from gptlab.files import write_atomically
from gptlab.inside import VIEWS
from gptlab.lab import Lab, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "inside" / "page.html"
NEEDS = {"patch": "corrupted", "compare": "other"}  # what a view is not without
INCH = 110  # pixels of a screen for an inch of a figure


class Picture(NamedTuple):
    """A view on the page: its PNG in letters, or why there is none."""

    name: str
    title: str
    about: str
    letters: str = ""
    width: int = 0  # on a screen
    missing: str = ""


def look(options: argparse.Namespace, out: TextIO) -> None:
    """Write the views that were asked for, or all that this model has, and print where the page is."""
    given = {view for view in VIEWS if view not in NEEDS or getattr(options, NEEDS[view]) is not None}
    for view in options.view or []:
        require(view in given, f"--view {view} needs --{NEEDS.get(view)}: give it.")
    require(options.corrupted is None or options.text is not None, "--corrupted is a --text with a change: give both.")
    for flag, view in {"corrupted": "patch", "right": "patch", "wrong": "patch", "other": "compare"}.items():
        drawn = view in (options.view or given)
        how = f"ask for it with --{NEEDS[view]}{f' and --view {view}' if options.view else ''}"
        require(
            drawn or getattr(options, flag) is None,
            f"--{flag} is about the view {view}, which is not drawn: {how}, or leave --{flag} out.",
        )
    lab = Lab(options.run, step=options.step, note=lambda line: print(line, file=sys.stderr))
    if options.text is not None:
        lab.read(options.text)  # what is wrong with a text is wrong with all views
    folder: Path = options.out or lab.path / "look"
    asked = options.view or [*NEEDS]  # what a flag asks for must be there; the rest is what this model has
    draws = {view: draw for view, draw in _draws(lab, options).items() if view in (options.view or given)}
    pictures = [_picture(view, draw, must=view in asked) for view, draw in draws.items()]
    for picture in pictures:
        if picture.letters:
            write_atomically(folder / f"{picture.name}.png", base64.b64decode(picture.letters))
    write_atomically(folder / "index.html", _page(lab, options.text, pictures).encode())
    print(folder / "index.html", file=out)


def _draws(lab: Lab, options: argparse.Namespace) -> dict[str, Callable[[], Figure]]:
    text = options.text
    return {
        "attention": lambda: lab.attention(text),
        "heads": lab.heads,
        "lens": lambda: lab.lens(text),
        "attribution": lambda: lab.attribution(text),
        "patch": lambda: lab.patch(text, options.corrupted, options.right, options.wrong),
        "compare": lambda: lab.compare(Lab(options.other, step=options.step, note=lab.note), text),
        "positions": lab.positions,
        "embeddings": lambda: lab.embeddings(text),
        "rope": lab.rope,
        "stability": lambda: lab.stability(text),
        "experts": lambda: lab.experts(text),
    }


def _picture(view: str, draw: Callable[[], Figure], must: bool) -> Picture:
    """Draw a view; one that this model does not have is an error where it `must` be."""
    about = inspect.getdoc(getattr(Lab, view)) or ""
    try:
        figure = draw()
        image = png(figure)
    except GptlabError as error:
        if must:
            raise
        return Picture(view, VIEWS[view], about, missing=str(error))
    return Picture(view, VIEWS[view], about, base64.b64encode(image).decode(), round(INCH * figure.get_figwidth()))


def _page(lab: Lab, text: str | None, pictures: list[Picture]) -> str:
    """One file, which needs no network and no scripts."""
    told = {
        "run": f"{lab.path}, step {lab.step:,}",
        "model": f"{len(lab.model.blocks)} layers, {lab.model.n_parameters():,} parameters",
        "text": text or "the beginning of validation",
    }
    return pages.fill(TEMPLATE, run="/".join(lab.path.resolve().parts[-2:]), told=told, pictures=pictures)
