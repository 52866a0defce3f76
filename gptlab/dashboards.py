"""A run on Weights & Biases, beside its files: online with an API key, offline without, and never in its way.

A study is a group there, an arm a job type, a point one W&B run however often it is tried.
"""

from __future__ import annotations

import hashlib
import html
import netrc
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gptlab.errors import ConfigError, did_you_mean
from gptlab.files import write_atomically
from gptlab.runlog import Note, read_rows, strict

if TYPE_CHECKING:
    import wandb

LOGGERS = ("auto", "wandb", "none")
AXES = ("tokens", "flops", "seconds", "step")  # what a panel may lie over: the first, unless it says which
INIT_SECONDS = 10  # how long W&B may keep a training waiting at its start
FINISH_SECONDS = 60  # how long it may go on uploading at its end
NAME, WORD = 128, 64  # the longest names (and groups), job types and tags that W&B's server takes; offline it takes all


class WandbLog:
    """A W&B run that cannot hurt: its first failure is said in one line, and it is not called again."""

    def __init__(self, run: wandb.Run, run_dir: Path, note: Note) -> None:
        self._run: wandb.Run | None = run
        self._run_dir, self._note = run_dir, note
        self._tokens = 0

    def update(self, row: Mapping[str, Any]) -> None:
        """Log one row of metrics; tokens are the x axis, so a resumed run lays its rows over the old ones."""
        self._tokens = row.get("tokens", self._tokens)
        self._guard(lambda run: run.log(dict(row)))

    def sample(self, step: int, text: str) -> None:
        """Log one text, to leaf through while the run goes on."""
        import wandb

        page = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
        row = {"step": step, "tokens": self._tokens}
        self._guard(lambda run: run.log({**row, "sample": wandb.Html(page, inject=False)}))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log `rows`, which have the same keys, as a table."""
        import wandb

        columns: list[str | int] = [*rows[0]]
        data = [[strict(value) for value in row.values()] for row in rows]
        self._guard(lambda run: run.log({name: wandb.Table(columns=columns, data=data, allow_mixed_types=True)}))

    def image(self, name: str, path: Path) -> None:
        """Log the picture at `path`."""
        import wandb

        self._guard(lambda run: run.log({name: wandb.Image(str(path))}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the table of all samples (those before a resume too) and the summary; end the W&B run."""
        self._guard(lambda run: self._finish(run, summary))
        self._run = None

    def _finish(self, run: wandb.Run, summary: Mapping[str, Any]) -> None:
        import wandb

        samples = self._run_dir / "samples.jsonl"
        rows = [[row["step"], row["text"]] for row in read_rows(samples)] if samples.exists() else []
        if rows:
            run.log({"tokens": self._tokens, "samples": wandb.Table(columns=["step", "text"], data=rows)})
        run.summary.update(strict(summary))
        run.finish(exit_code=0 if summary.get("status") == "done" else 1)

    def _guard(self, action: Callable[[wandb.Run], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever W&B raises, the training is worth more
            self._run = None
            self._note(f"W&B is off from here on ({_first_line(error)}); the files go on.")


def open_wandb(
    logger: str,
    run_dir: Path,
    *,
    name: str,
    project: str,
    config: Mapping[str, Any],
    note: Note,
    study: Mapping[str, Any] | None = None,
) -> WandbLog | None:
    """Start the W&B run of `run_dir`, or go on with it after a resume; None when there is none. Never prompts.

    WANDB_MODE wins; an API key -> online, falling back after 10 s; otherwise offline. A point of a `study` (dir, phase,
    arm, seed, hash, id) is in its group, under an id that a retry has too. Raises ConfigError on `logger`.
    """
    if logger not in LOGGERS:
        raise ConfigError(f"logger must be auto, wandb or none, but is {logger!r}. {did_you_mean(logger, LOGGERS)}")
    loudly = "WARNING: logger=wandb was asked for, but " if logger == "wandb" else ""
    if logger == "none" or os.environ.get("WANDB_MODE") == "disabled":
        if loudly:
            note(f"{loudly}WANDB_MODE=disabled wins: this run is not on W&B.")
        return None
    about = {"name": _fit(name, NAME), "project": project, "config": dict(config)}
    try:
        run = _start(run_dir, note, {**about, **place(study, config)} if study else about)
    except Exception as error:  # a broken installation, a refused setting, a full disk
        note(f"{loudly}W&B could not be started ({_first_line(error)}); the files have everything.")
        return None
    return WandbLog(run, run_dir, note) if run else None


def place(study: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a point is on W&B: its study is a group, its arm a job type, its phase a tag; the config names them too."""
    arm, phase = str(study["arm"]), str(study["phase"])
    told = [f"{key} {value}" for key, value in study.items() if key not in ("dir", "phase", "arm", "hash", "id")]
    words = [arm, *told, "" if phase in ("test", arm) else phase]
    return {
        "name": _fit(" ".join(filter(None, words)), NAME),
        "group": _fit(Path(study["dir"]).name, NAME),
        "job_type": _fit(arm, WORD),
        "tags": [_fit(phase, WORD)],
        "config": {**config, "study": strict(study)},
        "id": study.get("id"),
    }


def _fit(text: str, size: int) -> str:
    """`text` in at most `size` characters; where its end is cut off, a hash of it keeps it from being another's."""
    return text if len(text) <= size else f"{text[: size - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _start(run_dir: Path, note: Note, about: dict[str, Any]) -> wandb.Run | None:
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings  # first, or W&B greets before it is asked to be silent
    if settings.mode == "disabled":  # `wandb disabled` in this directory
        return None
    why = f"WANDB_MODE={settings.mode}" if settings.mode in ("offline", "dryrun") else "no API key (wandb login)"
    if why.startswith("no") and has_key(settings):
        try:
            return _init(run_dir, settings.mode, about)
        except Exception as error:  # no network, a wrong key, a server that is down
            why = f"not reachable ({_first_line(error)})"
            wandb.teardown()  # the failed start still holds the run's id
            wandb.setup(wandb.Settings(silent=True))
    run = _init(run_dir, "offline", about)
    note(f"W&B offline: {why}. To upload: wandb sync {shlex.quote(str(run_dir / 'wandb'))}/offline-run-*")
    return run


def _init(run_dir: Path, mode: Any, about: Mapping[str, Any]) -> wandb.Run:
    import wandb

    found = wandb.setup().settings
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
    settings.mode = mode
    given = found.run_id if found.sweep_id else None  # an agent of `wandb sweep` has made the run, and gave it an id
    mine = {"id": _run_id(run_dir, given or about.get("id")), "project": found.project or about["project"]}
    run = wandb.init(dir=str(run_dir), resume="allow", settings=settings, **{**about, **mine})
    # No step=: W&B drops rows whose step is not new, and after a resume from a checkpoint some are not.
    for axis in AXES:
        run.define_metric(axis)
    run.define_metric("*", step_metric=AXES[0])
    return run


def has_key(settings: wandb.Settings) -> bool:
    """Whether W&B will find credentials where it looks, found out without asking anybody."""
    if settings.api_key or settings.identity_token_file:
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({urlsplit(settings.base_url).netloc, "api.wandb.ai"} & hosts.keys())


def _run_id(run_dir: Path, given: str | None) -> str:
    """One W&B run for the whole life of a run directory, however often it is resumed."""
    path = run_dir / "wandb_id"
    if not path.exists():
        write_atomically(path, (given or secrets.token_hex(8)).encode())
    return path.read_text().strip()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
