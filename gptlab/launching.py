"""Where the points of a study run: a Hydra multirun over their order files, on whichever of its launchers is chosen.

One launcher is ours: `processes`, a fresh process per point on this machine, some at a time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gptlab import explain, points
from gptlab.config import require
from gptlab.errors import ConfigError, GptlabError, Interrupted, did_you_mean
from gptlab.points import Order
from gptlab.stopping import stop_requests

Note = Callable[[str], None]
DEFAULT = "processes"
BROUGHT_BY = {  # launcher -> what to install for it
    "submitit_local": "gptlab[slurm]",
    "submitit_slurm": "gptlab[slurm]",
    "ray": "gptlab[ray]",
    "joblib": "hydra-joblib-launcher",
}
AT_A_TIME = {"processes": "jobs", "submitit_slurm": "array_parallelism", "joblib": "n_jobs"}  # their option for it
PLUGINS = "hydra_plugins.gptlab"  # Hydra takes plugins only from there
POLL_SECONDS = 0.05
_note: ContextVar[Note] = ContextVar("note", default=print)  # for a launcher that Hydra builds


def launch(orders: Sequence[Path], launcher: Sequence[str], jobs: int | None, note: Note) -> None:
    """Run the points of all order files, `jobs` at a time, where `launcher` (hydra/launcher=..., options) says.

    Returns when all have ended: how, each point's files tell. ConfigError, in one line, for a launcher that cannot
    start; Interrupted after Ctrl-C, when the points in progress have saved.
    """
    name = _name(launcher)
    words = [*launcher, *_at_a_time(name, jobs)]
    verify(words)
    left = [order for order in map(Order.read, orders) if not order.ended()]
    token = _note.set(note)
    try:
        while left:
            left = _multirun(left, words, name)
    finally:
        _note.reset(token)


def verify(launcher: Sequence[str]) -> None:
    """ConfigError, in one line, where `launcher` names one that is not here, or options that it cannot have."""
    _name(launcher)
    try:
        with hydra.initialize(version_base="1.3", config_path=None):
            composed = hydra.compose("points", [*launcher, "point=none"], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain.in_a_line(error, launcher) from error
    chosen = composed.hydra.launcher
    if chosen._target_ == ProcessesConfig._target_:
        Processes(chosen.jobs, chosen.ranks)


def at_a_time(threads: int) -> int:
    """How many points `processes` runs at a time unless it is told: one per GPU, else per `threads` cores."""
    return len(gpus()) or max(1, points.cores() // threads)


def _multirun(orders: Sequence[Order], words: Sequence[str], name: str) -> list[Order]:
    """Run the points. Where the launcher gives up because one was killed, those that are still to be run come back."""
    written = [_written(order) for order in orders]
    try:
        _run_hydra(orders, words)
        return []
    except (HydraException, OmegaConfBaseException) as error:
        raise explain.in_a_line(error, words) from error
    except GptlabError:
        raise
    except Exception as error:  # a launcher of others: a job was killed, or it could not start any
        reason = " ".join(str(error).split()) or type(error).__name__
    while any(order.status() == "running" for order in orders):
        time.sleep(POLL_SECONDS)
    begun = {order.file for order, before in zip(orders, written, strict=True) if _written(order) != before}
    if not begun:
        raise ConfigError(f"The launcher {name} could not start: {reason[:300]}")
    for order in orders:
        if order.file in begun and order.status() == "begun":
            order.fail("Its process ended before it was done.")
    return [order for order in orders if order.file not in begun and not order.ended()]


def _run_hydra(orders: Sequence[Order], words: Sequence[str]) -> None:
    files = ",".join(_quoted(str(order.file.absolute())) for order in orders)
    folder = _quoted(str(orders[0].study.absolute() / "launcher"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, who have a line for each
    argv = sys.argv
    sys.argv = ["gptlab study", "--multirun", *words, f"point=choice({files})", f"hydra.sweep.dir={folder}"]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name="points")(task)()
    finally:
        sys.argv = argv


def task(config: DictConfig) -> str:
    """What a launcher runs, wherever it is: one point. Where that is here, Ctrl-C is meant for all that follow too."""
    launcher = HydraConfig.get().runtime.choices.get("hydra/launcher", "")
    if launcher.startswith("submitit"):
        _become_rank()
    status = points.carry_out(Path(config.point))
    if status == "interrupted" and launcher == "basic":
        raise Interrupted
    return status


def _become_rank() -> None:
    """Let the tasks that submitit started for a point, on however many machines, be what torchrun's ranks are."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


class Points(Sweeper):
    """Hands the points to the launcher as they are; composing each beforehand, as Hydra's own does, takes longer."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        plugins = Plugins.instance()
        self.launcher = plugins.instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        (files,) = OverridesParser.create().parse_overrides(arguments)
        return self.launcher.launch([[f"point={file}"] for file in files.sweep_string_iterator()], initial_job_idx=0)


class Processes(Launcher):
    """A fresh process per point, or `ranks` of them, `jobs` points at a time, with a share of the cores or GPUs."""

    def __init__(self, jobs: int | None, ranks: int) -> None:
        require(jobs is None or jobs >= 1, f"hydra.launcher.jobs must be at least 1, but is {jobs}.")
        require(ranks >= 1, f"hydra.launcher.ranks must be at least 1, but is {ranks}.")
        n = len(gpus())
        require(not n or ranks <= n, f"hydra.launcher.ranks must be at most {n}, the GPUs here, but is {ranks}.")
        self.jobs, self.ranks = jobs, ranks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """A process reads its order by itself."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        parse = OverridesParser.create().parse_overrides
        orders = [Order.read(Path(str(parse(list(words))[0].value()))) for words in job_overrides]
        jobs = self.jobs or max(1, at_a_time(max(order.threads for order in orders)) // self.ranks)
        _side_by_side(_Crew(deque(orders), jobs, self.ranks), _note.get())
        return []


@dataclass
class ProcessesConfig:
    """What hydra.launcher.* sets of `processes`."""

    _target_: str = f"{PLUGINS}.Processes"
    jobs: int | None = None  # points at a time; null: one per GPU, or as many as the cores have room for
    ranks: int = 1  # processes that train one point together


def _register() -> None:
    """Make sweeper, launcher and config known to Hydra."""
    known = Plugins.instance().class_name_to_class
    known |= {f"{PLUGINS}.{cls.__name__}": cls for cls in (Points, Processes)}
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="processes", node=ProcessesConfig)
    store.store(group="hydra/sweeper", name="points", node={"_target_": f"{PLUGINS}.Points"})
    parts = {"job_logging": "none", "hydra_logging": "none", "sweeper": "points", "launcher": DEFAULT}
    defaults = ["_self_", *({f"override hydra/{part}": name} for part, name in parts.items())]
    settings = {"output_subdir": None, "sweep": {"subdir": "."}}
    store.store(name="points", node={"defaults": defaults, "point": "???", "hydra": settings})


def _name(launcher: Sequence[str]) -> str:
    """The launcher that the words choose. ConfigError with what to install, or with the names that exist."""
    _register()
    name = next((word.partition("=")[2] for word in launcher if word.startswith("hydra/launcher=")), DEFAULT)
    installed = [entry.removesuffix(".yaml") for entry in ConfigStore.instance().list("hydra/launcher")]
    if name in BROUGHT_BY and name not in installed:
        raise ConfigError(
            f"The launcher {name} needs pip install '{BROUGHT_BY[name]}'. Installed are {', '.join(installed)}."
        )
    if name not in installed:
        raise ConfigError(f"There is no launcher {name!r}. {did_you_mean(name, {*installed, *BROUGHT_BY})}")
    return name


def _at_a_time(name: str, jobs: int | None) -> list[str]:
    """The override by which a launcher runs so many points at a time."""
    if jobs is None:
        return []
    require(name in AT_A_TIME, f"The launcher {name} has no option for {jobs} points at a time: leave jobs out.")
    return [f"hydra.launcher.{AT_A_TIME[name]}={jobs}"]


@dataclass
class _Crew:
    """Processes at work, each on a point, and the points that wait for one."""

    waiting: deque[Order]
    jobs: int
    ranks: int
    at_work: dict[int, tuple[Order, subprocess.Popen[bytes]]] = field(default_factory=dict)  # by place, 0 to jobs - 1
    stopped: bool = False

    def fill(self) -> None:
        """Start what there is room for."""
        for place in sorted(set(range(self.jobs)) - self.at_work.keys())[: len(self.waiting)]:
            order = self.waiting.popleft()
            self.at_work[place] = order, _start(order, place, self.ranks)

    def stop(self) -> None:
        """Ask all, once, to save and end; nothing more is started."""
        if not self.stopped:
            for _, process in self.at_work.values():
                process.terminate()
        self.stopped = True
        self.waiting.clear()

    def look(self) -> None:
        """Let those go that have ended."""
        for place, (order, process) in list(self.at_work.items()):
            if process.poll() is not None:
                del self.at_work[place]
                _mourn(order, 0 if self.stopped else process.returncode)

    def kill(self) -> None:
        """End those that are left, however far they are."""
        for _, process in self.at_work.values():
            process.kill()
            process.wait()


def _side_by_side(crew: _Crew, note: Note) -> None:
    """See all points through. One that is killed costs itself; a wish to stop is passed on to all."""
    with stop_requests(note) as stopping, contextlib.ExitStack() as at_last:
        at_last.callback(crew.kill)
        while crew.at_work or crew.waiting:
            crew.stop() if stopping() else crew.fill()
            crew.look()
            time.sleep(POLL_SECONDS)
        if stopping():
            raise Interrupted


def _start(order: Order, place: int, ranks: int) -> subprocess.Popen[bytes]:
    """The process of a point. It ends when its standard input does, so that it does not outlive this one."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(order.threads)}
    if mine := gpus():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine[(place * ranks + i) % len(mine)] for i in range(ranks))
    with order.log.open("a") as log:
        return subprocess.Popen(
            command(order.file, ranks),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is ours to pass on, once
        )


def command(file: Path, ranks: int) -> list[str]:
    """The command that runs a point: in one process, or in a group of torchrun's."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(torchrun if ranks > 1 else []), "-m", "gptlab.points", str(file.absolute())]


def gpus() -> list[str]:
    """The GPUs of this machine that we may use, as CUDA_VISIBLE_DEVICES names them."""
    named, n = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return named.split(",")[:n] if named else [str(i) for i in range(n)]


def _mourn(order: Order, code: int) -> None:
    """Write down what a process that was killed, or never came as far as its point, could not."""
    if code in (0, 130) or order.status() not in ("begun", "waiting"):
        return
    if code < 0:
        name = Signals(-code).name
        order.fail(f"Its process was killed by {name}{', for want of memory perhaps' if name == 'SIGKILL' else ''}.")
    else:
        order.fail(f"Its process ended with exit code {code} before it was done.")


def _written(order: Order) -> int:
    """When the log of a point was last written to; 0 where there is none."""
    return order.log.stat().st_mtime_ns if order.log.exists() else 0


def _quoted(text: str) -> str:
    """A string as Hydra's overrides quote it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
