"""The page of a steering: one file that needs no network and no scripts; beside it steering.json and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from rich.table import Table

from gptlab import pages
from gptlab.comparison.drawing import ARMS, BASELINE, INK, MUTED, canvas, save
from gptlab.files import write_atomically
from gptlab.runlog import to_json
from gptlab.steering.effect import AFFORDABLE, QUANTILE, Measured, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUT, GREYS = "projected out", (MUTED, BASELINE)
COLUMNS = ("dose", "effect", "± 95%", "cost", "positive texts", "negative texts", "wrong way")


def write(
    out: Path, facts: Mapping[str, Any], measured: Measured | None, samples: Mapping[str, str], command: str
) -> Path:
    """Write steering.json, figures/ and index.html under `out`; returns the page."""
    found: dict[str, Any] = {"asked": command, **facts, "samples": samples}
    figures: dict[str, str] = {}
    if measured:
        found["steers"] = all(criterion.met for criterion in measured.criteria())
        found["criteria"] = {criterion.name: criterion.met for criterion in measured.criteria()}
        found["curve"] = [one.numbers() for one in measured.curve]
        found[OUT] = {"effect": measured.out.effect, "cost": measured.out.cost}
        found["controls"] = {name: [one.numbers() for one in of] for name, of in _controls(measured).items()}
        figures = {"effect": _effect(measured, out / "figures"), "cost": _cost(measured, out / "figures")}
    _put(out / "steering.json", json.dumps(json.loads(to_json(found)), ensure_ascii=False, indent=2) + "\n")
    _put(out / "index.html", render(facts, measured, samples, command, figures))
    return out / "index.html"


def render(
    facts: Mapping[str, Any],
    measured: Measured | None,
    samples: Mapping[str, str],
    command: str,
    figures: Mapping[str, str],
) -> str:
    """The page as text."""
    return pages.fill(
        Path(__file__).with_name("page.html"),
        facts=facts,
        measured=measured,
        columns=COLUMNS,
        rows=rows(measured) if measured else [],
        samples=samples,
        command=command,
        figures={name: Markup(svg) for name, svg in figures.items()},
        quantile=QUANTILE,
        affordable=AFFORDABLE,
    )


def as_table(measured: Measured) -> Table:
    """The same numbers on a terminal."""
    table = Table(*COLUMNS, box=None, pad_edge=False, title="nats per token on held-out texts", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(measured):
        table.add_row(*row)
    return table


def rows(measured: Measured) -> list[tuple[str, ...]]:
    """Cells of a table: each dose, projecting out, and of each control the range of the middle 95%."""
    listed = [_row(f"{one.dose:g}", one, f"{one.wrong:.0%}" if one.dose else "") for one in measured.curve]
    listed.append(_row(OUT, measured.out, ""))
    for name, of in _controls(measured).items():
        effects, costs = [one.effect for one in of], [one.cost for one in of]
        low, high = np.percentile(effects, [100 - QUANTILE, QUANTILE])
        wrong = f"{np.mean([one.wrong for one in of]):.0%}"
        spread = f"{low:+.4f} to {high:+.4f}"
        listed.append((f"{len(of)} {name}", spread, "", f"{np.mean(costs):+.4f}", "", "", wrong))
    return listed


def _row(label: str, one: Outcome, wrong: str) -> tuple[str, ...]:
    shifts = (f"{number:+.4f}" for number in (one.cost, one.positive, one.negative))
    return (label, f"{one.effect:+.4f}", f"{one.interval:.4f}", *shifts, wrong)


def _controls(measured: Measured) -> dict[str, Sequence[Outcome]]:
    return {"random": measured.random, "shuffled": measured.shuffled}


def _effect(measured: Measured, folder: Path) -> str:
    """The effect over the dose with its 95% interval, both sorts of texts, and the controls at the largest dose."""
    with canvas("effect") as figure:
        axes = _over_doses(figure, measured, "change in log-likelihood, nats per token")
        for name, color, style in (("positive", ARMS[2], "--"), ("negative", ARMS[1], ":")):
            shifts = [getattr(one, name) for one in measured.curve]
            axes.plot(shifts, style, color=color, linewidth=1.2, label=f"{name} texts")
        effects, errors = zip(*((one.effect, one.interval) for one in measured.curve), strict=True)
        places = range(len(effects))
        axes.errorbar(places, effects, errors, color=ARMS[0], marker="o", markersize=4, linewidth=1.8,
                      label="effect: their difference")  # fmt: skip
        for aside, (name, marker), color in zip((0.5, 0.9), (("random", "_"), ("shuffled", "x")), GREYS, strict=True):
            controls = [one.effect for one in _controls(measured)[name]]
            beside = [places[-1] + aside] * len(controls)
            axes.plot(beside, controls, marker, color=color, markersize=5, label=f"effects, {name}")
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        return save(figure, "effect", folder)


def _cost(measured: Measured, folder: Path) -> str:
    """The cost over the dose, and the most that is affordable."""
    with canvas("cost") as figure:
        axes = _over_doses(figure, measured, "rise of the loss on both texts, nats per token")
        axes.axhline(AFFORDABLE, color=MUTED, linewidth=1, linestyle=":")
        axes.plot([one.cost for one in measured.curve], color=ARMS[1], marker="o", markersize=4, linewidth=1.8)
        return save(figure, "cost", folder)


def _over_doses(figure: Figure, measured: Measured, label: str) -> Axes:
    """Axes over the doses, which double outwards, one after another."""
    axes = figure.add_subplot()
    doses = [one.dose for one in measured.curve]
    axes.set_xticks(range(len(doses)), [f"{dose:.3g}" for dose in doses], fontsize=7.5)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(doses.index(0), color=MUTED, linewidth=0.8)
    axes.set(xlabel="dose, in mean norms of the residual stream", ylabel=label)
    axes.grid(axis="y")
    return axes


def _put(path: Path, text: str) -> None:
    write_atomically(path, text.encode("utf-8", "replace"))
