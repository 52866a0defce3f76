"""The laws that a variant must keep, run on tiny models built around it. A plugin's variant is treated like ours."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from gptlab import catalogue, plugins, presets, registry
from gptlab.conformance import arithmetic, keeping, sight  # noqa: F401  (these imports write the laws)
from gptlab.conformance.cases import SLOTS, Case, cases_for
from gptlab.conformance.law import LAWS, Law
from gptlab.conformance.probes import LawBroken
from gptlab.errors import ConfigError, did_you_mean

__all__ = ["LAWS", "SLOTS", "Case", "Law", "LawBroken", "Verdict", "cases_for", "check", "choose", "judge", "show"]

SLOW_PATH = "flex_attention called without torch.compile"


@dataclass(frozen=True)
class Verdict:
    """Whether one law holds for one case, and what was measured or what to look at."""

    variant: str
    case: str
    law: str
    holds: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def laws_for(case: Case) -> list[Law]:
    """The laws that apply to a case."""
    return [law for law in LAWS.values() if law.applies(case)]


def judge(case: Case, law: Law) -> Verdict:
    """Run one law on one case. A variant that raises has broken the law."""
    variant = f"{case.slot}/{case.name}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SLOW_PATH)  # which a tiny model may take
            return Verdict(variant, case.id, law.name, True, law.run(case))
    except LawBroken as broken:
        return Verdict(variant, case.id, law.name, False, str(broken))
    except Exception as error:
        return Verdict(variant, case.id, law.name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def choose(words: Sequence[str], everything: bool = False) -> list[tuple[str, str]]:
    """(slot, name) of what a command line names: variants, `plugins=[...]` (alone: the plugins' variants), or all.

    ConfigError when nothing is named, or a word is no variant or several.
    """
    given = [word for word in words if not word.startswith("plugins=")]
    before = _registered()
    plugins.load(plugins_in(words))
    added = [variant for variant in _registered() if variant not in before]
    if everything:
        return _registered()
    if not given and not added:
        raise ConfigError("Nothing to check: name a variant, give plugins=[./mine.py], or say --all.")
    return [find(word) for word in given] or added


def plugins_in(words: Iterable[str]) -> list[str]:
    """The plugins that `plugins=[a,b]` among the words of a command line names."""
    lists = (word.partition("=")[2].strip("[]").split(",") for word in words if word.startswith("plugins="))
    return [part.strip() for parts in lists for part in parts if part.strip()]


def find(word: str) -> tuple[str, str]:
    """(slot, name) of `attention/flash` or `flash`. ConfigError for what is no variant, or several."""
    known = _registered()
    matches = [(slot, name) for slot, name in known if word in (name, f"{slot}/{name}")]
    if not matches:
        raise _not_judged(word, known)
    if len(matches) > 1:
        raise ConfigError(f"{word!r} names a variant in several slots: say {' or '.join(map('/'.join, matches))}.")
    return matches[0]


def check(variants: Iterable[tuple[str, str]], watch: Callable[[str], None] = lambda case: None) -> Iterator[Verdict]:
    """The verdict of every law on every case of the variants, as it comes in; `watch` is told which case is judged."""
    for slot, name in variants:
        try:
            cases = cases_for(slot, name)
        except Exception as error:
            variant, note = f"{slot}/{name}", " ".join(str(error).split())
            yield Verdict(variant, variant, "the_variant_can_be_built", False, note)
            continue
        for case in cases:
            watch(case.id)
            for law in laws_for(case):
                yield judge(case, law)


def check_side_by_side(words: Sequence[str], everything: bool, jobs: int) -> list[Verdict]:
    """The verdicts of all variants that a command line names, `jobs` at a time in processes with one thread each."""
    variants = choose(words, everything)
    order = {f"{slot}/{name}": number for number, (slot, name) in enumerate(variants)}
    begin = (plugins_in(words),)
    pool = ProcessPoolExecutor(min(jobs, len(variants)), get_context("spawn"), initializer=_begin, initargs=begin)
    found: list[Verdict] = []
    with pool, Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("holding to the laws", total=len(variants))
        try:
            for done in as_completed([pool.submit(_check_one, variant) for variant in variants]):
                found += done.result()
                progress.advance(bar)
        finally:
            pool.shutdown(cancel_futures=True)
    return sorted(found, key=lambda verdict: order[verdict.variant])


def _begin(plugin_names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    torch.set_num_threads(1)
    plugins.load(plugin_names)


def _check_one(variant: tuple[str, str]) -> list[Verdict]:
    return list(check([variant]))


def show(verdicts: Sequence[Verdict], every_case: bool = False) -> None:
    """Print a table: for each law the broken cases, or in how many it holds; `every_case` gives each case a row."""
    groups: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.variant, {}).setdefault(verdict.law, []).append(verdict)
    rows = Table("law", "verdict", "measured, or what to look at", show_edge=False)
    for variant, laws in groups.items():
        rows.add_section()
        rows.add_row(f"[bold]{variant}[/]")
        for law, members in laws.items():
            sentence = law.replace("_", " ")
            shown = [v for v in members if every_case or not v.holds]
            for v in shown:
                rows.add_row(sentence, "holds" if v.holds else "[bold red]BROKEN[/]", escape(f"{v.case}: {v.note}"))
            if not shown:
                rows.add_row(sentence, "holds", members[0].note if len(members) == 1 else f"{len(members)} cases")
    Console().print(rows)


def _not_judged(word: str, judged: list[tuple[str, str]]) -> ConfigError:
    """Why there is nothing to check: a preset, what no law is about, or an unknown word."""
    kept = [(slot, preset.name, preset) for slot, place in registry.SLOTS.items() for preset in presets.of(place.group)]
    known = [(entry.slot, entry.name, None) for entry in catalogue.entries()]
    known += [(slot, name, None) for slot in registry.SLOTS for name in registry.names(slot)]
    for slot, name, preset in (*kept, *known):
        if word in (name, f"{slot}/{name}") and slot not in SLOTS:
            return ConfigError(
                f"Laws are about {', '.join(SLOTS)}, but {word!r} fills {slot}: name a variant of those."
            )
        if word in (name, f"{slot}/{name}") and preset:
            base = f"{slot}/{preset.variant}"
            return ConfigError(f"{word!r} is a preset of {base}: check {base}.")
    near = {w for slot, name in judged for w in (name, f"{slot}/{name}")}
    return ConfigError(f"There is no variant named {word!r} to check. {did_you_mean(word, near, 'gptlab list')}")


def _registered() -> list[tuple[str, str]]:
    return [(slot, name) for slot in SLOTS for name in registry.names(slot)]
