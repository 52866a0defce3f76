"""A gptlab model in the form of transformers: config.json and model.safetensors, for a class that is equal to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gptlab.errors import CheckpointError
from gptlab.files import sync, write_atomically
from gptlab.model import GPT
from gptlab.weights.families import family_of, hf_config
from gptlab.weights.source import CONFIG, SINGLE
from gptlab.weights.table import links


def save(model: GPT, directory: str | Path, *, end_of_text: int | None = None) -> Path:
    """Write what `AutoModelForCausalLM.from_pretrained(directory)` opens as this model; returns the directory.

    ConfigError naming the option that has no class in transformers; CheckpointError when the disk refuses.
    """
    folder = Path(directory).expanduser()
    config = hf_config(model.config, end_of_text)
    temporary = folder / f".{SINGLE}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(hf_tensors(model), temporary, metadata={"format": "pt"})
        sync(temporary)
        os.replace(temporary, folder / SINGLE)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{folder} cannot be written ({reason}): make room there, or name another.") from None
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return folder


def hf_tensors(model: GPT) -> dict[str, Tensor]:
    """The model's tensors by the names of its class, as they lie there. ConfigError when it has none."""
    tensors = model.tensors()
    found = links(family_of(model.config).table(model.config), tensors)
    return {link.theirs: link.write([tensors[name].cpu() for name in link.ours]).contiguous() for link in found}
