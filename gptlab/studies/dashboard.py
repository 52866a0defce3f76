"""A study on W&B: beside the runs of its points one that holds the verdict, as a table, a forest plot and numbers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from gptlab.comparison import table
from gptlab.comparison.records import Comparison
from gptlab.comparison.verdict import Verdict
from gptlab.dashboards import open_wandb
from gptlab.runlog import Note

VERDICT = "verdict"  # its job type and its tag, where those of a point are an arm and a phase
DECLARED = "question metric better margin baseline seeds match tune screen ladder hash"  # of the plan


def publish(comparison: Comparison, verdict: Verdict, out: Path, logger: str, note: Note) -> None:
    """Make the study's summary run, or add to it; its files are in `out`. Nothing that W&B does is raised."""
    plan = comparison.plan or {}
    log = open_wandb(
        logger,
        out,
        name=VERDICT,
        project=_project(comparison),
        config={key: plan[key] for key in DECLARED.split() if key in plan},
        note=note,
        study={"dir": str(comparison.path), "phase": VERDICT, "arm": VERDICT},
    )
    if log is None:
        return
    rows = table.rows(comparison, verdict)
    log.table(VERDICT, rows)
    if (forest := out / "figures" / "forest.png").is_file():
        log.image("forest", forest)
    log.finish({"status": "done", "detectable": verdict.detectable, "arms": {row["arm"]: row for row in rows}})
    if kept := list(comparison.path.glob("*/*/*/wandb/offline-run-*")):
        note(
            f"W&B has {len(kept)} points offline: wandb sync {shlex.quote(str(comparison.path))}/*/*/*/wandb/offline-*"
        )


def _project(comparison: Comparison) -> str:
    """That of the points, so that all are in one group."""
    names: list[Any] = [record.config.get("name") for record in comparison.records()]
    return str(next(filter(None, names), "gptlab"))
