"""The loss of a run's newest model on one of its splits, or on any text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gptlab import data, ngram, registry
from gptlab.config import require, require_choice
from gptlab.errors import DataError
from gptlab.evaluation import bits_per_byte, evaluate
from gptlab.hardware import autocast, choose_device, choose_precision
from gptlab.rundir import load, read_config, trained_on
from gptlab.rundirs import find
from gptlab.tokenizer import Tokenizer


def dataset_of(run_dir: Path, tokenizer: Tokenizer) -> data.Dataset:
    """The text that a run was trained on. DataError where its config finds another one now."""
    dataset = data.prepare(registry.build("data", read_config(run_dir).data), tokenizer, report=_say)
    if dataset.fingerprint != trained_on(run_dir):
        raise DataError(
            f"{run_dir} was trained on another text than its config finds now: bring that text back, or use --text."
        )
    return dataset


def score(options: argparse.Namespace) -> None:
    """Print what `gptlab evaluate` was asked for."""
    require(options.batch >= 1, f"--batch must be at least 1, but is {options.batch}.")
    require_choice("--precision", options.precision, ("auto", "fp32", "bf16", "fp16"))
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    run_dir = find(options.run)
    model, tokenizer = load(run_dir, step=options.step, note=_say)
    tokens, n_bytes, about = (
        _text(tokenizer, options.text) if options.text else _split(run_dir, tokenizer, options.split)
    )
    require(len(tokens) >= 2, f"A loss needs 2 tokens, but {about['text']} has {len(tokens)}.")
    loss = evaluate(model.to(device), tokens, batch_size=options.batch, autocast=autocast(device, precision))
    result = {
        **about,
        "tokens": len(tokens),
        "loss": loss,
        "perplexity": math.exp(loss),
        "bpb": bits_per_byte(loss, n_bytes / len(tokens)),
    }
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)


def _split(run_dir: Path, tokenizer: Tokenizer, split: str) -> tuple[np.ndarray[Any, Any], int, dict[str, Any]]:
    """A split of the text that the run was trained on, with the ruler beside the validation split."""
    dataset = dataset_of(run_dir, tokenizer)
    about: dict[str, Any] = {"text": f"{split} split"}
    if split == "val":
        about["ruler"] = dict(enumerate(ngram.ruler(dataset, report=_say).val, start=1))
    tokens = dataset.split(split)
    return tokens, round(dataset.bytes_per_token(split) * len(tokens)), about


def _text(tokenizer: Tokenizer, path: str) -> tuple[np.ndarray[Any, Any], int, dict[str, Any]]:
    """A text from outside, whole, in the tokens of the run."""
    source = registry.build("data", {"name": "text", "path": path})
    text = "".join(piece for _, piece in source.documents())
    if not text:
        raise DataError(f"A text must hold at least one character, but {path} is empty.")
    return np.asarray(tokenizer.encode_array(text)), len(text.encode()), {"text": path}


def _print(result: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for key, unit in (
        ("text", ""),
        ("tokens", ""),
        ("loss", "nats per token"),
        ("perplexity", ""),
        ("bpb", "bits per byte"),
    ):
        value = result[key]
        table.add_row(
            key,
            f"{value:.4f} {unit}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value,
        )
    for order, nats in result.get("ruler", {}).items():
        table.add_row(f"{order}-gram", f"{nats:.4f}" + ("  beaten" if result["loss"] < nats else ""))
    Console(highlight=False).print(table)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
