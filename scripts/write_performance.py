"""Write docs/performance.md from benchmarks/results/*.json: `python scripts/write_performance.py`.

Each file says what it measured, where, when, with what and by which command; the page adds nothing to that but words.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptlab.comparison.words import NONE, count, duration, memory
from gptlab.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
Result = Mapping[str, Any]

OPENING = """\
# How fast gptlab is

Tables here are made by `python scripts/write_performance.py` from benchmarks/results, one JSON for each; a test holds
the page to them. Figures that stand beside each other come from one call on one machine, in alternation: ratios are of
the same round, the median of all rounds with their range. Figures of different tables were taken at different times.

```sh
gptlab bench experiment=shakespeare_char_cpu     # a step: time, tokens/s, MFU or GEMM limit, memory, compiling, parts
gptlab bench model=gpt2 --profile                # and a trace, with the operators in which time is spent
gptlab bench --components attention              # every attention in the same model
gptlab bench position=rope --decode --batch 16   # writing
```

## How to read them

**MFU** is tokens/s x FLOPs per token / peak FLOP/s. FLOPs per token are counted on the model, forward and backward: a
product of an (m, k) and a (k, n) matrix is 2mkn, and scores behind the causal mask count like any other. The peak is
the dense bf16 figure of the maker's data sheet for exactly the chip that the driver names
(`gptlab.hardware.PEAK_FLOPS`). For any other chip, and in fp32, MFU is unknown: the peak of another chip is never shown
in its place.

**The GEMM limit** stands in for a data sheet where there is none. The bench multiplies matrices on the spot, 2048 cubed
and the largest product of the model itself, on as many threads as the training has, and takes the fastest of many. The
FLOPs of the step over that are the time in which a step would be done that did nothing but multiply at that speed. A
step that reaches 100% of it cannot be faster in this precision. Small models stay far below: their products are too
small to be fast, and much of their time goes into what is no product.

**Forward, backward, optimizer, rest** are timed one by one in an eager step, with the device awaited at each border. A
step that is one compiled graph has no such borders: the split is then of the eager step beside it, as the bench says.

**Waiting for data** on a CPU is the time in which batches are made; on a GPU, where the host works ahead, it is how
much shorter steps become on a batch that is there already. **Peak memory** on a GPU is what tensors held at most; on a
CPU it is by how much the process grew (Linux), beside all of the process.

## Threads and allocators

On Linux a training on a CPU asks glibc (mallopt) to keep what a step frees: given back to the system it comes again
page by page, a sixth of the time of some steps. Where a variable MALLOC_* or GLIBC_TUNABLES is set, gptlab leaves that
alone. Nothing else of this kind is set, and the figures below say where it was:

```sh
OMP_NUM_THREADS=2 gptlab train ...       # the physical cores that are free; more threads than cores wait by spinning
OMP_PROC_BIND=close OMP_PLACES=cores gptlab train ...       # threads stay where they are
LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 gptlab train ...      # Debian: libtcmalloc-minimal4
```

tcmalloc and jemalloc keep freed blocks at hand too, of any size, which may pay still more. Try it with `gptlab bench`
before and after. Two trainings on the same cores cost each other far more than half: `gptlab study` gives each point
its share of the threads.
"""


def page(results: Sequence[Result]) -> str:
    """The whole text."""
    parts = [OPENING]
    for kind, (title, table, command) in SECTIONS.items():
        found = [result for result in results if kind_of(result) == kind]
        parts.append(f"## {title}\n")
        parts += [f"{table(result)}\n\n{where(result)}\n" for result in found]
        if not found:
            parts.append(f"Not measured yet: `{command}`\n")
    parts.append("## On a GPU\n")
    parts.append(GPU)
    return "\n".join(parts)


GPU = """\
Since the table of an H200 was made, the loss reads whole padded rows: the odd vocabulary had cost 5%. That, CUDA graphs
where nobody asked for them, and Muon's stacks of matrices were not timed on a GPU. Never run there at all: nanoGPT and
transformers beside gptlab, tiny shakespeare's GPU recipe, several GPUs. Ready to be run:

```sh
gptlab bench model=gpt2 model.dropout=0 trainer.batch_size=64 trainer.residual_in_fp32=false
gptlab bench model=gpt2 model.vocab_size=50304 model.dropout=0 trainer.batch_size=32 --profile
python scripts/bench_against.py --nanogpt DIR --text FILE --device cuda --shape gpt2 --batch-size 32 --steps 200
python scripts/bench_against.py --nanogpt DIR --text FILE --device cuda --shape gpu
python scripts/bench_against.py --nanogpt DIR --decode --shape gpt2 --device cuda --precision bf16
```
"""


def kind_of(result: Result) -> str:
    """What a file measured; the oldest does not say."""
    return str(result.get("kind", "plugging"))


def where(result: Result) -> str:
    """Machine, versions, date and command, in a line."""
    machine = _machine(result)
    settings = "".join(f", {key}={value}" for key, value in machine.get("environment", {}).items())
    chip = machine.get("gpu") or machine["cpu"]
    parts = [
        f"{chip}, {machine['cores']} cores, {machine['threads']} threads{settings}",
        f"torch {result['versions']['torch']}, Python {result['versions']['python']}",
        *([f"nanoGPT {result['nanogpt'][:8]}"] if result.get("nanogpt") else []),
        *([result["date"][:10]] if "date" in result else []),
        *([f"`{result['command']}`"] if "command" in result else []),
    ]
    return f"<sub>{'; '.join(parts)}</sub>"


def against(result: Result) -> str:
    """Training beside nanoGPT."""
    recipe = result["recipe"]
    model = f"{recipe['n_layer']} layers, {recipe['n_head']} heads, {recipe['n_embd']} wide"
    fed = f"context {recipe['block_size']}, batch {recipe['batch_size']}, {recipe['steps']:,} steps"
    head = f"{model}, {fed}; {len(result['rounds']['gptlab'])} rounds, {result['caches']} compiler caches"
    head += f"; gptlab with `{' '.join(result['overrides'])}`." if result.get("overrides") else "; gptlab as it comes."
    names: dict[str, tuple[str, Callable[[float], str]]] = {
        "tokens_per_second": ("tokens/s", lambda x: f"{x:,.0f}"),
        "loss": ("validation loss, nats", lambda x: f"{x:.4f}"),
        "seconds_to_loss": ("command to last loss", duration),
        "seconds": ("command to end", duration),
        "peak": ("peak memory", memory),
    }
    lines = []
    for key, (name, written) in names.items():
        one, other = (written(_median(result, side, key)) for side in ("nanogpt", "gptlab"))
        lines.append((name, one, other, _ratio(result["ratio"][key])))
    return f"{head}\n\n{_table(('', 'nanoGPT', 'gptlab', 'gptlab / nanoGPT'), lines)}"


def step(result: Result) -> str:
    """A step by itself."""
    parts, use = result["split"]["seconds"], result["utilisation"]
    whole = sum(parts.values())
    lines = [
        ("step", f"{_span(result['step'])}, {result['tokens_per_step']:,} tokens, {result['precision']}"),
        ("tokens/s", f"{result['tokens_per_second']:,.0f}"),
        (
            "model",
            f"{result['model']['parameters']:,} parameters, {count(result['model']['flops_per_token'])}FLOP/token",
        ),
    ]
    if use["mfu"] is not None:
        lines.append(("MFU", f"{use['mfu']:.1%} of {use['peak'] / 1e12:,.0f} TFLOP/s ({use['chip']})"))
    if gemm := use["gemm"]:
        for name, peaks in (("2048 cubed", gemm["square"]), ("own shape", gemm["own"])):
            lines.append((f"GEMM, {name}", ", ".join(f"{k} {count(v)}FLOP/s" for k, v in peaks.items()) or NONE))
        lines.append(("GEMM limit", f"{duration(gemm['fastest_step'])}, of which the step reaches {gemm['share']:.0%}"))
    compiled = result["compiling"]
    counts = f"{compiled['graphs']} graphs, {compiled['breaks']} breaks, {compiled['recompiles']} recompiles"
    spent = f", {duration(compiled['compile_seconds'])} of compiling" if compiled["graphs"] else ""
    lines += [
        ("peak memory", memory(result["memory"]["peak"])),
        ("compiled", f"{counts}{spent}" if compiled["graphs"] else "nothing"),
        ("waits for data", f"{result['waiting']['share']:.1%}"),
        ("split", ", ".join(f"{k} {v / whole:.0%}" for k, v in parts.items()) + f" of {result['split']['of']}"),
    ]
    return _table(("", ""), lines)


def components(result: Result) -> str:
    """The variants of a slot."""
    timed = sorted((row for row in result["variants"] if "reason" not in row), key=lambda row: row["seconds"])
    lines = [
        (
            row["name"], duration(row["seconds"]), _ratio({"median": row["relative"], "low": row["range"][0],
            "high": row["range"][1]}), memory(row["memory"]), count(row.get("parameters")),
            count(row.get("flops_per_token")),
        )
        for row in timed
    ]  # fmt: skip
    left = [f"Not timed: {row['name']} ({row['reason']})" for row in result["variants"] if "reason" in row]
    heads = (result["slot"], "time/step", f"to {result['default']}", "memory", "parameters", "FLOPs/token")
    return "\n\n".join([_table(heads, lines), *left])


def decoding(result: Result) -> str:
    """Decoding by itself."""
    lines = [
        (str(row["batch"]), f"{row['tokens_per_second']:,.0f}", _span(row["per_token"]), duration(row["prefill"]))
        for row in result["batches"]
    ]
    length = f"{result['tokens']} tokens after {result['prompt']}"
    head = f"{result['parameters']:,} parameters, {result['precision']}, {length}."
    limit = f"Reading the weights once takes {duration(result['reading']['seconds'])}."
    return f"{head} {limit}\n\n{_table(('texts', 'tokens/s', 'per token', 'prompt'), lines)}"


def against_decode(result: Result) -> str:
    """Decoding beside the others."""
    sizes = result["sizes"]
    head = (
        f"{sizes['n_layer']} layers, {sizes['n_head']} heads, {sizes['n_embd']} wide, context {sizes['block_size']}, "
        f"vocabulary {sizes['vocab_size']:,}, {result['precision']}; {result['tokens']} tokens, one text."
    )
    lines = []
    for who in result["rounds"]:
        pace, each = (_median(result, who, key) for key in ("tokens_per_second", "milliseconds_per_token"))
        beside = (result["ratio"].get(f"{ours} / {who}") for ours in ("gptlab", "gptlab compiled"))
        lines.append((who, f"{pace:,.1f}", f"{each:.3g}", *(_ratio(found) if found else NONE for found in beside)))
    heads = ("", "tokens/s", "ms per token", "gptlab / it", "gptlab compiled / it")
    return f"{head}\n\n{_table(heads, lines)}"


def peaks(result: Result) -> str:
    """Peak memory beside nanoGPT."""
    lines = [
        (who, memory(_median(result, who, "peak")), _ratio(result["ratio"][f"{who} / nanogpt fp32"]),
         f"{result['logits'] / _median(result, who, 'peak'):.0%}")
        for who in result["rounds"]
    ]  # fmt: skip
    recipe = result["recipe"]
    head = f"GPT-2 124M, batch {recipe['batch_size']} x {recipe['block_size']}, the whole process after two steps."
    logits = f"One float32 (B, T, V) is {memory(result['logits'])}."
    return f"{head} {logits}\n\n{_table(('', 'peak', 'to nanoGPT', 'one (B, T, V) of it'), lines)}"


def startup(result: Result) -> str:
    """Seconds to the first step."""
    lines = []
    for who, rounds in result["rounds"].items():
        each = sorted(row["seconds"] for row in rounds)
        lines.append((who, duration(statistics.median(each)), f"{duration(each[0])} to {duration(each[-1])}"))
    return _table(("", "command to first step", "range"), lines)


def gpu_variants(result: Result) -> str:
    """Ways to compute one step on a GPU."""
    lines = [
        (row["name"], duration(row["seconds"]), f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}",
         memory(row["memory"]))
        for row in result["variants"]
    ]  # fmt: skip
    head = f"{result['what'][0].upper()}{result['what'][1:]}. {result['how']} It was {result['commit']}."
    return f"{head}\n\n{_table(('', 'step', 'tokens/s', 'MFU', 'peak memory'), lines)}"


def plugging(result: Result) -> str:
    """Parts beside one file."""
    low, high = result["ratio_spread"]
    lines = [
        ("by hand, in one class", duration(result["by_hand"]), ""),
        ("from parts", duration(result["gptlab"]), f"{result['ratio']:.3f} ({low:.3f} to {high:.3f})"),
    ]
    what = f"{result['what'].removesuffix(', seconds')}; {result['pairs']} pairs."
    return f"{what}\n\n{_table(('', 'step', 'ratio'), lines)}"


SECTIONS: dict[str, tuple[str, Callable[[Result], str], str]] = {  # kind -> title, table, command that measures it
    "against": ("Training beside nanoGPT", against, "python scripts/bench_against.py --nanogpt DIR --text FILE"),
    "step": ("A step, and the GEMM limit", step, "gptlab bench"),
    "gpu_variants": ("A step on a GPU", gpu_variants, "gptlab bench model=gpt2 model.dropout=0"),
    "plugging": ("What plugging costs", plugging, "python scripts/bench_plugging.py"),
    "startup": ("From the command to the first step", startup, "python scripts/bench_against.py ... --startup"),
    "memory": ("Memory", peaks, "python scripts/bench_against.py ... --memory"),
    "against_decode": ("Writing, beside others", against_decode, "python scripts/bench_against.py ... --decode"),
    "decode": ("Writing", decoding, "gptlab bench --decode"),
    "components": ("Parts beside each other", components, "gptlab bench --components SLOT"),
}


def read() -> list[Result]:
    """Every result, by the name of its file."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def main() -> None:
    """Read, write."""
    write_atomically(PAGE, page(read()).encode())


def _machine(result: Result) -> Mapping[str, Any]:
    return result.get("machine") or result["hardware"]


def _median(result: Result, who: str, key: str) -> float:
    return statistics.median(row[key] for row in result["rounds"][who])


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _span(found: Mapping[str, float]) -> str:
    return f"{duration(found['median'])} ({duration(found['p10'])} to {duration(found['p90'])})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(_rows(heads, lines))


def _rows(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


if __name__ == "__main__":
    main()
