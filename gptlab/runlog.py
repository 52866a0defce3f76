"""Where a run's numbers go: metrics.jsonl and samples.jsonl always, the display and W&B beside them.

One strict JSON object a line, numbers that are not finite as null. Nothing that fails in here ends a training.
"""

from __future__ import annotations

import errno
import html
import json
import math
import netrc
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gptlab.display import Display
from gptlab.errors import ConfigError, DataError, did_you_mean
from gptlab.files import write_atomically

if TYPE_CHECKING:
    import wandb

Note = Callable[[str], None]
LOGGERS = ("auto", "wandb", "none")
INIT_SECONDS = 10  # how long W&B may keep a training waiting at its start
FINISH_SECONDS = 60  # how long it may go on uploading at its end


class RunLog:
    """The one object a training reports to. Appends to what `run_dir` holds; ConfigError where it cannot be written."""

    def __init__(self, run_dir: Path, *, display: Display, wandb: WandbLog | None = None) -> None:
        self.run_dir = run_dir
        self._display, self._seen, self.wandb = display, True, wandb
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._metrics = _Lines(run_dir / "metrics.jsonl", self.note)
            self._samples = _Lines(run_dir / "samples.jsonl", self.note)
        except OSError as error:
            raise ConfigError(
                f"run_dir must be writable, but {run_dir} is not ({error.strerror}). Choose another."
            ) from None

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Write one row: `step`, `tokens`, `seconds` and whatever else was measured (nats, bits, tokens/s)."""
        self._metrics.append(row)
        self._show(self._display.update, row)
        if self.wandb:
            self.wandb.update(row)

    def sample(self, step: int, text: str) -> None:
        """Keep a text the model wrote after `step` steps."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no valid JSON
        self._samples.append({"step": step, "text": text})
        self._show(self._display.sample, step, text)
        if self.wandb:
            self.wandb.sample(step, text)

    def note(self, text: str) -> None:
        """Say one line to whoever watches."""
        self._show(self._display.note, text)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, finish the W&B run and the display."""
        self._metrics.flush()
        self._samples.flush()
        try:
            write_summary(self.run_dir, summary)
        except DataError as error:
            self.note(f"{error} The checkpoints are not affected.")
        if self.wandb:
            self.wandb.finish(summary)
        self._show(self._display.finish, summary)

    def _show(self, action: Callable[..., None], *arguments: object) -> None:
        """A terminal that went away (a closed pipe, a dropped connection) is no reason to stop training."""
        if self._seen:
            try:
                action(*arguments)
            except OSError:
                self._seen = False


class _Lines:
    """A file of JSON lines. What a full disk refuses waits in memory and is written when there is room again."""

    def __init__(self, path: Path, note: Note) -> None:
        self._path, self._note = path, note
        self._waiting, self._failing = b"", False
        _drop_torn_end(path)

    def append(self, row: Mapping[str, Any]) -> None:
        self._waiting += (to_json(row) + "\n").encode("utf-8", "replace")
        self.flush()

    def flush(self) -> None:
        try:
            if self._waiting:
                _append_whole(self._path, self._waiting)
        except OSError as error:
            if not self._failing:
                self._note(f"{self._path.name} cannot be written ({error.strerror}); its rows are kept in memory.")
            self._failing = True
            return
        if self._failing:
            self._note(f"{self._path.name} is written again; no row is missing.")
        self._waiting, self._failing = b"", False


def _append_whole(path: Path, data: bytes) -> None:
    # Unbuffered, so that a row is in the kernel's hands at once: kill -9 cannot take it back.
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def _drop_torn_end(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)


def to_json(value: object) -> str:
    """`value` as JSON that strict parsers accept: NaN and infinity become null, keys become strings."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary` to run_dir/summary.json, atomically. DataError when it cannot be."""
    path = run_dir / "summary.json"
    text = json.dumps(_strict(summary), ensure_ascii=False, allow_nan=False, indent=2)
    write_atomically(path, (text + "\n").encode("utf-8", "replace"))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. A last line that a killed process left half written is passed over.

    Raises DataError when the file is not there, or when a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Name the directory of a run.") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise DataError(f"Each line of {path} must be one JSON object, but line {number} is not. Delete that line.")
    return rows


def rewind(run_dir: Path, step: int) -> None:
    """Drop what a run wrote after `step`: a run resumed from its checkpoint there writes those rows again."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = run_dir / name
        if path.exists():
            kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
            write_atomically(path, "".join(to_json(row) + "\n" for row in kept).encode("utf-8"))


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
        run.summary.update(_strict(summary))
        run.finish(exit_code=0 if summary.get("status") == "done" else 1)

    def _guard(self, action: Callable[[wandb.Run], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever W&B raises, the training is worth more
            self._run = None
            self._note(f"W&B is off from here on ({_first_line(error)}); metrics.jsonl goes on.")


def open_wandb(
    logger: str, run_dir: Path, *, name: str, project: str, config: Mapping[str, Any], note: Note
) -> WandbLog | None:
    """Start the W&B run of `run_dir`, or go on with it after a resume; None when there is none. Never prompts.

    WANDB_MODE wins; an API key -> online, falling back after 10 s; otherwise offline. Raises ConfigError on `logger`.
    """
    if logger not in LOGGERS:
        raise ConfigError(f"logger must be auto, wandb or none, but is {logger!r}. {did_you_mean(logger, LOGGERS)}")
    loudly = "WARNING: logger=wandb was asked for, but " if logger == "wandb" else ""
    if logger == "none" or os.environ.get("WANDB_MODE") == "disabled":
        if loudly:
            note(f"{loudly}WANDB_MODE=disabled wins: this run is not on W&B.")
        return None
    try:
        run = _start(run_dir, note, {"name": name, "project": project, "config": dict(config)})
    except Exception as error:  # a broken installation, a refused setting, a full disk
        note(f"{loudly}W&B could not be started ({_first_line(error)}); metrics.jsonl has everything.")
        return None
    return WandbLog(run, run_dir, note) if run else None


def _start(run_dir: Path, note: Note, about: dict[str, Any]) -> wandb.Run | None:
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings  # first, or W&B greets before it is asked to be silent
    if settings.mode == "disabled":  # `wandb disabled` in this directory
        return None
    why = f"WANDB_MODE={settings.mode}" if settings.mode in ("offline", "dryrun") else "no API key (wandb login)"
    if why.startswith("no") and _has_key(settings):
        try:
            return _init(run_dir, settings.mode, about)
        except Exception as error:  # no network, a wrong key, a server that is down
            why = f"not reachable ({_first_line(error)})"
            wandb.teardown()  # the failed start still holds the run's id
            wandb.setup(wandb.Settings(silent=True))
    run = _init(run_dir, "offline", about)
    note(f"W&B offline: {why}. To upload: wandb sync {shlex.quote(str(run_dir / 'wandb'))}/offline-run-*")
    return run


def _init(run_dir: Path, mode: Any, about: dict[str, Any]) -> wandb.Run:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
    settings.mode = mode
    about["project"] = wandb.setup().settings.project or about["project"]
    run = wandb.init(dir=str(run_dir), id=_run_id(run_dir), resume="allow", settings=settings, **about)
    # No step=: W&B drops rows whose step is not new, and after a resume from a checkpoint some are not.
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run


def _has_key(settings: wandb.Settings) -> bool:
    """Whether W&B will find credentials where it looks, found out without asking anybody."""
    if settings.api_key or settings.identity_token_file:
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({urlsplit(settings.base_url).netloc, "api.wandb.ai"} & hosts.keys())


def _run_id(run_dir: Path) -> str:
    """One W&B run for the whole life of a run directory, however often it is resumed."""
    path = run_dir / "wandb_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(8).encode())
    return path.read_text().strip()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
