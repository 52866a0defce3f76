"""What figures are drawn with: colours that colour-blind eyes and grey paper keep apart, and files that are the same
whenever they are drawn. In the page the same figures take the page's own colours, light or dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.files import write_atomically
from gptlab.report import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, BAND, PAPER = "#1f2328", "#68707a", "#dfe3e8", "#e9eef5", "#fefefe"
BASELINE = "#4a4f57"
ARMS = ("#0072b2", "#d55e00", "#009e73", "#b5499a", "#9a6a00", "#3b9fd6", "#7a4fa3")  # after Okabe and Ito 2008
NAMES = {  # colour -> the page's variable for it
    **{INK: "ink", MUTED: "muted", FAINT: "faint", BAND: "band", PAPER: "paper", BASELINE: "baseline"},
    **{colour: f"arm{number}" for number, colour in enumerate(ARMS)},
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2, 2, 2, 2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the font of the page
    "text.parse_math": False,  # an arm may be called like a formula
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
LONGEST = 30  # letters of a name in a figure


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same in every figure."""

    color: str
    dash: Any
    marker: str


def looks(arms: Sequence[str], baseline: str) -> dict[str, Look]:
    """A look for each arm: the baseline is grey and solid; the others differ in colour, dashes and marker."""
    others = [arm for arm in dict.fromkeys(arms) if arm != baseline]
    found = {
        arm: Look(ARMS[n % len(ARMS)], DASHES[n % len(DASHES)], MARKERS[(n + 1) % len(MARKERS)])
        for n, arm in enumerate(others)
    }
    return {arm: found.get(arm, Look(BASELINE, "-", "o")) for arm in arms}


@contextmanager
def canvas(name: str, width: float = 5.6, height: float = 3.8) -> Iterator[Figure]:
    """An empty figure, in inches, in our style. The object API: pyplot would keep a state and look for a screen."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, name: str, folder: Path) -> str:
    """Write folder/name.svg and .png, for a paper; returns the SVG as the page takes it in."""
    paper = io.BytesIO()
    figure.savefig(paper, format="png", metadata={"Software": None}, facecolor="white")
    figure.set_layout_engine("none")  # it is laid out by now, which takes long
    text = io.BytesIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    write_atomically(folder / f"{name}.png", paper.getvalue())
    write_atomically(folder / f"{name}.svg", text.getvalue())
    return inlined(text.getvalue().decode(), name)


def inlined(svg: str, name: str) -> str:
    """An SVG as a part of a page: its colours are the page's variables, and its ids are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r"(?<=: )#[0-9a-f]{6}", lambda found: _variable(found.group()), svg)


def short(name: str) -> str:
    """A name that fits a figure."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def beside(axes: Axes, labels: Sequence[tuple[float, str, str, bool]]) -> None:
    """Labels (height, text, colour, bold) right of the axes, each by a thin line at its height, none over another."""
    bottom, top = axes.get_ylim()
    labels = sorted(labels)
    heights = [min(1.0, max(0.0, (height - bottom) / ((top - bottom) or 1))) for height, *_ in labels]
    for (_, text, color, bold), height, moved in zip(labels, heights, spread(heights), strict=True):
        axes.plot([1, 1.02], [height, moved], color=color, linewidth=0.6, transform=axes.transAxes, clip_on=False)
        weight = "bold" if bold else "normal"
        axes.text(
            1.03, moved, text, transform=axes.transAxes, va="center", fontsize=8.5, color=color, fontweight=weight
        )


def _variable(color: str) -> str:
    return f"var(--{NAMES[color]})" if color in NAMES else color
