"""The figure a run leaves behind: losses over tokens, with the n-gram ruler of the same split as levels."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.display import level
from gptlab.files import write_atomically
from gptlab.runlog import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, VAL, RULER = "#9db8d2", "#c8452c", "#7a7a7a"
Points = tuple[list[float], list[float]]  # x and y
GAP = 0.04  # least distance of two labels, as a share of the axis


def draw_curve(run_dir: Path, *, ruler: Mapping[int, float] | None = None) -> Path:
    """Draw run_dir/curve.png from its metrics.jsonl; `ruler` is {order: nats per token}. Returns its path.

    Points that are not finite leave a gap. Raises DataError when the metrics cannot be read.
    """
    # The object API: pyplot would keep a global state and might look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_rows(run_dir / "metrics.jsonl")
    over = "tokens" if any(row.get("tokens") is not None for row in rows) else "step"
    train, val = _points(rows, over, "train/loss"), _points(rows, over, "val/loss")
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_losses(axes, train, "train", TRAIN, 1)
    _draw_losses(axes, val, "validation", VAL, 1.8)
    _style(axes, over, run_dir.name)
    _frame(axes, (train, val), list((ruler or {}).values()))
    _draw_ruler(axes, ruler or {})
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    write_atomically(run_dir / "curve.png", image.getvalue())
    return run_dir / "curve.png"


def _points(rows: Sequence[Mapping[str, Any]], over: str, key: str) -> Points:
    """The x and y of a metric; a null in the file (a loss that was not finite) becomes a gap."""
    found = [(row[over], row[key]) for row in rows if row.get(over) is not None and key in row]
    return [x for x, _ in found], [math.nan if y is None else y for _, y in found]


def _draw_losses(axes: Axes, points: Points, label: str, color: str, width: float) -> None:
    if _finite(points[1]):
        marker = "o" if len(points[0]) <= 40 else ""  # a curve of one point is seen too
        axes.plot(*points, color=color, linewidth=width, marker=marker, markersize=3.5, label=label)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _style(axes: Axes, over: str, name: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(name, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel("tokens" if over == "tokens" else "steps")
    axes.set_ylabel("nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    if axes.lines:
        axes.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "no losses yet", transform=axes.transAxes, ha="center", color=RULER)


def _frame(axes: Axes, curves: Sequence[Points], levels: Sequence[float]) -> None:
    """Show what comes after the first drop: untrained losses, or one spike, would press all the rest flat."""
    axes.set_xlim(0, 1.01 * max((x for xs, _ in curves for x in xs), default=0) or 1)
    losses = sorted(y for _, ys in curves for y in _finite(ys[len(ys) // 50 :]))
    shown = [*levels, *losses[: math.ceil(0.99 * len(losses))]]
    if shown:
        low, high = min(shown), max(shown)
        margin = 0.06 * ((high - low) or 1)
        axes.set_ylim(low - margin, high + margin)


def _draw_ruler(axes: Axes, ruler: Mapping[int, float]) -> None:
    bottom, top = axes.get_ylim()
    orders = sorted(ruler, key=lambda order: ruler[order])
    heights = [(ruler[order] - bottom) / (top - bottom) for order in orders]
    for order, height, beside in zip(orders, heights, spread(heights), strict=True):
        axes.axhline(ruler[order], color=RULER, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([1, 1.02], [height, beside], color=RULER, linewidth=0.5, transform=axes.transAxes, clip_on=False)
        label = f"{level(order).removeprefix('the ')} {ruler[order]:.2f}"
        axes.text(1.025, beside, label, transform=axes.transAxes, va="center", fontsize=8, color=RULER)


def spread(heights: Sequence[float]) -> list[float]:
    """Rising heights moved as little as possible (least squares) so that neighbours are GAP or more apart."""
    blocks: list[tuple[float, int]] = []  # mean offset and size of labels that touch: isotonic regression
    for index, height in enumerate(heights):
        offset, size = height - index * GAP, 1
        while blocks and blocks[-1][0] > offset:
            other, count = blocks.pop()
            offset, size = (offset * size + other * count) / (size + count), size + count
        blocks.append((offset, size))
    offsets = [offset for offset, size in blocks for _ in range(size)]
    return [offset + index * GAP for index, offset in enumerate(offsets)]
