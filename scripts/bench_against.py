"""gptlab beside nanoGPT, in alternation, each run a fresh process on the same text of the same machine.

    python scripts/bench_against.py --nanogpt DIR --text FILE                training: tokens/s, loss, whole time
    python scripts/bench_against.py --nanogpt DIR --text FILE --startup      seconds from command to first step
    python scripts/bench_against.py --nanogpt DIR --text FILE --memory       peak of a GPT-2 124M step, 4 x 1024
    python scripts/bench_against.py --nanogpt DIR --decode [--shape gpt2]    writing text; transformers stands beside

DIR is a checkout of https://github.com/karpathy/nanoGPT, which is copied and never changed. Words KEY=VALUE at the end
are overrides of gptlab's side. OMP_NUM_THREADS and LD_PRELOAD, where they are set, hold for both sides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).with_name("bench_child.py")
PADDED = 50304  # nanoGPT's vocabulary where a text has none of its own
HELD_OUT = 0.1  # the last share of the text
SMALL = 60_000  # characters, where only memory counts
WRITING = ("nanogpt", "transformers", "gptlab", "gptlab compiled")


@dataclass(frozen=True)
class Shape:
    """A model and its recipe, the same on both sides."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    steps: int
    lr: float = 1e-3
    dropout: float = 0.0
    eval_iters: int = 20  # batches of nanoGPT's estimates on the way
    vocab_size: int | None = None  # None: the characters of the text

    @property
    def sizes(self) -> dict[str, int]:
        """In nanoGPT's names, which are ours too."""
        return {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}

    @property
    def warmup(self) -> int:
        """Steps of rising rate: nanoGPT's 100, or a tenth of a short run."""
        return min(100, self.steps // 10)


SHAPES = {
    "cpu": Shape(4, 4, 128, 64, 12, 2000),  # the recipe for a CPU in nanoGPT's README
    "wide": Shape(6, 6, 384, 256, 8, 60, eval_iters=2),
    "gpt2": Shape(12, 12, 768, 1024, 4, 4, lr=6e-4, eval_iters=1, vocab_size=PADDED),
    "gpu": Shape(6, 6, 384, 256, 64, 5000, dropout=0.2, eval_iters=200),  # the recipe for a GPU in nanoGPT's README
}
WRITERS = {"tiny": {**SHAPES["cpu"].sizes, "block_size": 256, "vocab_size": 65},
           "gpt2": {**SHAPES["gpt2"].sizes, "vocab_size": 50257}}  # fmt: skip


@dataclass
class Ended:
    """A process that ended: its lines, when each came, how long it took, and the most memory it held."""

    lines: list[tuple[float, str]] = field(default_factory=list)  # seconds after the command, line
    seconds: float = 0.0
    peak: int = 0  # bytes, of the process alone

    def first(self, pattern: str) -> float:
        """When the first line that matches came."""
        return next(at for at, line in self.lines if re.search(pattern, line))

    def found(self, pattern: str) -> list[str]:
        """What the pattern's group caught, in every line that has it."""
        return [match[1] for _, line in self.lines if (match := re.search(pattern, line))]


def run(command: Sequence[str], cwd: Path, environment: dict[str, str]) -> Ended:
    """Run to the end, watching. Exits with what it printed last if it failed."""
    ended, began = Ended(), time.perf_counter()
    env = {**os.environ, **environment, "PYTHONUNBUFFERED": "1", "WANDB_MODE": "disabled"}
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        assert process.stdout
        for line in process.stdout:
            ended.lines.append((time.perf_counter() - began, line.rstrip()))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
    ended.seconds = time.perf_counter() - began
    ended.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if process.returncode:
        said = "\n".join(line for _, line in ended.lines[-12:])
        sys.exit(f"{' '.join(command)}\nfailed with {process.returncode}:\n{said}")
    return ended


class Bench:
    """Both sides in a folder of their own: nanoGPT's copy with its text prepared, gptlab with a cache of its own."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.theirs, self.ours, self.count = folder / "nanogpt", folder / "gptlab", 0
        shutil.copytree(options.nanogpt, self.theirs, ignore=shutil.ignore_patterns(".git"))
        self.ours.mkdir()

    def write_text(self, text: str, own_vocabulary: bool) -> None:
        """The text for both: as files of characters for nanoGPT, split where its own script splits."""
        (self.ours / "input.txt").write_text(text, encoding="utf-8")
        place = self.theirs / "data" / "shakespeare_char"
        place.mkdir(parents=True, exist_ok=True)
        chars = sorted(set(text))
        ids = {char: i for i, char in enumerate(chars)}
        tokens = np.array([ids[char] for char in text], dtype=np.uint16)
        border = int(len(tokens) * (1 - HELD_OUT))
        tokens[:border].tofile(place / "train.bin")
        tokens[border:].tofile(place / "val.bin")
        if own_vocabulary:
            meta = {"vocab_size": len(chars), "stoi": ids, "itos": dict(enumerate(chars))}
            (place / "meta.pkl").write_bytes(pickle.dumps(meta))

    def environment(self, cache: str | None = None) -> dict[str, str]:
        """What a process is started with; `cache` names the compiler's, a new one where there is none."""
        self.count += 1
        compiled = self.folder / (cache or f"compiled_{self.count}")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {
            "GPTLAB_CACHE": str(self.folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(compiled),
            "TRITON_CACHE_DIR": str(compiled / "triton"),
            "PYTHONPATH": path,
        }

    def train_theirs(self, shape: Shape, cache: str | None = None, **more: Any) -> Ended:
        """nanoGPT's own train.py. It takes a step more than it is told, after its last evaluation."""
        cuda = self.options.device == "cuda"
        settings = {
            **shape.sizes, "batch_size": shape.batch_size, "max_iters": shape.steps, "lr_decay_iters": shape.steps,
            "warmup_iters": shape.warmup, "learning_rate": shape.lr, "min_lr": shape.lr / 10, "dropout": shape.dropout,
            "device": self.options.device, "compile": cuda, "eval_iters": shape.eval_iters,
            "eval_interval": min(250, shape.steps),
            "log_interval": 1, "always_save_checkpoint": True, "out_dir": "out", **more,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *words]
        return run(command, self.theirs, self.environment(cache))

    def train_ours(self, shape: Shape, cache: str | None = None, *more: str) -> Ended:
        """gptlab train on nanoGPT's recipe, which is a preset."""
        self.count += 1
        settings = {
            "experiment": "shakespeare_char_cpu", "data": "text", "data.path": "input.txt", "tokenizer": "char",
            **{f"model.{name}": value for name, value in shape.sizes.items()},
            **({"model.vocab_size": shape.vocab_size} if shape.vocab_size else {}),
            "trainer.batch_size": shape.batch_size, "trainer.steps": shape.steps, "optimizer.lr": shape.lr,
            "schedule.warmup": shape.warmup, "model.dropout": shape.dropout, "logger": "none",
            "trainer.device": self.options.device,
            "trainer.log_every": max(1, min(10, shape.steps // 10)), "run_dir": f"run_{self.count}",
        }  # fmt: skip
        given = [*more, *self.options.overrides]
        named = {word.partition("=")[0] for word in given}
        words = [f"{key}={value}" for key, value in settings.items() if key not in named]
        return run([sys.executable, "-m", "gptlab.train", *words, *given], self.ours, self.environment(cache))

    def rows(self) -> list[dict[str, Any]]:
        """What the newest of gptlab's runs wrote."""
        newest = max(self.ours.glob("run_*"), key=lambda path: int(path.name.partition("_")[2]))
        return [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]


def alternate(rounds: int, sides: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every side once a round, in turned order each second one; a line for each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(sides[name]())
            numbers = ", ".join(f"{key} {value:,.5g}" for key, value in found[name][-1].items())
            print(f"  round {turn + 1}  {name:>28}  {numbers}", flush=True)
    return found


def ratios(above: Sequence[dict[str, Any]], below: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Median and range of the ratios of a figure, round by round."""
    each = sorted(a[key] / b[key] for a, b in zip(above, below, strict=True))
    return {"median": statistics.median(each), "low": each[0], "high": each[-1]}


def training(bench: Bench) -> dict[str, Any]:
    """Tokens/s, the loss on the whole of validation, and seconds from the command to the last evaluation."""
    shape, options = bench.options.recipe, bench.options
    bench.write_text(options.text.read_text(encoding="utf-8"), shape.vocab_size is None)
    n_tokens = shape.batch_size * shape.block_size
    cache = "kept" if options.warm else None
    bench.train_ours(shape, cache, "trainer.steps=2", "schedule.warmup=0")  # its text is prepared, as theirs is
    seeds = itertools.count()

    def theirs() -> dict[str, Any]:
        ended = bench.train_theirs(shape, cache)
        paces = [float(ms) for ms in ended.found(r"^iter \d+: .*time ([\d.]+)ms")][max(1, shape.steps // 20) :]
        judged = json.dumps({"loss": str(bench.theirs), "device": options.device})
        loss = run([sys.executable, str(CHILD), judged], bench.theirs, bench.environment())
        return {
            "tokens_per_second": 1000 * n_tokens / statistics.median(paces),
            "loss": json.loads(loss.lines[-1][1])["loss"],
            "seconds_to_loss": ended.first(rf"^step {shape.steps}:"),
            "seconds": ended.seconds,
            "peak": ended.peak,
        }

    def ours() -> dict[str, Any]:
        ended = bench.train_ours(shape, cache, f"seed={next(seeds)}")  # theirs cannot be told another
        rows = bench.rows()
        paces = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
        return {
            "tokens_per_second": statistics.median(paces[max(0, len(paces) // 20) :]),
            "loss": next(row["val/loss"] for row in reversed(rows) if "val/loss" in row),
            "seconds_to_loss": ended.first(rf"^step {shape.steps:,}/.* val "),
            "seconds": ended.seconds,
            "peak": ended.peak,
        }

    found = alternate(options.rounds, {"nanogpt": theirs, "gptlab": ours})
    both = {key: ratios(found["gptlab"], found["nanogpt"], key) for key in found["gptlab"][0]}
    return {"kind": "against", "shape": options.shape, "recipe": vars(shape), "caches": "kept" if cache else "new",
            "rounds": found, "ratio": both}  # fmt: skip


def startup(bench: Bench) -> dict[str, Any]:
    """Seconds from the command to the line of the first step: eager, compiled with a new cache, with a kept one."""
    shape = SHAPES["cpu"]
    bench.write_text(bench.options.text.read_text(encoding="utf-8"), own_vocabulary=True)
    few = ("trainer.steps=2", "schedule.warmup=0", "trainer.sample_tokens=1")

    def ours(compiled: str, cache: str | None) -> Callable[[], dict[str, Any]]:
        return lambda: _first(bench.train_ours(shape, cache, *few, f"trainer.compile={compiled}"), r"^step 1/")

    def theirs(compiled: bool, cache: str | None) -> Callable[[], dict[str, Any]]:
        settings = {"max_iters": 1, "eval_iters": 1, "compile": compiled}
        return lambda: _first(bench.train_theirs(shape, cache, **settings), r"^iter 0:")

    sides = {
        "nanogpt eager": theirs(False, None), "gptlab eager": ours("false", None),
        "nanogpt compiled, new cache": theirs(True, None), "gptlab compiled, new cache": ours("true", None),
        "nanogpt compiled, kept cache": theirs(True, "kept_theirs"),
        "gptlab compiled, kept cache": ours("true", "kept_ours"), "gptlab as it comes": ours("auto", None),
    }  # fmt: skip
    for name, side in sides.items():
        if "kept" in name or name == "gptlab eager":
            side()  # fills the caches
    return {"kind": "startup", "shape": "cpu", "rounds": alternate(bench.options.rounds, sides)}


def _first(ended: Ended, pattern: str) -> dict[str, Any]:
    return {"seconds": ended.first(pattern)}


def memory(bench: Bench) -> dict[str, Any]:
    """Peak resident memory of a process that takes two steps of GPT-2 124M, and what one float32 (B, T, V) is of it."""
    shape = replace(SHAPES["gpt2"], batch_size=bench.options.batch_size or SHAPES["gpt2"].batch_size)
    bench.write_text(bench.options.text.read_text(encoding="utf-8")[:SMALL], own_vocabulary=False)
    few = ("trainer.steps=2", "schedule.warmup=0", "trainer.sample_tokens=1")
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "nanogpt fp32": lambda: {"peak": bench.train_theirs(shape, max_iters=1, eval_iters=1, eval_interval=9).peak},
        "gptlab fp32": lambda: {"peak": bench.train_ours(shape, None, *few, "trainer.precision=fp32").peak},
        "gptlab bf16": lambda: {"peak": bench.train_ours(shape, None, *few, "trainer.precision=bf16").peak},
    }
    found = alternate(bench.options.rounds, sides)
    logits = 4 * shape.batch_size * shape.block_size * PADDED
    both = {f"{name} / nanogpt fp32": ratios(found[name], found["nanogpt fp32"], "peak") for name in found}
    return {"kind": "memory", "shape": "gpt2", "recipe": vars(shape), "logits": logits, "rounds": found, "ratio": both}


def decode(bench: Bench) -> dict[str, Any]:
    """Tokens/s of 200 tokens after a short prompt, one text at a time, random weights, a fresh process each."""
    options = bench.options
    name = "gpt2" if options.shape == "gpt2" else "tiny"
    asked = {"sizes": WRITERS[name], "tokens": options.tokens, "device": options.device,
             "precision": options.precision, "nanogpt": str(bench.theirs)}  # fmt: skip

    def side(who: str) -> Callable[[], dict[str, Any]]:
        command = [sys.executable, str(CHILD), json.dumps({**asked, "who": who})]
        return lambda: dict(json.loads(run(command, bench.ours, bench.environment("kept")).lines[-1][1]))

    found = alternate(options.rounds, {who: side(who) for who in WRITING})
    pairs = [(ours, other) for ours in ("gptlab", "gptlab compiled") for other in ("nanogpt", "transformers")]
    both = {f"{a} / {b}": ratios(found[a], found[b], "tokens_per_second") for a, b in pairs}
    return {"kind": "against_decode", "shape": name, **{k: asked[k] for k in ("sizes", "tokens", "precision")},
            "rounds": found, "ratio": both}  # fmt: skip


def report(found: dict[str, Any]) -> Iterator[str]:
    """The figures in lines."""
    for name, rounds in found["rounds"].items():
        middle = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
        yield f"{name:>28}  " + ", ".join(f"{key} {value:,.5g}" for key, value in middle.items())
    for name, ratio in found.get("ratio", {}).items():
        label = name if "/" in name else f"gptlab / nanogpt, {name}"
        yield f"{label}: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
    if "logits" in found:
        for name, rounds in found["rounds"].items():
            share = found["logits"] / statistics.median(row["peak"] for row in rounds)
            yield f"one float32 (B, T, V) is {found['logits'] / 1e9:.2f} GB, {share:.0%} of the peak of {name}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what both learn from")
    parser.add_argument("--shape", default="cpu", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each training (default: the shape's)")
    parser.add_argument("--batch-size", type=int, help="sequences in a step (default: the shape's)")
    parser.add_argument("--warm", action="store_true", help="keep the compiler's cache from run to run (default: new)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of --decode")
    parser.add_argument("--tokens", type=int, default=200, help="of --decode")
    modes = parser.add_mutually_exclusive_group()
    for mode in ("decode", "memory", "startup"):
        modes.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of gptlab's side")
    options = parser.parse_intermixed_args()
    if not options.nanogpt or not (options.nanogpt / "train.py").is_file():
        parser.error(f"--nanogpt must name a checkout of nanoGPT, but {options.nanogpt} has no train.py.")
    if not options.decode and not (options.text and options.text.is_file()):
        parser.error(f"--text must name a text, but {options.text} is none.")
    shape = SHAPES[options.shape]
    changed = {"steps": options.steps or shape.steps, "batch_size": options.batch_size or shape.batch_size}
    options.recipe = replace(shape, **changed)
    return options


def main() -> None:
    options = parse()
    import torch

    from gptlab.benchmarking import record

    measure = decode if options.decode else memory if options.memory else startup if options.startup else training
    with tempfile.TemporaryDirectory(prefix="bench_against_") as folder:
        found = measure(Bench(options, Path(folder)))
    words = [Path(word).name if "/" in word and "=" not in word else word for word in sys.argv[1:]]  # no one's folders
    command = " ".join(["python", "scripts/bench_against.py", *words])
    git = subprocess.run(["git", "-C", options.nanogpt, "rev-parse", "HEAD"], capture_output=True, text=True)
    found |= {"nanogpt": git.stdout.strip() or None, "device": options.device, "overrides": options.overrides}
    found |= record.circumstances(torch.device(options.device), command)
    for line in report(found):
        print(line)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
