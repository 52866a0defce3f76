"""Text from a run: several continuations drawn side by side, streamed as they come, ended at a stop string."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from gptlab.config import as_spec, require
from gptlab.display import harmless
from gptlab.hardware import choose_device
from gptlab.rundir import load, read_config
from gptlab.rundirs import find
from gptlab.sampling import Draw, check_length, generate, lay_out, prompt_ids
from gptlab.tokenizer import Tokenizer

N_TOKENS = 300  # a text's length where none is asked for


def write(options: argparse.Namespace, out: TextIO) -> None:
    """Write the texts that `gptlab sample` was asked for; a single one token by token."""
    require(options.tokens is None or options.tokens >= 1, f"--tokens must be at least 1, but is {options.tokens}.")
    require(options.samples >= 1, f"--samples must be at least 1, but is {options.samples}.")
    require(options.batch >= 1, f"--batch must be at least 1, but is {options.batch}.")
    require(options.stop != "", "--stop must hold at least one character: leave it out to stop nowhere.")
    filters = (options.temperature, options.top_k, options.top_p, options.min_p)
    require(
        not options.greedy or filters == (None,) * 4, "--greedy draws nothing: leave out --temperature and --top-*."
    )
    temperature = 0.0 if options.greedy else 0.8 if options.temperature is None else options.temperature
    draw = Draw(temperature, options.top_k, options.top_p, options.min_p)
    device = choose_device(options.device)
    model, tokenizer = load(options.run, step=options.step, note=_say)
    lay_out(model.to(device))
    prompt, begin, stop = _asked(options, tokenizer, model.config.block_size)
    room = N_TOKENS if model.position.limit is None else model.position.limit + 1 - len(prompt)
    n_tokens = options.tokens or max(1, min(N_TOKENS, room))  # where there is no room at all, the next line says so
    check_length(model, len(prompt), n_tokens)
    show = harmless if out.isatty() else str
    compiled = _said_once() if options.compile else None
    for first in range(0, options.samples, options.batch):
        seeds = [options.seed + i for i in range(first, min(first + options.batch, options.samples))]
        drawn = generate(model, prompt, n_tokens, draw=draw, seeds=seeds, compiled=compiled)
        texts = continuations(tokenizer, drawn, len(seeds), stop)
        if len(seeds) == 1:
            _print_stream(texts, begin, first, options.samples, out)
        else:
            for number, text in enumerate(_join(texts, len(seeds)), start=first):
                _print_text(show(begin + text), number, options.samples, out)


def _asked(options: argparse.Namespace, tokenizer: Tokenizer, block_size: int) -> tuple[list[int], str, str | None]:
    """What to begin with, as tokens and as text, and what ends a text. A run on pairs is given a source."""
    data = as_spec(read_config(find(options.run)).data)
    if data["name"] != "pairs":
        return prompt_ids(tokenizer, options.prompt), options.prompt, options.stop
    source, separator = options.prompt.removesuffix(data["separator"]), data["separator"]
    require(source != "", "--prompt must be a source, since this run has learnt what to say of one: give it.")
    ids = tokenizer.encode(source) + tokenizer.encode(separator)
    require(
        len(ids) <= block_size,
        f"--prompt must be a source that fits in model.block_size={block_size} with its separator, but has {len(ids)} "
        "tokens: shorten it.",
    )
    ends = "\n" if tokenizer.end_of_text is None else None
    return ids, source + separator, options.stop or ends


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _said_once() -> Callable[[str], None]:
    """Says a line on standard error the first time it comes."""
    return functools.cache(_say)


def continuations(
    tokenizer: Tokenizer, drawn: Iterator[list[int]], n: int, stop: str | None = None
) -> Iterator[tuple[int, str]]:
    """(which text, its new piece) as tokens come; what may still change is held back. Each ends before `stop`."""
    ids: list[list[int]] = [[] for _ in range(n)]
    told, open_ = [0] * n, set(range(n))
    for tokens in drawn:
        for i in sorted(open_):
            if tokens[i] == tokenizer.end_of_text:
                open_.discard(i)
                continue
            if tokens[i] >= tokenizer.vocab_size:  # a vocabulary that was rounded up has ids without text
                continue
            ids[i].append(tokens[i])
            text = tokenizer.decode(ids[i])
            if stop is not None and stop in text:
                text = text[: text.index(stop)]
                open_.discard(i)
            safe = len(text) if i not in open_ else _settled(text, stop)
            if safe > told[i]:
                yield i, text[told[i] : safe]
                told[i] = safe
        if not open_:
            return
    for i in sorted(open_):
        yield i, tokenizer.decode(ids[i])[told[i] :]


def _settled(text: str, stop: str | None) -> int:
    """How much of `text` no further token can change: not half a character, not what may begin the stop string."""
    whole = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    longest = max((k for k in range(1, len(stop or "")) if text.endswith((stop or "")[:k])), default=0)
    return min(whole, len(text) - longest)


def _join(pieces: Iterator[tuple[int, str]], n: int) -> list[str]:
    texts = [""] * n
    for i, piece in pieces:
        texts[i] += piece
    return texts


def _print_stream(pieces: Iterator[tuple[int, str]], prompt: str, number: int, n: int, out: TextIO) -> None:
    show = harmless if out.isatty() else str
    _print_head(number, n, out)
    print(show(prompt), end="", flush=True, file=out)
    for _, piece in pieces:
        print(show(piece), end="", flush=True, file=out)
    print(file=out)


def _print_text(text: str, number: int, n: int, out: TextIO) -> None:
    _print_head(number, n, out)
    print(text, file=out)


def _print_head(number: int, n: int, out: TextIO) -> None:
    if n > 1:
        print(f"--- {number + 1} of {n} ---", file=out)
