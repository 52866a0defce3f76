"""Where runs are: the directory that a new one gets, the one that a name means, and the recent ones. Needs no torch."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from gptlab.errors import CheckpointError, ConfigError

ROOT = Path("runs")
CONFIG, TOKENIZER = "config.yaml", "tokenizer.json"


def fresh(run_dir: str | None, name: str) -> Path:
    """The directory of a new run: `run_dir` where it is given (it must be empty), else runs/<name>/<now>."""
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")
    path = Path(run_dir).expanduser() if run_dir else ROOT / name / now
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"run_dir must be new or empty, but {path} is not: name another, or go on with resume={path}."
        )
    return path


def find(wanted: str) -> Path:
    """The run directory that `wanted` names: a path, or `latest` under runs/. CheckpointError when there is none."""
    if wanted == "latest":
        runs = recent()
        if not runs:
            raise CheckpointError(f"There is no run under {ROOT.resolve()}: name a run directory, or train one first.")
        return Path(runs[0])
    path = Path(wanted).expanduser()
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"A run directory holds a {CONFIG}, but {path} does not: look under {ROOT}/, or try latest."
        )
    return path


def recent() -> list[str]:
    """The runs under runs/, those begun or gone on with last first."""
    configs = [path for path in ROOT.rglob(CONFIG) if (path.parent / TOKENIZER).is_file()]  # W&B writes some too
    begun = {path.parent: path.stat().st_mtime_ns for path in configs}
    return [str(run) for run in sorted(begun, key=lambda run: -begun[run])]
