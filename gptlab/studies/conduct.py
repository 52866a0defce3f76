"""A study from its question to its verdict: planned, tuned, screened, run, judged; gone on with whenever it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gptlab import points, rundirs
from gptlab.comparison import page, steps, table
from gptlab.comparison.records import DIVERGED
from gptlab.comparison.runs import read_study
from gptlab.display import PlainDisplay, harmless
from gptlab.errors import ConfigError, Interrupted
from gptlab.files import write_atomically
from gptlab.points import Order
from gptlab.runlog import to_json, write_summary
from gptlab.studies import announce, dashboard, plan, screening, settings, tuning
from gptlab.studies.declare import Compose, declare
from gptlab.studies.plan import Arm, Plan
from gptlab.studies.watch import watching

Launch = Callable[[Sequence[Path], Sequence[str], int | None, Callable[[str], None]], None]
Verify = Callable[[Sequence[str]], None]
LOCK = "study.lock"
WIDTH = 160  # columns where there is no terminal


def conduct(
    words: Sequence[str], compose: Compose, launch: Launch, at_a_time: Callable[[int], int], verify: Verify
) -> int:
    """Do what the words after `gptlab study` ask. Returns 0 when all points are done, 1 when some failed.

    Interrupted says how to go on. `compose` makes a config of overrides, `launch` runs order files where the words of
    a launcher say, which `verify` refuses before anything is timed or written.
    """
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    request = settings.read(words)
    verify(request.launcher)
    directory = _place(request)
    held = plan.read(directory)
    _refuse_foreign(directory, held)
    for line in (*request.changed, *(plan.kept(held, request) if held else ())):
        console.print(Text(harmless(line)))
    declared = declare(request, held, compose, PlainDisplay(sys.stdout))
    jobs = _jobs(request.launcher, declared.threads, at_a_time)
    announce.announce(console, declared, jobs, lambda phase, arm: _n_over(directory / phase / arm))
    if request.study.dry or not _agreed(request, console):
        return 0
    with _alone(directory):
        plan.write(directory, declared)
        study = Study(declared, directory, request.launcher, launch, console)
        try:
            return study.run()
        except (Interrupted, KeyboardInterrupt):
            console.print(Text(f"Stopped. To go on: {study.again}"), soft_wrap=True)
            raise Interrupted from None


@dataclass
class Study:
    """A study under way."""

    plan: Plan
    directory: Path
    launcher: Sequence[str]
    launch: Launch
    console: Console
    orders: dict[Path, Order] = field(default_factory=dict)  # of all phases so far, by file
    facts: dict[str, Any] = field(default_factory=dict)  # what the phases found, for summary.json

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        return shlex.join(["gptlab", "study", f"dir={self.directory}", *self.launcher])

    def run(self) -> int:
        """All phases, then the page. 0 when every point is done."""
        study = self.plan.study
        half = screening.FIRST if study.screen else {}
        rates = {arm.name: float(arm.config["optimizer"]["lr"]) for arm in self.plan.arms}
        if study.tune == "lr":
            tuned = tuning.tune(self.plan, self.directory, self.carry_out, half)
            rates = {name: found.rate for name, found in tuned.items()}
            self.facts["tuning"] = {name: _plain(found) for name, found in tuned.items()}
            self._say(tuning.describe(tuned))
        arms = self.plan.arms
        if study.screen:
            arms, rungs = screening.screen(self.plan, self.directory, self.carry_out, rates)
            self.facts["screening"] = [_plain(rung) for rung in rungs]
            self._say(screening.describe(rungs))
        self.carry_out(self._last(arms, rates, screening.SECOND if study.screen else {}))
        return self._judge()

    def carry_out(self, orders: Sequence[Order]) -> None:
        """Run those of the orders that are not done; what they came to, their files tell."""
        self.orders |= {order.file: order for order in orders}
        left = [order for order in orders if not _over(order)]
        if not left:
            return
        for order in left:
            order.write()
        phases = ", ".join(dict.fromkeys(order.phase for order in left))
        done = f", {len(orders) - len(left)} done before" if len(left) < len(orders) else ""
        self._say([f"{phases}: {len(left)} points to run{done}"])
        with watching(left, self.plan.study.metric, self.console):
            self.launch([order.file for order in left], self.launcher, None, lambda line: self._say([line]))

    def _last(self, arms: Sequence[Arm], rates: Mapping[str, float], half: Mapping[str, Any]) -> list[Order]:
        """The test, seed by seed, so that what is done first can be compared first; then the sizes of the ladder."""
        names = [arm.name for arm in arms]
        found = []
        for phase, made in {"test": self.plan.arms, **self.plan.sizes}.items():
            for seed in self.plan.seeds:
                for arm in (arm for arm in made if arm.name in names):
                    changes = {**half, tuning.RATE: rates[arm.name]}
                    found.append(plan.order(self.plan, self.directory, phase, arm, seed, changes))
        return found

    def _judge(self) -> int:
        """Write the page, print the table, and say what failed."""
        failed = [order for order in self.orders.values() if not _over(order)]
        status = "failed" if failed else "done"
        counted = {"status": status, "points": len(self.orders), "failed": [str(order.file) for order in failed]}
        write_summary(self.directory, {**counted, **self.facts})
        comparison = read_study(self.directory)
        verdict = page.verdict_of(comparison)
        written = page.write(comparison, self.directory)
        table.show(self.console, comparison, verdict)
        self._say(page.signs(page.ladder_of(comparison, verdict)))
        self._say(steps.lines(comparison, verdict))
        _add(self.directory / "verdict.json", self.facts)
        logger = self.plan.arms[0].config["logger"]
        dashboard.publish(comparison, verdict, self.directory, logger, lambda line: self._say([line]))
        for order in failed:
            title = f"{order.phase} {order.arm} {order.name}"
            self._say([f"{title} {order.status()}: {order.error() or 'no reason was left'} ({order.log})"])
        if failed:
            self._say([f"{len(failed)} of {len(self.orders)} points are not done. To try them again: {self.again}"])
        self._say([f"page    {written}"])
        return 1 if failed else 0

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.console.print(Text(harmless(line)), soft_wrap=True)


def _place(request: settings.Request) -> Path:
    """The directory of the study: named, or a new one."""
    if request.study.dir:
        return Path(request.study.dir).expanduser().absolute()
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")
    return (rundirs.ROOT / request.study.name / f"{now}_study").absolute()


def _refuse_foreign(directory: Path, held: Plan | None) -> None:
    """ConfigError for a directory of something else, and for a study that is being conducted."""
    if held is None and directory.exists() and not (directory.is_dir() and _names(directory) <= {LOCK}):
        raise ConfigError(f"dir must be new or hold a study, but {directory} holds something else: name another.")
    if points.taken(directory / LOCK):
        raise ConfigError(f"{directory} is being run by another gptlab study: wait for its end, or stop it.")


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """The directory, made, for this process alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"dir must be writable, but {directory} is not ({error.strerror}): name another.") from None
    _refuse_foreign(directory, plan.read(directory))
    with points.alone(directory / LOCK):
        yield


def _jobs(launcher: Sequence[str], threads: int, at_a_time: Callable[[int], int]) -> int:
    """How many points run side by side, as far as that is known here."""
    words = dict(word.partition("=")[::2] for word in launcher)
    if words.get("hydra/launcher") == "basic":
        return 1
    told = next((words[key] for key in words if key.endswith((".jobs", ".array_parallelism", ".n_jobs"))), "")
    return int(told) if told.isdigit() and int(told) else at_a_time(threads)


def _agreed(request: settings.Request, console: Console) -> bool:
    """Whether to begin: on a terminal that is asked, unless yes=true said so."""
    if request.study.yes or not (sys.stdin.isatty() and console.is_terminal):
        return True
    return console.input("Begin? [Y/n] ").strip().lower() in ("", "y", "yes")


def _over(order: Order) -> bool:
    """Whether a point need not be run again. That its numbers left the floats is an outcome, and would be the same."""
    diverged = order.status() == "failed" and any(words in (order.error() or "") for words in DIVERGED)
    return diverged or order.ended() is not None


def _n_over(folder: Path) -> int:
    """How many points of an arm in a phase need not be run again."""
    return sum(_over(Order.read(file)) for file in folder.glob("*.json"))


def _plain(found: Any) -> dict[str, Any]:
    return dataclasses.asdict(found)


def _add(path: Path, facts: Mapping[str, Any]) -> None:
    """Put what the phases found beside the verdict."""
    held = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, f"{to_json({**held, **facts})}\n".encode())
