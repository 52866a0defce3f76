"""A search for hyper-parameters: trials drawn, run, pruned and ranked; stopped or killed, it goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.text import Text

from gptlab import points, rundirs
from gptlab.display import PlainDisplay, harmless
from gptlab.errors import ConfigError, GptlabError, Interrupted, Pruned
from gptlab.points import Order
from gptlab.run import Watch
from gptlab.stopping import stop_requests
from gptlab.studies import journal, ranking, space, trial
from gptlab.studies.space import Compose, Request
from gptlab.studies.tuning import PHASE
from gptlab.studies.watch import tail
from gptlab.studies.worker import ON, PRUNE

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

LOCK = "search.lock"
POLL_SECONDS = 0.2
WIDTH = 160  # columns where there is no terminal


def tune(
    words: Sequence[str], compose: Compose, at_a_time: Callable[[int], int], gpus: Callable[[], Sequence[str]]
) -> int:
    """Do what the words after `gptlab tune` ask. Returns 0 where a trial has a result, 1 where none has.

    Interrupted says how to go on. `compose` makes a config of overrides.
    """
    journal.optuna()
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    asked = space.read(words)
    directory = _place(asked)
    _refuse_foreign(directory)
    before = space.held(directory)
    if before:
        request, tree = space.extended(before, asked), None
    else:
        request, trees = space.settled(asked, compose)
        tree = _possible(request, trees)
    n, threads = request.n_trials, request.settings.threads
    jobs = request.settings.jobs or min(n, at_a_time(threads or 1))
    settings = dataclasses.replace(
        request.settings, trials=n, jobs=jobs, threads=threads or max(1, points.cores() // jobs)
    )
    request = dataclasses.replace(request, settings=settings)
    directory.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(directory)
    with points.alone(directory / LOCK):
        space.write(directory, request)
        search = Search(request, directory, compose, gpus(), console, tree or _first(request, compose))
        return search.run()


@dataclass
class Search:
    """A search under way."""

    request: Request
    directory: Path
    compose: Compose
    gpus: Sequence[str]
    console: Console
    tree: Mapping[str, Any]  # of one of the trials: what does not differ
    study: Study = field(init=False)
    left: list[FrozenTrial] = field(init=False)  # trials that were under way when the search stopped
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)  # by trial
    places: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)  # free ones, each with a GPU
    stopped: bool = False

    def __post_init__(self) -> None:
        self.study = journal.opened(self.directory, self.request, self.tree["trainer"])
        self.left = [one for one in journal.trials(self.study) if not one.state.is_finished()]
        for place in range(self.request.settings.jobs or 1):
            self.places.put(place)

    def run(self) -> int:
        """All trials, then the files and the best. 0 where there is a best."""
        settings, until = self.request.settings, time.monotonic() + 3600 * (self.request.settings.hours or 1e9)
        self._announce()
        trials = (self._here if settings.jobs == 1 else self._side_by_side)(until)
        try:
            with self._progress() as progress, contextlib.closing(trials):
                bar = progress.add_task("", total=settings.trials, completed=self.n_ended)
                for line in trials:
                    self._say([line])
                    progress.update(bar, completed=self.n_ended)
        except (Interrupted, KeyboardInterrupt):
            ranking.write(self.directory, self.request, self.study, "interrupted")
            self._say([f"Stopped. {self._again()}"])
            raise Interrupted from None
        return self._report()

    def _progress(self) -> Progress:
        """A bar under the lines, on a terminal."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _again(self) -> str:
        words = ["gptlab", "tune", f"dir={self.directory}", f"jobs={self.request.settings.jobs}"]
        return f"To go on: {shlex.join(words)}"

    @property
    def n_ended(self) -> int:
        """How many trials have ended, whichever way."""
        return sum(one.state.is_finished() for one in journal.trials(self.study))

    def _here(self, until: float) -> Generator[str, None, None]:
        """Trials one after the other in this process: a line for each that ended."""
        while found := self._next(until):
            order = self._order(found)
            status = "failed" if isinstance(order, str) else points.carry_out(order.file, self._watch(found))
            if status == "interrupted":
                raise Interrupted
            yield self._conclude(found, order)

    def _side_by_side(self, until: float) -> Generator[str, None, None]:
        """Trials in processes of their own, some at a time: a line for each that ended."""
        at_work: dict[Future[None], tuple[Trial, Order | str]] = {}
        with (
            stop_requests(lambda line: self._say([line])) as stopping,
            ThreadPoolExecutor(self.request.settings.jobs) as pool,
            contextlib.ExitStack() as at_last,
        ):
            at_last.callback(self._end, subprocess.Popen.kill)
            while True:
                if stopping() and not self.stopped:
                    self._end(subprocess.Popen.terminate)
                self._fill(pool, at_work, until)
                if not at_work:
                    break
                for done in wait(at_work, POLL_SECONDS, FIRST_COMPLETED).done:
                    yield from self._let_go(done, *at_work.pop(done))
            if stopping():
                raise Interrupted

    def _fill(
        self, pool: ThreadPoolExecutor, at_work: dict[Future[None], tuple[Trial, Order | str]], until: float
    ) -> None:
        """Begin what there is room for."""
        while len(at_work) < (self.request.settings.jobs or 1) and (found := self._next(until)):
            order = self._order(found)
            at_work[pool.submit(self._carry_out, found, order)] = found, order

    def _let_go(self, done: Future[None], found: Trial, order: Order | str) -> Iterator[str]:
        """Take in a trial whose process is gone; one that was stopped is left as it is, to run again."""
        done.result()
        if not self.stopped or (isinstance(order, Order) and order.ended()):
            yield self._conclude(found, order)

    def _next(self, until: float) -> Trial | None:
        """A trial to run: one that was cut off, or a new one; None when there is none, or no time."""
        if time.monotonic() > until or self.stopped:
            return None
        if self.left:
            return journal.again(self.study, self.request, self.left.pop(0))
        if len(journal.trials(self.study)) >= self.request.n_trials:
            return None
        return journal.new(self.study, self.request)

    def _order(self, found: Trial) -> Order | str:
        """The trial's order, written; or why there can be none."""
        settings = self.request.settings
        try:
            tree = self.compose(self.request.overrides(self.request.words(found.params)))
        except GptlabError as error:
            return str(error)
        config = {**tree, "seed": settings.seed, "run_dir": None}
        order = Order(
            self.directory, PHASE, ranking.name_of(found.number), settings.seed, config, settings.threads or 1
        )
        order.write()
        return order

    def _watch(self, found: Trial) -> Watch:
        """What a run is watched by: its values go to the pruner, which may end it."""

        def watch(row: Mapping[str, Any]) -> None:
            if self._answer(found, row["step"], row.get(self.request.settings.metric)) == PRUNE:
                raise Pruned

        return watch

    def _answer(self, found: Trial, step: int, value: float | None) -> str:
        """Take in a value of a trial, and say whether it goes on; at its end it has all that it can have."""
        if value is None or not math.isfinite(value) or step >= self.tree["trainer"]["steps"]:
            return ON
        found.report(value, step)
        return PRUNE if found.should_prune() else ON

    def _carry_out(self, found: Trial, order: Order | str) -> None:
        """Run a trial in a process of its own, and answer it until it has ended."""
        if isinstance(order, str):
            return
        environment, place = {**os.environ, "OMP_NUM_THREADS": str(order.threads)}, self.places.get()
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        command = [sys.executable, "-m", "gptlab.studies.worker", str(order.file), self.request.settings.metric]
        pipe = subprocess.PIPE
        with order.log.open("a") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True
            )
        self.processes[found.number] = process
        if self.stopped:  # meanwhile
            process.terminate()
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process:  # it has ended, or was ended
            for line in process.stdout:
                print(self._answer(found, *json.loads(line)), file=process.stdin, flush=True)
        del self.processes[found.number]
        self.places.put(place)
        if order.status() in ("begun", "waiting") and not self.stopped:
            order.fail(f"Its process ended with code {process.returncode} before it was done.")

    def _end(self, how: Callable[[subprocess.Popen[str]], None]) -> None:
        """End all processes; nothing more begins."""
        self.stopped = True
        for process in list(self.processes.values()):
            how(process)

    def _conclude(self, found: Trial, order: Order | str) -> str:
        """Tell the study how a trial ended, and a person in a line."""
        state = journal.optuna().trial.TrialState
        value, error = (None, order) if isinstance(order, str) else self._result(order)
        if error is not None:
            found.set_user_attr("error", error)
            self.study.tell(found, state=state.FAIL)
        elif value is None:
            self.study.tell(found, state=state.PRUNED)
        else:
            self.study.tell(found, value)
        return f"{self.n_ended} of {self.request.n_trials} {ranking.outcome(self.request, self.study, found.number)}"

    def _result(self, order: Order) -> tuple[float | None, str | None]:
        """The metric at the end of a run and why there is none; neither where it was pruned."""
        if order.ended() is None:
            return None, order.error() or f"It ended as {order.status()}."
        metric, rows = self.request.settings.metric, tail(order.run_dir / "metrics.jsonl")
        measured = [row[metric] for row in rows if metric in row]
        if order.ended() == "pruned":
            return None, None
        if not measured:
            return None, f"The run did not come to measure {metric}."
        return measured[-1], None if measured[-1] is not None else f"{metric} was not finite."

    def _announce(self) -> None:
        settings, n = self.request.settings, self.n_ended
        done = f", {n} of them before" if n else ""
        self._say(
            [
                f"{settings.metric}, {settings.better} is better: {self.request.n_trials} trials{done}, "
                f"{settings.sampler}, pruned by {settings.prune}, {settings.jobs} at a time, each on "
                f"{settings.threads} thread{'s' * (settings.threads != 1)}, seed {settings.seed}",
                *(f"  {space.written(dimension)}" for dimension in self.request.space),
                f"  in {self.directory}",
            ]
        )
        every, steps = self.tree["trainer"]["eval_every"], self.tree["trainer"]["steps"]
        if settings.prune != "none" and not 0 < every < steps:
            self._say([f"No trial will be pruned: a run is evaluated only at its end (trainer.eval_every={every})."])

    def _report(self) -> int:
        """Write the files, print the best trials, and say how to run and to test the best."""
        over = self.n_ended >= self.request.n_trials
        best = ranking.write(self.directory, self.request, self.study, "done" if over else "interrupted")
        ranking.show(self.console, self.request, self.study, self.directory)
        if not over:
            self._say([f"{self.n_ended} of {self.request.n_trials} trials in the hours there were. {self._again()}"])
        if best is None:
            self._say([f"No trial has a result: their logs are under {self.directory / PHASE}."])
            return 1
        self._say(
            [
                f"best    {best}",
                f"test    gptlab study study={shlex.quote(str(self.directory / ranking.CONFIRM))}   (on other seeds: "
                "the best of many on one seed looks better than it is)",
                f"page    {self.directory / 'index.html'}",
            ]
        )
        return 0

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.console.print(Text(harmless(line)), soft_wrap=True)


def _possible(request: Request, trees: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first of the configs that can be trained, its text prepared. Where none can, the error of the first."""
    first: GptlabError | None = None
    for tree in trees:
        try:
            found = trial.checked(dict(tree), request.base, PlainDisplay(sys.stdout))
            trial.require_metric(request.settings.metric, found)
            return found
        except GptlabError as error:
            first = first or error
    assert first is not None
    raise first


def _first(request: Request, compose: Compose) -> Mapping[str, Any]:
    """The config of one of the trials."""
    return compose(request.overrides([f"{dimension.key}={dimension.values[0]}" for dimension in request.space]))


def _place(request: Request) -> Path:
    """The directory of the search: named, or a new one."""
    if request.settings.dir:
        return Path(request.settings.dir).expanduser().absolute()
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")
    return (rundirs.ROOT / request.settings.name / f"{now}_tune").absolute()


def _refuse_foreign(directory: Path) -> None:
    """ConfigError for a directory of something else, and for a search that is under way."""
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if (directory.exists() and not directory.is_dir()) or (there - {LOCK} and space.FILE not in there):
        raise ConfigError(f"dir must be new or hold a search, but {directory} holds something else: name another.")
    if points.taken(directory / LOCK):
        raise ConfigError(f"{directory} is being searched by another gptlab tune: wait for its end, or stop it.")
