"""What `gptlab steer` does: a direction found or read, measured on held-out texts, written with, and put on a page."""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from gptlab import activations
from gptlab.config import require
from gptlab.display import harmless
from gptlab.evaluation import require_order
from gptlab.hardware import choose_device
from gptlab.model import GPT
from gptlab.rundir import load
from gptlab.rundirs import find
from gptlab.sampling import Draw, check_length, generate, prompt_ids
from gptlab.steering import page
from gptlab.steering.direction import Direction, Edits, added, combine, projected_out
from gptlab.steering.effect import N_PASSES, Measured, doses, measure
from gptlab.steering.finding import RULES, look
from gptlab.steering.passages import LEAST, Passages, halves
from gptlab.tokenizer import Tokenizer
from gptlab.writing import continuations

N_PASSAGES = 128  # of each text where no number is asked for
N_TOKENS = 150  # a text's length where none is asked for
Weighted = Sequence[tuple[Direction, float]]


def steer(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Do what `gptlab steer` was asked for in `words`."""
    _check(options)
    run_dir, device = find(options.run), choose_device(options.device)
    model, tokenizer = load(run_dir, step=options.step, note=_say)
    model.to(device)
    if options.positive is not None:
        require_order(model)
    parts = [_saved(word, model, run_dir) for word in options.direction or []]
    layers = {direction.layer for direction, _ in parts} or {_layer(options.layer, model)}
    rule = RULES[options.method or "mean"]
    write, console = _writer(model, tokenizer, options), Console(stderr=True)
    texts, measured = _texts(options, tokenizer, options.window or model.config.block_size), None
    if texts:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            measuring = progress.add_task(f"measuring on {2 * len(texts[1].positive)} passages", total=N_PASSES)
            streams = look(model, texts[0], layers, options.batch)
            parts = parts or [(stream.direction(rule), 1.0) for stream in streams.values()]
            sizes = {"dose": options.dose, "batch": options.batch}
            measured = measure(model, texts[1], parts, streams, rule, **sizes, tick=lambda: progress.advance(measuring))
    with console.status("writing"):
        samples = {_label(dose): write(added(combine(parts), dose)) for dose in doses(options.dose)}
        samples[page.OUT] = write(projected_out([direction for direction, _ in parts]))
    out = options.out or run_dir / "steer" / _name(options, layers)
    if not options.direction:
        parts[0][0].save(out / "direction.safetensors", {"method": options.method or "mean", "run": run_dir.resolve()})
    facts = _facts(options, run_dir, parts, texts, device)
    _print(measured, samples[_label(options.dose)])
    print(page.write(out, facts, measured, samples, f"gptlab steer {shlex.join(words)}"))


def _check(options: argparse.Namespace) -> None:
    """ConfigError for what cannot be, before anything is read."""
    texts = (options.positive, options.negative)
    require((texts[0] is None) == (texts[1] is None), "--positive and --negative go together: give both, or neither.")
    require(
        texts[0] is not None or bool(options.direction),
        "A direction is found between two texts, or read: give --positive and --negative, or --direction.",
    )
    require(
        not options.direction or (options.layer, options.method) == (None, None),
        "--layer and --method are about finding a direction, but --direction gives one: leave them out.",
    )
    require(
        texts[0] is not None or not (options.lines or options.window or options.passages),
        "--lines, --window and --passages are about --positive and --negative: leave them out, or give texts.",
    )
    require(
        math.isfinite(options.dose) and options.dose != 0,
        f"--dose must be a number other than 0, but is {options.dose}: dose 0, which changes nothing, is always there.",
    )
    require(options.window is None or options.window >= 2, f"--window must be at least 2, but is {options.window}.")
    require(
        options.passages is None or options.passages >= LEAST,
        f"--passages must be at least {LEAST}, but is {options.passages}.",
    )
    require(options.batch >= 1, f"--batch must be at least 1, but is {options.batch}.")
    require(options.tokens is None or options.tokens >= 1, f"--tokens must be at least 1, but is {options.tokens}.")


def _saved(word: str, model: GPT, run_dir: Path) -> tuple[Direction, float]:
    """A direction and its weight, from FILE or FILE:WEIGHT."""
    weighed = re.fullmatch(r"(.*):([-+]?(?:\d+\.?\d*|\.\d+))", word, re.DOTALL)
    path, weight = weighed.groups() if weighed else (word, 1)
    require(float(weight) != 0, f"A direction of weight 0 changes nothing: give {path} another one, or leave it out.")
    direction = Direction.load(Path(path).expanduser())
    direction.check(model, path)
    if direction.run and Path(direction.run) != run_dir.resolve():
        _say(f"{path} was found in {direction.run}: in another model it points anywhere, unless one came of the other.")
    return direction, float(weight)


def _layer(wanted: int | None, model: GPT) -> int:
    """The layer after which to steer, by a Python index; unless asked for, the one that ends the first half."""
    n = len(model.blocks)
    require(n > 0, "Steering needs a layer, but this model has none: take a run with model.n_layer=1 or more.")
    wanted = (n - 1) // 2 if wanted is None else wanted
    require(-n <= wanted < n, f"--layer must be {-n} to {n - 1} in this model, but is {wanted}.")
    return wanted % n


def _texts(options: argparse.Namespace, tokenizer: Tokenizer, window: int) -> tuple[Passages, Passages] | None:
    if options.positive is None:
        return None
    given = (options.positive, options.negative)
    return halves(tokenizer, *given, window=window, at_most=options.passages or N_PASSAGES, lines=options.lines)


def _writer(model: GPT, tokenizer: Tokenizer, options: argparse.Namespace) -> Callable[[Edits], str]:
    """What writes a text with edits in place, always from the same random numbers. What cannot be is refused now."""
    prompt, draw = prompt_ids(tokenizer, options.prompt), Draw(options.temperature)
    room = N_TOKENS if model.position.limit is None else model.position.limit + 1 - len(prompt)
    n_tokens = options.tokens or max(1, min(N_TOKENS, room))
    check_length(model, len(prompt), n_tokens)

    def text(edits: Edits) -> str:
        with activations.edit(model, edits):
            drawn = generate(model, prompt, n_tokens, draw=draw, seeds=[options.seed])
            return options.prompt + "".join(piece for _, piece in continuations(tokenizer, drawn, 1))

    return text


def _label(dose: float) -> str:
    return f"{dose:g}"


def _name(options: argparse.Namespace, layers: set[int]) -> str:
    """A folder for what was asked: asked again, it is written again."""
    texts = [Path(text).expanduser() for text in (options.positive, options.negative) if text is not None]
    asked = [*(str(text.resolve()) for text in texts), options.step, options.window, options.passages, options.lines]
    what = hashlib.sha256(repr([*asked, options.direction]).encode()).hexdigest()[:6]
    if options.direction:
        return f"directions_{what}"
    (layer,) = layers
    return f"{texts[0].stem}_{texts[1].stem}_layer{layer}_{options.method or 'mean'}_{what}"


def _facts(
    options: argparse.Namespace, run_dir: Path, parts: Weighted, texts: tuple[Passages, Passages] | None, device: Any
) -> Mapping[str, Any]:
    """What it was done with."""
    halved = {"found on": texts[0], "held out": texts[1]} if texts else {}
    return {
        "run": str(run_dir),
        "positive": options.positive,
        "negative": options.negative,
        "directions": [
            {"from": word, "weight": weight, "layer": direction.layer, "residual norm": direction.norm}
            for word, (direction, weight) in zip(options.direction or [options.method or "mean"], parts, strict=True)
        ],
        **{what: f"{len(half.positive)} passages of each" for what, half in halved.items()},
        "prompt": options.prompt,
        "seed": options.seed,
        "temperature": options.temperature,
        "device": str(device),
    }


def _print(measured: Measured | None, text: str) -> None:
    """The table and the criteria, then the text at the dose asked for."""
    console = Console(highlight=False)
    if measured:
        console.print(page.as_table(measured))
        for criterion in sorted(measured.criteria(), key=lambda one: one.met):  # what fails first
            console.print(f"{'met    ' if criterion.met else 'not met'}  {criterion.sentence}", markup=False)
        if remark := measured.remark():
            console.print(remark, markup=False)
    print(harmless(text) if sys.stdout.isatty() else text)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
