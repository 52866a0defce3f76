"""What can be paired: whether arms share seeds, text, batches, initial values and length, said in lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptlab.comparison.records import Comparison, RunRecord


def unpaired(comparison: Comparison) -> list[str]:
    """One line for each thing that keeps runs from being compared seed by seed, or bends the comparison."""
    lines = list(_not_there(comparison))
    for arm, records in comparison.arms.items():
        if arm != comparison.baseline:
            lines += _against_baseline(comparison, arm, records)
    return lines


def agreement(comparison: Comparison) -> list[str]:
    """What the signatures say of the blocks: which batches and initial values the arms share with the baseline."""
    lines = []
    for arm, records in comparison.arms.items():
        pairs = [pair for pair in _pairs(comparison, records) if all(one.summary.get("signature") for one in pair)]
        if arm == comparison.baseline or not pairs:
            continue
        batches = sum(_batches(one) == _batches(other) for one, other in pairs)
        alike, common, own = _initial(*pairs[0])
        beside = f", beside {own} of its own" if own else ""
        lines.append(
            f"{arm} saw the batches of {comparison.baseline} in {batches} of {_seeds(len(pairs))} and began with its "
            f"values in {alike} of the {common} parameters that both have by name{beside}."
        )
    return lines


def listed(numbers: Iterable[int]) -> str:
    """Seeds as words: seed 3, or seeds 3, 4."""
    found = [str(number) for number in sorted(numbers)]
    return f"seed{'s' * (len(found) > 1)} {', '.join(found)}"


def _not_there(comparison: Comparison) -> Iterator[str]:
    """Arms and runs that are missing, unfinished or not of the plan."""
    planned = {str(arm["name"]) for arm in (comparison.plan or {}).get("arms", [])}
    seeds = {int(seed) for seed in (comparison.plan or {}).get("seeds", [])}
    for arm, records in comparison.arms.items():
        if planned and arm not in planned:
            yield f"{arm} ran, but is not in the plan."
        extra = {record.seed for record in records} - seeds
        if seeds and extra:
            yield f"{arm}: {listed(extra)} ran, but {'is' if len(extra) == 1 else 'are'} not in the plan; counted."
        if not records:
            ran = [phase for phase, arms in comparison.others.items() if arms.get(arm)]
            yield f"{arm} has no run in the test" + (f": it ran only in {', '.join(ran)}." if ran else ".")
        for status in dict.fromkeys(record.status for record in records):
            of_it = [one for one in records if one.status == status and not one.diverged(comparison.metric)]
            if of_it and status != "done":
                yield f"{arm}: {listed(one.seed for one in of_it)} not finished ({status})."
        without = [one.seed for one in records if one.status == "done" and one.value(comparison.metric) is None]
        if without:
            yield f"{arm}: {listed(without)} did not measure {comparison.metric}."


def _against_baseline(comparison: Comparison, arm: str, records: list[RunRecord]) -> Iterator[str]:
    """What keeps an arm from being the baseline's equal in all but itself."""
    base = comparison.baseline
    theirs, mine = ({one.seed for one in found} for found in (comparison.arms.get(base, []), records))
    if mine and (missing := theirs - mine):
        yield f"{arm} has no run of {listed(missing)}, which {base} has."
    if theirs and (alone := mine - theirs):
        yield f"{base} has no run of {listed(alone)}, which {arm} has."
    if other := [one.seed for one in records if comparison.other_text(one)]:
        yield f"{arm}: {listed(other)} learned from another text than {base} (its fingerprint differs); left out."
    pairs = list(_pairs(comparison, records))
    for key, words in (("steps", "steps"), ("tokens", "tokens")):
        unequal = {(a.summary.get(key), b.summary.get(key)) for a, b in pairs}
        unequal = {(a, b) for a, b in unequal if a is not None and b is not None and a != b}
        if unequal:
            a, b = sorted(unequal)[0]
            yield f"{arm} trained for {a:,} {words}, {base} for {b:,}: compared as they are."
            break
    else:
        yield from _other_blocks(arm, base, pairs)


def _other_blocks(arm: str, base: str, pairs: list[tuple[RunRecord, RunRecord]]) -> Iterator[str]:
    """Whether equal seeds are equal blocks, by the signatures of the runs."""
    signed = [pair for pair in pairs if all(one.summary.get("signature") for one in pair)]
    if len(signed) < len(pairs):
        unsigned = [one.seed for one, other in pairs if (one, other) not in signed]
        yield f"{arm}: that {listed(unsigned)} shared batches and initial values with {base} was not recorded."
    if unlike := [one.seed for one, other in signed if _batches(one) != _batches(other)]:
        yield f"{arm}: {listed(unlike)} saw other batches than {base}: the block is not shared."
    if strange := [one.seed for one, other in signed if (found := _initial(one, other))[1] and not found[0]]:
        yield f"{arm}: {listed(strange)} shared no initial value with {base}."


def _pairs(comparison: Comparison, records: list[RunRecord]) -> Iterator[tuple[RunRecord, RunRecord]]:
    """Finished runs beside those of the baseline with the same seed."""
    base = {one.seed: one for one in comparison.arms.get(comparison.baseline, []) if one.status == "done"}
    for one in records:
        if one.status == "done" and one.seed in base:
            yield one, base[one.seed]


def _batches(record: RunRecord) -> object:
    return record.summary["signature"].get("data")


def _initial(one: RunRecord, other: RunRecord) -> tuple[int, int, int]:
    """Parameters of two runs: that begin alike, that both have by name, that only the first has."""
    mine, theirs = (record.summary["signature"].get("init") or {} for record in (one, other))
    common = mine.keys() & theirs.keys()
    return sum(mine[name] == theirs[name] for name in common), len(common), len(mine) - len(common)


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"
