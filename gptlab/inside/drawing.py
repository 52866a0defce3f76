"""The figures of what was seen inside a model: one function for each view, from its numbers to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gptlab.comparison.drawing import ARMS, BAND, INK, MUTED, canvas
from gptlab.inside.attribution import Attribution
from gptlab.inside.embeddings import Components, Neighbours
from gptlab.inside.experts import Load
from gptlab.inside.heads import FOUND, KINDS, Head
from gptlab.inside.lens import Lens
from gptlab.inside.losses import ByPosition
from gptlab.inside.maps import Map
from gptlab.inside.patching import Patched
from gptlab.inside.rope import Waves
from gptlab.inside.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axes._base import _AxesBase
    from matplotlib.figure import Figure

LEGIBLE = 0.085  # inches of an axis that a word needs
WIDEST = 24.0  # inches of a figure
PER_LINE = 80  # letters of a text in a line of a figure


def attention(found: Sequence[Map], heads: Sequence[Sequence[int]], words: Sequence[str]) -> Figure:
    """A map for each of the heads of a layer, a row of them for each layer: who looks (down) at whom (across)."""
    n_wide = max(map(len, heads))
    size = max(1.2, min(0.1 * len(words), WIDEST / n_wide, 10))
    shown = words if size / len(words) >= LEGIBLE else []
    with canvas("attention", 1 + n_wide * size, 0.6 + len(found) * (size + 0.3)) as figure:
        panels = figure.subplots(len(found), n_wide, squeeze=False)
        for row, (layer, weights, by_softmax), shown_heads in zip(panels, found, heads, strict=True):
            for head, axes in zip(shown_heads, row, strict=False):
                axes.imshow(_numbers(weights[0, head]), cmap="Blues", vmin=0, vmax=1)
                title = f"layer {layer}, " + (f"head {head}" if by_softmax else "influence (it has no softmax)")
                axes.set_title(title, fontsize=max(8, min(5 * size, 115 * size / len(title))))
                _words_along(axes, shown, 5.5)
                axes.set_yticks(range(len(shown)), shown, fontsize=5.5)
            for axes in row[len(shown_heads) :]:
                axes.set_visible(False)
        return figure


def lens(found: Lens, words: Sequence[str], said: Sequence[Sequence[str]]) -> Figure:
    """The likeliest next token at each depth and place, in the colour of its probability; `said` is (R, T) of them."""
    likely = found.logits[:, 0].float().softmax(-1).amax(-1)
    with canvas("lens", _width(words), 1.3 + 0.3 * len(found.rows)) as figure:
        axes = figure.add_subplot()
        _table(figure, axes, likely, found.rows, words, "Blues", (0, 1), "probability of the likeliest next token")
        for (row, column), text in np.ndenumerate(np.array(said, dtype=object)):
            light = float(likely[row, column]) < 0.55
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=INK if light else "white")
        return figure


def attribution(found: Attribution, words: Sequence[str], targets: Sequence[str]) -> Figure:
    """What each piece gives to the logit of the next token, place by place."""
    given = found.given[:, 0]
    with canvas("attribution", _width(words), 1.6 + 0.2 * len(found.names)) as figure:
        axes = figure.add_subplot()
        bound = float(given.abs().max()) or 1.0
        _table(figure, axes, given, found.names, words, "RdBu_r", (-bound, bound), "logits given to the next token")
        above = axes.secondary_xaxis("top")
        _words_along(above, targets, 7)
        above.set_xlabel("next token", fontsize=8)
        return figure


def patching(found: Patched, words: Sequence[str], others: Sequence[str]) -> Figure:
    """The share of the way from the corrupted answer to the clean one that each place brings back."""
    shares = found.restored
    both = [a if a == b else f"{a} | {b}" for a, b in zip(words, others, strict=True)]
    bound = max(1.0, float(shares.abs().max()))
    with canvas("patching", _width(words), 1.8 + 0.3 * len(found.rows)) as figure:
        axes = figure.add_subplot()
        _table(figure, axes, shares, found.rows, both, "RdBu_r", (-bound, bound), "share that is restored")
        axes.set_xlabel("clean | corrupted", fontsize=8)
        told = f"logit difference: clean {found.clean:+.2f}, corrupted {found.corrupted:+.2f}"
        axes.set_title(told, loc="left", fontsize=8)
        return figure


def heads(found: Sequence[Head]) -> Figure:
    """The three scores of each head, layer by layer; a frame around what a head is found to do."""
    layers = sorted({head.layer for head in found})
    scores = np.full((len(KINDS), len(layers), 1 + max(head.head for head in found)), np.nan)
    for head in found:
        scores[:, layers.index(head.layer), head.head] = [getattr(head, kind) for kind in KINDS]
    n_wide = scores.shape[-1]
    with canvas("heads", 1.2 + 3 * max(1.6, 0.5 * n_wide), 1.2 + 0.45 * len(layers)) as figure:
        panels = figure.subplots(1, len(KINDS), sharey=True)
        for axes, kind, grid in zip(panels, KINDS, scores, strict=True):
            axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            _write_scores(axes, grid)
            axes.set_title(kind)
            axes.set_xlabel("head")
            axes.set_xticks(range(n_wide))
        panels[0].set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
        return figure


def positions(found: ByPosition) -> Figure:
    """The loss at each place of the window with twice its standard error, and its mean over quarters of an octave."""
    mean, error = _numbers(found.mean), _numbers(found.error)
    asked = np.flatnonzero(~np.isnan(mean))
    places, mean, error = asked + 1, mean[asked], error[asked]
    octaves = np.floor(4 * np.log2(places))
    means = [(places[octaves == o].mean(), mean[octaves == o].mean()) for o in np.unique(octaves)]
    with canvas("positions") as figure:
        axes = figure.add_subplot()
        axes.fill_between(places, mean - 2 * error, mean + 2 * error, color=BAND, linewidth=0)
        axes.plot(places, mean, color=MUTED, linewidth=0.6)
        axes.plot(*zip(*means, strict=True), color=ARMS[0], linewidth=1.8, marker="o", markersize=3)
        axes.set_xlabel("tokens that the prediction is made from")
        axes.set_ylabel("nats per token")
        axes.set_xscale("log", base=2)
        axes.grid(axis="y")
        return figure


def compare(difference: Float[Tensor, " T"], words: Sequence[str], names: tuple[str, str]) -> Figure:
    """A text in which each token has the colour of the model that knew it better."""
    values = _numbers(difference)
    bound = float(np.nanmax(np.abs(values))) or 1.0
    lines = list(_lines(words))
    with canvas("compare", 8, 0.8 + 0.25 * max(len(lines), 7)) as figure:
        axes = figure.add_subplot()
        for row, line in enumerate(lines):
            for index, column in line:
                share = 0.5 + 0.5 * values[index] / bound
                axes.text(
                    column, -row, words[index], fontsize=8, family="monospace", va="center",
                    bbox={"facecolor": _colormap()(share), "edgecolor": "none", "pad": 1.2, "alpha": 0.6},
                )  # fmt: skip
        axes.set_xlim(0, PER_LINE)
        axes.set_ylim(-max(len(lines), 7), 1)
        axes.set_axis_off()
        told = f"loss of {names[1]}\nless that of {names[0]}: mean {np.nanmean(values):+.4f} nats per token"
        axes.set_title(told, loc="left", fontsize=9)
        _bar(figure, axes, "RdBu", (-bound, bound), "nats")
        return figure


def embeddings(found: Components, words: Sequence[str], near: Neighbours, asked: Sequence[int]) -> Figure:
    """Tokens along the two main directions, and the nearest neighbours of some beside them."""
    places = _numbers(found.places)
    with canvas("embeddings", 9, 5) as figure:
        axes, beside = figure.subplots(1, 2, width_ratios=(3, 2))
        shown = range(len(words)) if len(words) <= 300 else asked
        axes.scatter(places[:, 0], places[:, 1], s=4, color=BAND)
        for index in shown:
            color = ARMS[1] if index in asked else ARMS[0]
            axes.text(places[index, 0], places[index, 1], words[index], fontsize=7, color=color, ha="center")
        for direction, label in ((0, axes.set_xlabel), (1, axes.set_ylabel)):
            label(f"{found.shares[direction]:.0%} of the variance", fontsize=8)
        beside.set_axis_off()
        for row, (index, ids, cosines) in enumerate(zip(asked, near.ids.tolist(), near.cosines.tolist(), strict=True)):
            line = "  ".join(f"{words[i]} {cosine:.2f}" for i, cosine in zip(ids, cosines, strict=True))
            height = 0.97 - row / max(12, len(asked))
            beside.text(0, height, words[index], fontsize=8, color=ARMS[1], transform=beside.transAxes)
            beside.text(0.14, height, line, fontsize=7, color=INK, transform=beside.transAxes)
        return figure


def rope(found: Sequence[Waves], block_size: int) -> Figure:
    """The wavelength of each pair, beside the length of the text that the model was trained on."""
    with canvas("rope") as figure:
        axes = figure.add_subplot()
        for number, (position, layers, lengths) in enumerate(found):
            told = f"{position}, layers {', '.join(map(str, layers))}"
            axes.plot(_numbers(lengths), "o-", color=ARMS[number % len(ARMS)], markersize=4, label=told)
        axes.axhline(block_size, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
        far = max(len(lengths) for _, _, lengths in found) - 1
        told = "block_size: what is above it never turns once"
        axes.text(far, block_size, told, fontsize=8, color=MUTED, va="bottom", ha="right")
        axes.set_yscale("log")
        axes.set_xlabel("pair")
        axes.set_ylabel("tokens to turn once")
        axes.legend(fontsize=8, frameon=False)
        axes.grid(axis="y")
        return figure


def stability(found: Stability) -> Figure:
    """The size of the stream by depth, and the largest score of each head."""
    with canvas("stability", 8, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(_numbers(found.rms), "o-", color=ARMS[0], markersize=4)
        left.set_xticks(range(len(found.rows)), ["in", *map(str, range(len(found.rows) - 1))])
        left.set_xlabel("after layer")
        left.set_ylabel("root mean square of the stream")
        left.set_ylim(bottom=0)
        for layer, scores in found.largest.items():
            right.plot([layer] * len(scores), _numbers(scores), "o", color=ARMS[1], markersize=4, alpha=0.7)
        right.set_xticks(list(found.largest))
        right.set_xlabel("layer" if found.largest else "no layer has a softmax")
        right.set_ylabel("largest score of each head")
        for axes in (left, right):
            axes.grid(axis="y")
        return figure


def experts(found: Sequence[Load]) -> Figure:
    """The load of each expert, layer by layer, beside the share that all would have alike."""
    n_rows = -(-len(found) // 2)
    with canvas("experts", 6.4, 0.9 + 1.5 * n_rows) as figure:
        panels = figure.subplots(n_rows, 2, squeeze=False, sharey=True).flatten()
        for axes, (layer, chosen, weights) in zip(panels, found, strict=False):
            axes.bar(range(len(chosen)), _numbers(chosen), color=ARMS[0], label="of the choices")
            axes.plot(_numbers(weights), "_", color=ARMS[1], markersize=9, markeredgewidth=2, label="of the weights")
            axes.axhline(1 / len(chosen), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="alike")
            axes.set_title(f"layer {layer}", loc="left", fontsize=9)
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes in panels[-2:]:
            axes.set_xlabel("expert")
        panels[0].set_ylabel("share")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside lower left", ncols=3, fontsize=8, frameon=False)
        return figure


def _numbers(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy()


def _table(
    figure: Figure, axes: Axes, values: Float[Tensor, "R T"], rows: Sequence[str], words: Sequence[str],
    colors: str, bounds: tuple[float, float], meaning: str,
) -> None:  # fmt: skip
    """A number for each row and token, by colour."""
    axes.imshow(_numbers(values), cmap=colors, vmin=bounds[0], vmax=bounds[1], aspect="auto")
    _words_along(axes, words, 7.5)
    axes.set_yticks(
        range(len(rows)), [row.removesuffix(".out").replace("blocks.", "layer ") for row in rows], fontsize=7
    )
    _bar(figure, axes, colors, bounds, meaning)


def _bar(figure: Figure, axes: Axes, colors: str, bounds: tuple[float, float], meaning: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(*bounds), colors), ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(meaning, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _colormap() -> Any:
    import matplotlib

    return matplotlib.colormaps["RdBu"]


def _words_along(axes: _AxesBase, words: Sequence[str], size: float) -> None:
    """The tokens on an axis without a frame."""
    turned = 90 if max(map(len, words), default=0) > 2 else 0
    axes.set_xticks(range(len(words)), words, rotation=turned, fontsize=size)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _width(words: Sequence[str]) -> float:
    """Inches of a table with a column for each token."""
    return min(WIDEST, 2.4 + 0.5 * len(words))


def _write_scores(axes: Axes, grid: Any) -> None:
    """Each score in its cell; a frame around what is found."""
    from matplotlib.patches import Rectangle

    for (row, column), score in np.ndenumerate(grid):
        if np.isnan(score):
            continue
        color = "white" if score > 0.55 else INK
        axes.text(column, row, f"{score:.2f}", ha="center", va="center", fontsize=6.5, color=color)
        if score >= FOUND:
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ARMS[1], linewidth=1.8, zorder=3)
            axes.add_patch(box)


def _lines(words: Sequence[str]) -> Iterator[list[tuple[int, int]]]:
    """Which token stands in which column, line by line."""
    line: list[tuple[int, int]] = []
    column = 0
    for index, word in enumerate(words):
        if column + len(word) > PER_LINE and line:
            yield line
            line, column = [], 0
        line.append((index, column))
        column += len(word)
        if word.endswith("⏎"):
            yield line
            line, column = [], 0
    if line:
        yield line
