"""The mutation score: of the faults in faults.yaml, how many the laws and the tests catch.

`python scripts/mutation_score.py [--jobs 2] [--only ID ...] [--json FILE]`. Each fault is put into a copy of the tree
and judged there by the laws and tests that it names, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).with_name("faults.yaml")
COPIED = ("gptlab", "conf", "tests", "scripts", "docs", "pyproject.toml", "README.md")
ENOUGH = 0.95
LIMIT = 300  # seconds for one check; what takes longer has changed its cost, and is caught
KINDS = ("laws", "tests", "reference")  # cheapest first; the reference is asked when the others are green
COMPILED = {"the_loss_compiles_whole_and_once", "new_sizes_compile_no_new_graph"}  # slow, and about no number: left out
LATER = {"declared_costs_are_counted_costs"}  # slow
IMPORTED = (  # once, before forking; gptlab itself is imported by each process from its copy
    "torch._dynamo", "torch.utils.flop_counter", "torch.nn.attention.flex_attention", "transformers", "pytest",
    "jaxtyping", "hydra", "transformers.models.llama.modeling_llama",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Fault:
    """A small replacement in one file, and what should see it: ids of cases (or how they begin), words of pytest."""

    id: str
    file: str
    what: str
    old: str
    new: str
    laws: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    def planted(self, text: str) -> str:
        """The file's text with the fault. ValueError unless the old text is there exactly once."""
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.id}: its old text is {text.count(self.old)} times in {self.file}: write it anew.")
        return text.replace(self.old, self.new)

    def checks(self, kind: str) -> list[tuple[str, str]]:
        """The checks of one kind, each as (kind, what to run)."""
        if kind == "laws":
            return [(kind, word) for word in self.laws]
        return [(kind, words) for words in self.tests if words.startswith("tests/reference") == (kind == "reference")]


@dataclass(frozen=True)
class Outcome:
    """What caught a fault, by kind of check; empty when nothing did."""

    fault: Fault
    caught: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self.fault), "caught": self.caught}


class NotRun(Exception):
    """A check that could not be run, and so says nothing of a fault."""


def read_faults(path: Path = FAULTS) -> list[Fault]:
    """The faults, which lie in groups: a file with the laws and tests of its faults, unless a fault names its own."""
    faults = []
    for group in yaml.safe_load(path.read_text(encoding="utf-8")):
        usual = {key: group.get(key, []) for key in ("laws", "tests")}
        for given in group["faults"]:
            words = {key: tuple(given.get(key, usual[key])) for key in usual}
            faults.append(Fault(file=group["file"], **{**given, **words}))
    return faults


def broken_law(word: str) -> str | None:
    """The first law that does not hold in the case `word`, or in those whose ids begin with it."""
    from gptlab import conformance

    slot, _, rest = word.partition("/")
    found = {case.id: case for case in conformance.cases_for(slot, rest.partition("-")[0]) if case.id.startswith(word)}
    cases = [found[word]] if word in found else list(found.values())
    if not cases:
        raise NotRun(f"no case begins with {word}")
    laws = [law for law in conformance.LAWS.values() if law.name not in COMPILED]
    for law in sorted(laws, key=lambda law: law.name in LATER):
        for case in filter(law.applies, cases):
            verdict = conformance.judge(case, law)
            if not verdict.holds:
                return f"{law.name} [{case.id}]: {verdict.note}"
    return None


class FirstFailure:
    """A plugin of pytest that remembers the first test that failed."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """As pytest calls it."""
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """As pytest calls it."""
        self.pytest_runtest_logreport(report)


def failing_test(words: str) -> str | None:
    """The first test that fails of those that these arguments of pytest choose."""
    import pytest

    first = FirstFailure()
    options = ["-n", "0", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    code = pytest.main([*shlex.split(words), *options], plugins=[first])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise NotRun(f"pytest {words} chooses no test")
    return None if code == pytest.ExitCode.OK else first.name or f"pytest ended with {code!r}"


def run_check(check: tuple[str, str]) -> str | None:
    """What a check finds in the current directory's tree, run in a process of its own; None: all is well."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_answer, args=(check, send))
    process.start()
    send.close()
    try:
        found = receive.recv() if receive.poll(LIMIT) else f"not done in {LIMIT} s"
    except EOFError:
        found = "the process died"
    process.kill()
    process.join()
    if isinstance(found, NotRun):
        raise found
    return found  # type: ignore[no-any-return]


def _answer(check: tuple[str, str], send: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    found: Any
    try:
        found = _find(*check)
    except NotRun as error:
        found = error
    except Exception as error:  # a variant that cannot even be built is caught
        found = f"{type(error).__name__}: {error}"
    send.send(found)


def _find(kind: str, words: str) -> str | None:
    package = importlib.import_module("gptlab").__file__ or ""
    if not Path(package).is_relative_to(Path.cwd()):
        raise NotRun(f"{package} is imported, not the copy in {Path.cwd()}")
    return broken_law(words) if kind == "laws" else failing_test(words)


def judge(fault: Fault) -> Outcome:
    """Plant a fault in this worker's copy, run its checks until each kind has caught it, and take it out again."""
    path = Path(fault.file)
    sound = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(sound), encoding="utf-8")
    caught: dict[str, str] = {}
    try:
        for kind in KINDS:
            if kind == "reference" and caught:
                break
            found = next(filter(None, map(run_check, fault.checks(kind))), None)
            if found:
                caught[kind] = found
    finally:
        path.write_text(sound, encoding="utf-8")
    return Outcome(fault, caught)


def begin(snapshot: Path) -> None:
    """Give this worker a copy of its own, to stand in and to import from."""
    copy = Path(tempfile.mkdtemp(dir=snapshot.parent))
    shutil.copytree(snapshot, copy, dirs_exist_ok=True)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True  # a planted text may have the size and the second of the sound one


def copy_tree(target: Path) -> Path:
    """What the checks need of the tree."""
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def measure(faults: list[Fault], jobs: int, console: Console) -> list[Outcome]:
    """The outcome of every fault; first all checks must be green without any, or nothing could be said."""
    checks = sorted({check for fault in faults for kind in KINDS for check in fault.checks(kind)})
    with tempfile.TemporaryDirectory() as folder:
        snapshot = copy_tree(Path(folder) / "tree")
        with ProcessPoolExecutor(jobs, FORK, begin, (snapshot,)) as pool:
            green = {pool.submit(run_check, check): check for check in checks}
            found = {green[f]: f.result() for f in track(as_completed(green), "sound", len(green), console=console)}
            red = {check: note for check, note in found.items() if note}
            for (kind, words), note in red.items():
                console.print(f"[red]without a fault, {kind} {words}[/]: {note}", highlight=False)
            if red:
                raise SystemExit("These checks catch nothing: they are red already.")
            return sorted(judged(pool, faults, console), key=lambda outcome: faults.index(outcome.fault))


def judged(pool: ProcessPoolExecutor, faults: list[Fault], console: Console) -> Iterator[Outcome]:
    """Outcomes as they come; survivors are printed at once."""
    futures = [pool.submit(judge, fault) for fault in faults]
    for future in track(as_completed(futures), "faulty", len(futures), console=console):
        outcome = future.result()
        if not outcome.caught:
            console.print(f"[red]survived[/] {outcome.fault.id}: {outcome.fault.what}", soft_wrap=True)
        yield outcome


def share(part: int, whole: int) -> str:
    """As it is printed."""
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "none"


def report(outcomes: list[Outcome], console: Console) -> None:
    """What caught how many, by place; the survivors; the score."""
    places: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.fault.file):
        folder = Path(outcome.fault.file).parent.name
        places.setdefault("model, sampling" if folder == "gptlab" else folder, []).append(outcome)
    table = Table("faults in", "planted", "by laws", "by tests", "caught", show_edge=False)
    for place, members in {**places, "all": outcomes}.items():
        by = Counter(kind for outcome in members for kind in outcome.caught)
        tests = sum(bool({"tests", "reference"} & outcome.caught.keys()) for outcome in members)
        table.add_row(place, *map(str, (len(members), by["laws"], tests, sum(bool(o.caught) for o in members))))
    console.print(table)
    for outcome in outcomes:
        if not outcome.caught:
            fault = outcome.fault
            console.print(f"[red]survived[/] {fault.id} ({fault.file}): {fault.what}", soft_wrap=True)
    caught = [outcome for outcome in outcomes if outcome.caught]
    laws = sum("laws" in outcome.caught for outcome in outcomes)
    last = sum(outcome.caught.keys() == {"reference"} for outcome in outcomes)
    console.print(f"Caught by laws alone: {share(laws, len(outcomes))}; by the reference suite alone: {last}.")
    console.print(f"Mutation score: {share(len(caught), len(outcomes))}.")


def main() -> None:
    """Measure, print, and end with 1 where too few faults are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these faults alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there")
    wanted = parser.parse_args()
    faults = [fault for fault in read_faults() if not wanted.only or fault.id in wanted.only]
    if not faults:
        raise SystemExit(f"No fault has such an id: {', '.join(wanted.only)}.")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in IMPORTED:
        importlib.import_module(name)
    outcomes = measure(faults, wanted.jobs, Console(stderr=True))
    if wanted.json:
        wanted.json.write_text(json.dumps([outcome.to_dict() for outcome in outcomes], indent=1))
    report(outcomes, Console())
    sys.exit(sum(bool(outcome.caught) for outcome in outcomes) < ENOUGH * len(outcomes))


if __name__ == "__main__":
    main()
