"""What a search came to: its trials ranked, each beside what it cost; a figure, a page, and the best as a command."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab import pages
from gptlab.comparison.drawing import ARMS, BASELINE, INK, MUTED, canvas, save, short
from gptlab.comparison.words import NONE, count, duration, memory, score
from gptlab.files import write_atomically
from gptlab.runlog import write_summary
from gptlab.studies import journal
from gptlab.studies.space import Request
from gptlab.studies.tuning import PHASE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

Row = dict[str, Any]
CONFIRM = "confirm.yaml"
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "cut off", "WAITING": "cut off"}
SHOWN = 10  # trials that a terminal shows
ENOUGH = 8  # trials with a result, before it is said what mattered
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", count),
    "flops_per_token": ("FLOPs/token", count),
    "tokens": ("tokens", count),
    "seconds_per_step": ("time/step", duration),
    "peak_memory": ("peak memory", memory),
}


def name_of(number: int) -> str:
    """What a trial is called, in tables and as a folder."""
    return f"trial{number}"


def write(directory: Path, request: Request, study: Study, status: str) -> str | None:
    """All files of a search that has ended or stopped; returns the command of its best trial."""
    found = rows(directory, request, study)
    best = _best(found)
    command = shlex.join(["gptlab", "train", *_words(request, study, best)]) if best else None
    important = importance(study)
    counted = {state: sum(row["state"] == state for row in found) for state in dict.fromkeys(STATES.values())}
    facts = {"status": status, "trials": len(found), **counted, "best": best, "command": command}
    write_summary(directory, {**facts, "metric": request.settings.metric, "importance": important})
    write_atomically(directory / "table.md", markdown(found).encode())
    write_atomically(directory / "table.csv", _csv(found).encode())
    if best:
        write_atomically(directory / CONFIRM, _confirm(request, study, best).encode())
    figure = _draw(directory / "figures", request, found, important)
    page = _page(request, found, command, figure)
    write_atomically(directory / "index.html", page.encode())
    return command


def rows(directory: Path, request: Request, study: Study) -> list[Row]:
    """One row for each trial, the best first; those that were pruned after those with a result, failures last."""
    sign = -1 if request.settings.better == "higher" else 1
    found = [_row(directory, request, one) for one in journal.trials(study)]
    states = list(dict.fromkeys(STATES.values()))

    def place(row: Row) -> tuple[float, ...]:
        pruned = -(row["step"] or 0) if row["state"] == "pruned" else 0
        return (
            states.index(row["state"]),
            pruned,
            math.inf if row["value"] is None else sign * row["value"],
            row["trial"],
        )

    return sorted(found, key=place)


def outcome(request: Request, study: Study, number: int) -> str:
    """What became of a trial, in a line, and the best so far."""
    one = journal.trials(study)[number]
    title = " ".join([name_of(number), *_drawn(request, one)])
    if error := one.user_attrs.get("error"):
        return f"{title} failed: {error}"
    best = [f"best {score(study.best_value)} of {name_of(study.best_trial.number)}"] if _has_best(study) else []
    state = [f"pruned at step {one.last_step}"] if STATES[one.state.name] == "pruned" else []
    return ", ".join([f"{title}: {request.settings.metric} {score(one.value)}", *state, *best])


def importance(study: Study) -> dict[str, float]:
    """Share of each setting in being among the best, after PED-ANOVA; empty while there are few results."""
    optuna = journal.optuna()
    done = [one for one in journal.trials(study) if STATES[one.state.name] == "done"]
    if len(done) < ENOUGH or len({one.value for one in done}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def show(console: Console, request: Request, study: Study, directory: Path) -> None:
    """The best trials, as far as a terminal is wide."""
    found = rows(directory, request, study)
    if not found:
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for number, name in enumerate(_cells(found[0])):
        table.add_column(escape(name), justify="left" if number == 0 else "right", overflow="fold")
    for row in found[:SHOWN]:
        table.add_row(*map(escape, _cells(row).values()))
    console.print(table)
    if len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN} more in {directory / 'table.md'}", soft_wrap=True)


def markdown(found: list[Row]) -> str:
    """The ranked table for a note."""
    if not found:
        return "No trial yet.\n"
    lines = [list(_cells(found[0])), ["---"] * len(_cells(found[0])), *(list(_cells(row).values()) for row in found)]
    safe = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def _row(directory: Path, request: Request, one: FrozenTrial) -> Row:
    summary = _read(directory / PHASE / name_of(one.number) / f"seed{request.settings.seed}" / "summary.json")
    drawn = dict(word.partition("=")[::2] for word in _drawn(request, one))
    return {
        "trial": one.number,
        "state": STATES[one.state.name],
        "value": one.value if one.value is None or math.isfinite(one.value) else None,
        "settings": drawn,
        "step": summary.get("step"),
        **{key: summary.get(key) for key in COSTS},
        "seconds": summary.get("seconds"),
        "error": one.user_attrs.get("error"),
    }


def _drawn(request: Request, one: FrozenTrial) -> list[str]:
    return [d.override(one.params[d.key]) for d in request.space if d.key in one.params]


def _cells(row: Row) -> dict[str, str]:
    """A row as it is written, by column."""
    return {
        "trial": str(row["trial"]),
        "state": row["state"],
        "value": score(row["value"]),
        **row["settings"],
        **{title: written(row[key]) for key, (title, written) in COSTS.items()},
        "time": duration(row["seconds"]),
        "step": NONE if row["step"] is None else str(row["step"]),
        "why": " ".join((row["error"] or "").split()),
    }


def _csv(found: list[Row]) -> str:
    text = io.StringIO()
    flat = [{**{k: v for k, v in row.items() if k != "settings"}, **row["settings"]} for row in found]
    table = csv.DictWriter(text, list(flat[0]) if flat else ["trial"], lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    table.writerows(flat)
    return text.getvalue()


def _best(found: list[Row]) -> Row | None:
    return found[0] if found and found[0]["state"] == "done" else None


def _has_best(study: Study) -> bool:
    return any(STATES[one.state.name] == "done" for one in journal.trials(study))


def _words(request: Request, study: Study, best: Row) -> list[str]:
    """The overrides of a trial as a command line takes them."""
    drawn = _drawn(request, journal.trials(study)[best["trial"]])
    return [*request.base, *drawn, f"seed={request.settings.seed}"]


def _confirm(request: Request, study: Study, best: Row) -> str:
    """A study of the best trial against the settings as they were, on other seeds."""
    settings = request.settings
    tuned = _drawn(request, journal.trials(study)[best["trial"]])
    tree = {
        "question": f"Is {name_of(best['trial'])} of a search better than what it began from?",
        "arms": {"before": [], "tuned": tuned},
        "base": request.base,
        "metric": settings.metric,
        "better": settings.better,
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _draw(folder: Path, request: Request, found: list[Row], important: Mapping[str, float]) -> str:
    """The search over its trials, and what mattered; returns the SVG."""
    height = max(3.8, 0.4 * len(important) + 1)
    with canvas("search", width=8.4 if important else 5.6, height=height) as figure:
        if important:
            left, right = figure.subplots(1, 2, width_ratios=[3, 2])
            _draw_importance(right, important)
        else:
            left = figure.subplots()
        _draw_trials(left, request, found)
        return save(figure, "search", folder)


def _draw_trials(axes: Axes, request: Request, found: list[Row]) -> None:
    """Each trial where it ended, and the best so far."""
    sign = -1 if request.settings.better == "higher" else 1
    for state, marker, color in (("done", "o", ARMS[0]), ("pruned", "x", MUTED)):
        ended = [row for row in found if row["state"] == state and row["value"] is not None]
        axes.scatter([row["trial"] for row in ended], [row["value"] for row in ended], s=18, marker=marker, color=color,
                     linewidths=1, label=state)  # fmt: skip
    done = sorted((row["trial"], sign * row["value"]) for row in found if row["state"] == "done")
    numbers, best = [number for number, _ in done], [min(value for _, value in done[: i + 1]) for i in range(len(done))]
    axes.step(numbers, [sign * value for value in best], where="post", color=BASELINE, label="best so far")
    for failed in (row["trial"] for row in found if row["state"] == "failed"):
        axes.plot(failed, 0, marker="|", color=ARMS[1], transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set(xlabel="trial (| failed)", ylabel=request.settings.metric)
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _draw_importance(axes: Axes, important: Mapping[str, float]) -> None:
    names = list(important)[::-1]
    axes.barh([short(name) for name in names], [important[name] for name in names], color=ARMS[0], height=0.6)
    axes.set(xlabel="importance", xlim=(0, 1))


def _page(request: Request, found: list[Row], command: str | None, figure: str) -> str:
    template = Path(__file__).with_name("search.html")
    return pages.fill(
        template, request=request, rows=[_cells(row) for row in found], command=command, figure=figure, confirm=CONFIRM
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
