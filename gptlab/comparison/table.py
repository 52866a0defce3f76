"""The table of a comparison: each arm's effect and verdict beside its loss, and all that it cost, always."""

from __future__ import annotations

import csv as writer
import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab.comparison.records import Comparison, RunRecord
from gptlab.comparison.words import (
    NONE,
    count,
    duration,
    effect_of,
    memory,
    probability,
    recipe,
    score,
    sentence,
    setting,
)

if TYPE_CHECKING:
    from gptlab.comparison.verdict import Effect, Verdict

Row = dict[str, Any]
EARLY = 0.8  # share of the steps before which the best validation loss is clearly before the end
NAME = 24  # letters of an arm in one line of a terminal
COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "inconclusive": "yellow"}
FINDING: dict[str, Callable[[Row], str]] = {  # column -> how a row is written there: what was found ...
    "verdict": lambda row: row["verdict"],
    "effect [95%]": lambda row: effect_of(row["low"], row["effect"], row["high"]),
    "p (Holm)": lambda row: probability(row["p_holm"]),
    "mean": lambda row: score(row["mean"]),
    "sd": lambda row: score(row["sd"]),
    "bits/byte": lambda row: score(row["bits_per_byte"]),
    "seeds": lambda row: str(row["seeds"]),
    "unstable": lambda row: f"{row['unstable']}/{row['runs']}" if row["unstable"] else NONE,
    "overfits": lambda row: f"{row['overfits']}/{row['seeds']}" if row["overfits"] else NONE,
}
COSTING: dict[str, Callable[[Row], str]] = {  # ... and what it cost
    "parameters": lambda row: count(row["parameters"]),
    "FLOPs/token": lambda row: count(row["flops_per_token"]),
    "tokens": lambda row: count(row["tokens"]),
    "time/step": lambda row: duration(row["seconds_per_step"]),
    "peak memory": lambda row: memory(row["peak_memory"]),
    "matched width": lambda row: row["matched"] or NONE,
    "learning rate": lambda row: f"{setting(row['lr'])} ({'tuned' if 'tuned' in row['recipe'] else 'fixed'})",
}


def rows(comparison: Comparison, verdict: Verdict) -> list[Row]:
    """One row for each arm, in full precision: what was found, its loss, its costs. None where there is no number."""
    effects = {effect.arm: effect for effect in verdict.effects}
    return [_row(comparison, arm, effects.get(arm)) for arm in comparison.arms]


def markdown(comparison: Comparison, verdict: Verdict) -> str:
    """The table for a note, with the sentences of the verdict over it."""
    columns = {**FINDING, **COSTING}
    lines = [f"- {_plain(sentence(effect, comparison))}\n" for effect in verdict.effects]
    head = ["arm", *columns]
    body = [
        [_plain(row["arm"]), *(_plain(write(row)) for write in columns.values())] for row in rows(comparison, verdict)
    ]
    aligned = ["---", *("---:" for _ in columns)]
    return "".join([*lines, "\n", *(f"| {' | '.join(cells)} |\n" for cells in (head, aligned, *body))])


def csv(comparison: Comparison, verdict: Verdict) -> str:
    """The table for a program: every number as it is, nothing where there is none."""
    text = io.StringIO()
    found = rows(comparison, verdict)
    table = writer.DictWriter(text, list(found[0]) if found else ["arm"], lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    return text.getvalue()


def show(console: Console, comparison: Comparison, verdict: Verdict) -> None:
    """Sentences, the table in as many parts as the terminal is narrow, what could not be paired."""
    for effect in verdict.effects:
        console.print(escape(sentence(effect, comparison)), style=COLOURS.get(effect.verdict), highlight=False)
    found = rows(comparison, verdict)
    for columns in _parts(found, console.width):
        console.print(_table(found, columns), end="\n\n")
    for line in (*verdict.notes, *comparison.unpaired):
        console.print(f"  {escape(line)}", highlight=False)


def tokens_of(record: RunRecord) -> float | None:
    """How many tokens a run learned from."""
    return record.summary.get("tokens")


def flops_of(record: RunRecord) -> float | None:
    """What the training of a run cost, in FLOPs."""
    each, tokens = record.summary.get("flops_per_token"), tokens_of(record)
    return None if each is None or tokens is None else each * tokens


def seconds_of(record: RunRecord) -> float | None:
    """How long the steps of a run took: the median of its warm ones, times their number."""
    each, steps = record.summary.get("seconds_per_step"), record.summary.get("step")
    return record.summary.get("seconds") if each is None or steps is None else each * steps


def _row(comparison: Comparison, arm: str, effect: Effect | None) -> Row:
    values = [value for value in comparison.values()[arm].values() if value is not None]
    records = comparison.arms[arm]
    done = [record for record in records if record.status == "done"]
    return {
        "arm": arm,
        **_found(comparison, arm, effect),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "bits_per_byte": _mean(done, "val_bpb"),
        "seeds": len(values),
        "runs": len(records),
        "unstable": sum(record.diverged(comparison.metric) for record in records),
        "overfits": sum(_overfits(record, comparison.margin) for record in done),
        **_cost(comparison, arm, done),
    }


def _found(comparison: Comparison, arm: str, effect: Effect | None) -> Row:
    """What the verdict says of an arm."""
    names = ("low", "high", "p", "p_holm", "equivalence_p", "sign_flip_p", "seeds_needed")
    if effect is None:
        verdict = "baseline" if arm == comparison.baseline else "none"
        return {"verdict": verdict, "effect": None, **dict.fromkeys(names)}
    judged = effect.verdict != "none"
    numbers = {name: getattr(effect, name) if judged else None for name in names}
    return {"verdict": effect.verdict, "effect": effect.mean if judged else None, **numbers}


def _cost(comparison: Comparison, arm: str, done: Sequence[RunRecord]) -> Row:
    """All that an arm cost: as its runs measured it, else as the plan counted it."""
    planned: dict[str, Any] = next((one for one in (comparison.plan or {}).get("arms", []) if one["name"] == arm), {})
    costs, solved = planned.get("costs") or {}, planned.get("match")
    first = comparison.first(arm)
    optimizer = first.config.get("optimizer") if first else None
    return {
        "parameters": _first(done, "parameters", costs),
        "flops_per_token": _first(done, "flops_per_token", costs),
        "tokens": _first(done, "tokens", costs),
        "seconds_per_step": _median(done, "seconds_per_step", costs),
        "peak_memory": max(_numbers(done, "peak_memory"), default=None),
        "matched": _width(solved) if solved else "",
        "lr": optimizer.get("lr") if isinstance(optimizer, Mapping) else None,
        "recipe": recipe(comparison),
    }


def _width(solved: Mapping[str, Any]) -> str:
    """The setting that was solved for, as it was and as it is."""
    name = str(solved.get("width", "")).removeprefix("model.")
    before, after = (f"{solved[key]:.4g}" if solved.get(key) is not None else NONE for key in ("before", "after"))
    return f"{name} {after}" if before == after else f"{name} {before} → {after}"


def _overfits(record: RunRecord, margin: float) -> bool:
    """Whether the best validation loss came clearly before the end, and the last is clearly above it."""
    summary = record.summary
    if any(summary.get(key) is None for key in ("best_step", "steps", "val_loss", "best_val_loss")):
        return False
    early = summary["best_step"] < EARLY * summary["steps"]
    return bool(early and summary["val_loss"] - summary["best_val_loss"] > margin)


def _numbers(records: Sequence[RunRecord], key: str) -> list[float]:
    return [record.summary[key] for record in records if record.summary.get(key) is not None]


def _mean(records: Sequence[RunRecord], key: str) -> float | None:
    numbers = _numbers(records, key)
    return statistics.fmean(numbers) if numbers else None


def _median(records: Sequence[RunRecord], key: str, planned: Mapping[str, Any]) -> float | None:
    numbers = _numbers(records, key)
    return statistics.median(numbers) if numbers else planned.get(key)


def _first(records: Sequence[RunRecord], key: str, planned: Mapping[str, Any]) -> float | None:
    return next(iter(_numbers(records, key)), planned.get(key))


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing of its own."""
    return re.sub(r"([\\|*_<>`]|(?<=\])\()", r"\\\1", " ".join(text.split()))


def _parts(found: Sequence[Row], width: int) -> list[dict[str, list[str]]]:
    """The columns as they are written, in parts that fit a width beside the names of the arms."""
    parts: list[dict[str, list[str]]] = []
    beside = width - min(NAME, max((len(row["arm"]) for row in found), default=0)) - 2
    for columns in (FINDING, COSTING):
        parts.append({})
        room = beside
        for name, write in columns.items():
            cells = [write(row) for row in found]
            wide = 2 + max(len(cell) for cell in (name, *cells))
            if wide > room and parts[-1]:
                parts.append({})
                room = beside
            parts[-1][name], room = cells, room - wide
    return parts


def _table(found: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("arm", overflow="fold", max_width=NAME)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, *cells in zip(found, *columns.values(), strict=True):
        table.add_row(escape(row["arm"]), *map(escape, cells))
    return table
