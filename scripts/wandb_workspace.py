"""A view of a project on W&B with the panels one wants: `python scripts/wandb_workspace.py --entity E --project P`.

Runs are grouped by job type, which in a study is the arm: each line is a mean over seeds with a band. --study shows one
study alone, its verdict above its curves; --dry-run prints what would be saved, as JSON, and talks to nobody.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gptlab import dashboards, exits
from gptlab.errors import ConfigError

OVER = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
MANY = 100  # runs that a panel takes in; W&B's own choice is 10


def main(argv: list[str]) -> None:
    """Save the view, or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="user or team that the project belongs to")
    parser.add_argument("--project", required=True, help="the `name` that runs were started with")
    parser.add_argument("--study", help="the name of a study's directory: its test runs and verdict, nothing else")
    parser.add_argument("--dry-run", action="store_true", help="print the view as JSON; needs no network")
    wanted = parser.parse_args(argv)
    view = workspace(wanted.entity, wanted.project, wanted.study)
    if wanted.dry_run:
        print(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
        return
    import wandb

    if not dashboards.has_key(wandb.setup(wandb.Settings(silent=True)).settings):  # or it would ask for one
        raise ConfigError("A view is saved on W&B's server, but there is no API key: wandb login, or --dry-run.")
    print(view.save().url)


def workspace(entity: str, project: str, study: str | None = None) -> Any:
    """The view as wandb-workspaces writes it. ConfigError when that is not installed."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError("A view needs wandb-workspaces: pip install 'gptlab[workspaces]'.") from None
    filters = [ws.Metric("Group") == study, ws.Tags().isin(["test", "verdict"])] if study else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name=study or "gptlab",
        sections=[
            *([_section("Verdict", _verdict())] if study else []),
            _section("Loss", _losses()),
            _section("Training", _training()),
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=MANY),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("JobType")], filters=filters),
    )


def _section(name: str, panels: list[Any]) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Section(name=name, panels=panels, is_open=True)


def _verdict() -> list[Any]:
    import wandb_workspaces.reports.v2.interface as wr

    return [wr.WeavePanelSummaryTable(table_name="verdict"), wr.MediaBrowser(media_keys=["forest"], num_columns=1)]


def _losses() -> list[Any]:
    return [
        *(_lines("val/loss", axis, f"validation loss over {name}, nats per token") for axis, name in OVER.items()),
        _lines("val/bpb", "tokens", "validation, bits per byte"),
        _lines("train/loss", "tokens", "training loss, nats per token"),
    ]


def _training() -> list[Any]:
    shown = {"lr": "learning rate", "tokens_per_second": "tokens per second", "grad_norm": "gradient norm"}
    return [_lines(key, "tokens", title) for key, title in shown.items()]


def _lines(key: str, axis: str, title: str) -> Any:
    import wandb_workspaces.reports.v2.interface as wr

    return wr.LinePlot(
        title=title,
        x=axis,
        y=[key],
        title_x=axis,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=MANY,
    )


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
