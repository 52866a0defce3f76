"""The figures of a bench as a person reads them: a line for each fact, or a table of variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptlab.comparison.words import NONE, count, duration, memory

Figures = Mapping[str, Any]


def show(console: Console, figures: Figures) -> None:
    """Print what was measured."""
    if figures["kind"] == "components":
        console.print(_variants(figures))
        for row in figures["variants"]:
            if "reason" in row:
                console.print(f"{row['name']} was not timed: {row['reason']}", markup=False)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_column(justify="right", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in (_decoding if figures["kind"] == "decode" else _step)(figures):
        facts.add_row(name, escape(value))
    console.print(facts)
    for event in figures.get("profile", {}).get("top", ()):
        line = f"  {event['share']:6.1%}  {duration(event['seconds'])} in {event['calls']:.0f} calls  {event['name']}"
        console.print(line, markup=False)


def _step(found: Figures) -> Iterator[tuple[str, str]]:
    step, memories, compiling = found["step"], found["memory"], found["compiling"]
    middle = f"{duration(step['median'])} median, {duration(step['p10'])} p10, {duration(step['p90'])} p90"
    yield "step", f"{middle}, of {found['steps']} steps on {found['tokens_per_step']:,} tokens"
    yield "pace", f"{found['tokens_per_second']:,.0f} tokens/s"
    model = found["model"]
    yield "model", f"{model['parameters']:,} parameters, {count(model['flops_per_token'])}FLOP per token"
    yield from _utilisation(found["utilisation"], found["precision"], found["device"])
    held = "held by tensors" if found["device"] != "cpu" else "more than before the model was built"
    whole = "" if found["device"] != "cpu" else f"; the whole process {memory(memories['process'])}"
    yield "peak memory", f"{memory(memories['peak'])} {held}{whole}"
    if compiling["graphs"]:
        counts = f"{compiling['graphs']} graphs, {compiling['breaks']} breaks, {compiling['recompiles']} recompiles"
        late = f", {compiling['while_timed']} while timed" if compiling["while_timed"] else ""
        spent = f"{duration(compiling['compile_seconds'])} of compiling"
        yield "compiled", f"{counts}{late}; {spent}, the first step took {duration(compiling['first_step'])}"
    else:
        yield "compiled", f"nothing; the first step took {duration(compiling['first_step'])}"
    yield "waits for data", f"{found['waiting']['share']:.2%} ({found['waiting']['how']})"
    parts = found["split"]["seconds"]
    whole_split = sum(parts.values())
    shares = ", ".join(f"{name} {value / whole_split:.0%} ({duration(value)})" for name, value in parts.items())
    yield "split", f"{shares}: {found['split']['of']}, timed part by part"
    yield (
        "loss",
        f"{found['loss']:.4f} nats per token"
        + (f", {found['not_finite']} steps were not finite" if found["not_finite"] else ""),
    )
    if "profile" in found:
        yield "trace", f"{found['profile']['trace']} ({found['profile']['steps']} steps; opens in ui.perfetto.dev)"


def _utilisation(found: Figures, precision: str, device: str) -> Iterator[tuple[str, str]]:
    if found["mfu"] is not None:
        peak = f"{found['peak'] / 1e12:,.0f} TFLOP/s of {found['chip']}"
        yield "MFU", f"{found['mfu']:.1%} = {found['formula']}, the peak {peak} (dense bf16)"
    elif device != "cpu":
        why = "its peak is of bf16, but this is fp32" if precision == "fp32" else "its peak is not on record"
        yield "MFU", f"unknown: {found['chip'] or device}, {why}"
    if not (gemm := found["gemm"]):
        return
    square = ", ".join(f"{name} {count(value)}FLOP/s" for name, value in gemm["square"].items())
    own = ", ".join(f"{name} {count(value)}FLOP/s" for name, value in gemm["own"].items())
    yield "GEMM, 2048 cubed", square
    if own:
        yield "GEMM, own shape", f"{' x '.join(map(str, gemm['own_shape']))}: {own}"
    yield (
        "GEMM limit",
        (
            f"{duration(gemm['fastest_step'])} = FLOPs of the step / {count(gemm['peak'])}FLOP/s in {precision}; "
            f"the step reaches {gemm['share']:.0%} of it"
        ),
    )


def _decoding(found: Figures) -> Iterator[tuple[str, str]]:
    yield "model", f"{found['parameters']:,} parameters in {found['precision']} on {found['device']}"
    for row in found["batches"]:
        each = row["per_token"]
        range_ = f"{duration(each['p10'])} to {duration(each['p90'])}"
        yield (
            f"{row['batch']} at a time",
            f"{row['tokens_per_second']:,.0f} tokens/s, {duration(each['median'])} per token ({range_}), prompt "
            f"{duration(row['prefill'])}; with it {row['whole']:,.0f} tokens/s",
        )
    compiling = found["compiling"]
    if compiling["asked"]:
        counts = f"{compiling['graphs']} graphs, {compiling['breaks']} breaks, {compiling['recompiles']} recompiles"
        yield "compiled", f"{counts}; the first texts took {duration(compiling['warming'])}"
    read = found["reading"]
    first = found["batches"][0]["per_token"]["median"]
    yield (
        "reading limit",
        f"{duration(read['seconds'])} to read {memory(read['bytes'])} of weights once; a token alone takes "
        f"{first / read['seconds']:.1f} times that",
    )


def _variants(found: Figures) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (found["slot"], "time/step", "relative", "range", "memory", "parameters", "FLOPs/token"):
        table.add_column(name, justify="left" if name == found["slot"] else "right", no_wrap=True)
    timed = sorted((row for row in found["variants"] if "reason" not in row), key=lambda row: row["seconds"])
    for row in timed:
        low, high = row["range"]
        name = f"{row['name']} (default)" if row["name"] == found["default"] else row["name"]
        table.add_row(
            name, duration(row["seconds"]), f"{row['relative']:.2f}", f"{low:.2f}-{high:.2f}", memory(row["memory"]),
            count(row["parameters"]) if "parameters" in row else NONE,
            count(row["flops_per_token"]) if "flops_per_token" in row else NONE,
        )  # fmt: skip
    return table
