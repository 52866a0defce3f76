"""What a run directory holds: its config and tokenizer written and read, its newest model opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import gptlab.tasks  # noqa: F401  (registers the tokenizer of a task)
from gptlab import checkpoint, lora, plugins, registry, tokenizer
from gptlab.config import LAYER_SLOTS, RunConfig, from_dict, require, to_dict
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import write_atomically
from gptlab.model import GPT
from gptlab.rundirs import CONFIG, TOKENIZER, find
from gptlab.tokenizer import Tokenizer

COMMAND, SUMMARY = "command.json", "summary.json"
BEST = "best"  # a folder with the checkpoint of the lowest validation loss, where trainer.patience waits for it
FREE_SETTINGS = (  # of the trainer: they change nothing that has been computed
    "steps log_every eval_every save_every sample_every sample_tokens sample_prompt sample_temperature keep "
    "device compile on_nonfinite patience parallel shard save"
)
MAY_CHANGE = {"logger", "plugins", "resume", *(f"trainer.{name}" for name in FREE_SETTINGS.split())}


def write(run_dir: Path, config: RunConfig, text: Tokenizer, command: Mapping[str, Any]) -> None:
    """Begin a run directory: its resolved config, its tokenizer, and the overrides and variants it was started with."""
    text.save(run_dir / TOKENIZER)
    write_atomically(run_dir / COMMAND, json.dumps({**command, "variants": variants(config)}, indent=2).encode())
    write_config(run_dir, config)


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Write the resolved config, whole or not at all."""
    write_atomically(run_dir / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True).encode())


def read_config(run_dir: Path) -> RunConfig:
    """The config of a run; its plugins are imported first, from where they were when it began."""
    try:
        tree = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir / CONFIG} cannot be read ({reason}): restore it, or train again.") from None
    plugins.load(tree.get("plugins", []))
    return from_dict(tree)


def changed(config: RunConfig, run_dir: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The saved config with what may differ when a run goes on. ConfigError naming the first change that may not."""
    tree = to_dict(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        held = node.get(last) if isinstance(node, dict) else None
        if key in MAY_CHANGE:
            node[last] = value
        elif not _same(held, value):
            raise ConfigError(
                f"{key} cannot change when a run goes on: {run_dir} has {_short(held)}, asked was {_short(value)}. "
                f"Leave it out, or start a new run. What may change: {', '.join(sorted(MAY_CHANGE - {'resume'}))}."
            )
    tree["plugins"] = list(dict.fromkeys([*config.plugins, *plugins.load(tree["plugins"])]))
    return from_dict(tree)


def load(
    run_dir: str | Path, *, step: int | None = None, note: Callable[[str], None] = print
) -> tuple[GPT, Tokenizer]:  # fmt: skip
    """The model of a run (in eval mode, on the CPU) and its tokenizer. `run_dir` may be `latest`.

    It is of a `step` that is kept, or the newest good one, or the best where trainer.patience waited for it; adapters
    are merged. Damaged checkpoints are passed over, said by `note`. Nothing read can run code; the plugins that the run
    names are imported from the user's own files. CheckpointError when there is no such run or no good checkpoint.
    """
    path = find(str(run_dir))
    config = read_config(path)
    return model_of(config, chosen(path, config, step, note)), tokenizer.load(path / TOKENIZER)


def model_of(config: RunConfig, saved: checkpoint.Checkpoint) -> GPT:
    """The model that a run had at a checkpoint, in eval mode, on the CPU."""
    model = GPT(config.model)
    if config.lora.rank:
        lora.adapt(model, config.lora)
    model.load_tensors(saved.tensors["model"])
    return lora.merge(model).eval()


def kept(run_dir: Path) -> dict[int, Path]:
    """Step -> the checkpoint that there is of it, the oldest first: the newest ones, and the best."""
    return dict(sorted((checkpoint.kept(run_dir / BEST) | checkpoint.kept(run_dir)).items()))


def chosen(path: Path, config: RunConfig, step: int | None, note: Callable[[str], None]) -> checkpoint.Checkpoint:
    """The checkpoint of a step; of None the best where there is one, else the newest good one."""
    if step is not None:
        held = kept(path)
        steps = ", ".join(map(str, held)) or "none yet"
        require(step in held, f"{path} keeps no checkpoint of step {step}, but of {steps}: trainer.keep=N keeps N.")
        return checkpoint.load(held[step], note=note)
    if config.trainer.patience and checkpoint.newest(path / BEST):
        try:
            return checkpoint.load(path / BEST, note=note)
        except CheckpointError as error:
            note(f"{error} Taking the newest checkpoint in its place.")
    return checkpoint.load(path, note=note)


def trained_on(run_dir: Path) -> str:
    """The fingerprint of the tokens that a run was trained on; empty when its summary is gone."""
    try:
        return str(json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError):
        return ""


def variants(config: RunConfig) -> dict[str, str]:
    """Slot -> the name of the variant chosen."""
    specs = {slot: getattr(config.model if slot in LAYER_SLOTS else config, slot) for slot in registry.SLOTS}
    return {slot: registry.name_of(slot, spec) for slot, spec in specs.items()}


def whole(config: RunConfig) -> RunConfig:
    """The config with every option of every chosen variant written out and files by their absolute paths."""
    tree = to_dict(config)
    for slot in registry.SLOTS:
        node = tree["model"] if slot in LAYER_SLOTS else tree
        node[slot] = registry.complete(slot, node[slot])
    if tree["data"].get("path"):
        tree["data"]["path"] = str(Path(tree["data"]["path"]).expanduser().absolute())
    return from_dict(tree)


def _same(held: Any, asked: Any) -> bool:
    """Whether what was asked is what the config holds: a variant by its name, a file from the current directory."""
    name = held.get("name") if isinstance(held, dict) else held
    return asked in (held, name) or (isinstance(asked, str) and str(Path(asked).expanduser().absolute()) == held)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else text[:57] + "..."
