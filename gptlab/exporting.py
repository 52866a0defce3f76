"""A run as a directory that others open: weights, config and tokenizer in the form of Hugging Face's transformers."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from gptlab import weights
from gptlab.config import require, require_choice
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import write_atomically
from gptlab.model import GPT
from gptlab.rundir import load
from gptlab.sampling import prompt_ids
from gptlab.tokenizer import Tokenizer
from gptlab.weights import custom_code as own_code
from gptlab.weights import tokenizers

GENERATION = "generation_config.json"


def export(options: argparse.Namespace, out: TextIO) -> None:
    """Write the directory that `gptlab export` was asked for, and say how to open it."""
    form, directory = options.to[0], Path(options.to[1]).expanduser().resolve()
    require_choice("--to", form, ("hf",))
    free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    require(free, f"An export goes to a directory that is new or empty, but {directory} is not: name another.")
    model, tokenizer = load(options.run, step=options.step, note=lambda line: print(line, file=sys.stderr))
    name = write(model, tokenizer, directory, custom_code=options.custom_code)
    trust = ", trust_remote_code=True" if options.custom_code else ""
    print(f"{name} of {model.n_parameters():,} parameters, and its tokenizer.", file=out)
    print(f"AutoModelForCausalLM.from_pretrained({str(directory)!r}{trust}) opens it.", file=out)


def write(model: GPT, tokenizer: Tokenizer, directory: Path, *, custom_code: bool = False) -> str:
    """Write model and tokenizer, whole or not at all; returns the name of the class in transformers.

    ConfigError naming the option that no class there has, unless the model brings its own code.
    """
    if not custom_code:
        _require_class(model)
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        _fill(temporary, model, tokenizer, custom_code)
        if directory.exists():
            directory.rmdir()
        os.rename(temporary, directory)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{directory} cannot be written ({reason}): make room, or name another.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def _fill(directory: Path, model: GPT, tokenizer: Tokenizer, custom_code: bool) -> None:
    tokenizers.save(tokenizer, directory)
    save = own_code.save if custom_code else weights.save
    save(model, directory, end_of_text=tokenizer.end_of_text)
    write_atomically(directory / GENERATION, json.dumps(generation(tokenizer), indent=2).encode())


def _require_class(model: GPT) -> None:
    try:
        weights.family_of(model.config)
    except ConfigError as error:
        raise ConfigError(f"{error} For its own code: --custom-code.") from None


def generation(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Where a text begins and ends, as with `gptlab sample`: after a separator; at an end that no text encodes to."""
    begin, end = prompt_ids(tokenizer, "")[-1], tokenizer.end_of_text
    return {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
