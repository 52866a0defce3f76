"""Where weights are: a directory, one safetensors file, or a name on the Hugging Face hub, by way of its cache.

Only JSON and safetensors are read, neither of which can run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab.errors import CheckpointError, ConfigError
from gptlab.weights.settings import Settings

OPENAI = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository: no pickles, no other formats
PLAIN = ("F64", "F32", "F16", "BF16")  # what a number may be stored as
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Source:
    """A config.json as it is, and the tensors beside it, read one at a time."""

    path: Path
    settings: Settings
    files: dict[str, Any]  # tensor -> its file, open

    @property
    def names(self) -> Iterable[str]:
        """The tensors, as the files call them."""
        return self.files.keys()

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, which is not read."""
        return list(self.files[name].get_slice(name).get_shape())

    def check(self, name: str) -> None:
        """CheckpointError where a tensor, which is not read, holds codes of a quantiser."""
        kind = self.files[name].get_slice(name).get_dtype()
        if kind not in PLAIN:
            raise CheckpointError(f"{name} of {self.path} is {kind}, no plain numbers: name the original.")

    def read(self, name: str) -> Tensor:
        """One tensor. CheckpointError where it cannot be read, or holds codes of a quantiser."""
        self.check(name)
        try:
            tensor: Tensor = self.files[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{name} of {self.path} cannot be read ({error}): bring the file again.") from None
        return tensor


def find(name: str | Path) -> Source:
    """The weights of a directory, a safetensors file, or a name. ConfigError or CheckpointError in one line."""
    path = Path(name).expanduser()
    if not path.exists():
        path = _cached(str(name))
    if path.is_file() and any(path.match(pattern) for pattern in PICKLES):
        raise CheckpointError(_no_pickles(path))
    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is no safetensors file: name that, or the directory that holds config.json and {SINGLE}."
        )
    folder, files = (path.parent, [path]) if path.is_file() else (path, _files(path))
    return Source(path, _json(folder / CONFIG), _opened(files))


def _cached(name: str) -> Path:
    """Where the hub's cache has a repository, downloaded if need be."""
    from huggingface_hub import snapshot_download

    if name.startswith(("/", "~", ".")):
        raise ConfigError(f"There is no {name}: name a directory that holds config.json and {SINGLE}.")
    if name not in OPENAI and (name.count("/") != 1 or name.endswith(".safetensors")):
        raise ConfigError(
            f"Weights are a directory, a .safetensors file, {', '.join(OPENAI)}, or a name of the Hugging Face hub "
            f"(org/name), but {name!r} is none of these."
        )
    full = OPENAI.get(name, name)
    for candidate, local in ((full, True), (name, True), (full, False)):
        try:
            folder = Path(snapshot_download(candidate, allow_patterns=WANTED, local_files_only=local))
            missing = [path.name for path in (folder / CONFIG, *_files(folder)) if not path.exists()]
        except CheckpointError:  # what is in the cache may be a part of what there is
            if not local:
                raise
            continue
        except Exception as error:  # of the hub, of the network: many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        if not missing:
            return folder
        reason = f"{missing[0]} is missing"
    raise ConfigError(
        f"{full} is not in the cache of Hugging Face and could not be downloaded ({reason}): go online once, or name a "
        "directory that holds its config.json and model.safetensors."
    )


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a directory: the usual one (as in transformers), those of its index, or the only one."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        shards = _json(folder / INDEX).get("weight_map")
        listed = list(shards.values()) if isinstance(shards, dict) else []
        if not listed or not all(isinstance(shard, str) and Path(shard).name == shard for shard in listed):
            raise CheckpointError(f"{folder / INDEX} must list files of its own directory: bring it again.")
        return [folder / shard for shard in sorted(set(listed))]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickles = [path for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if found or not pickles:
        raise CheckpointError(f"{folder} must hold {SINGLE}, or one safetensors file, but holds {len(found)} of them.")
    raise CheckpointError(_no_pickles(pickles[0]))


def _no_pickles(path: Path) -> str:
    return (
        f"{path} is no safetensors file, and a pickle could run code, so it is not opened: convert it once with "
        "transformers (from_pretrained, then save_pretrained)."
    )


def _json(path: Path) -> Settings:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} is needed beside the weights, but cannot be read ({error.strerror}).") from None
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is damaged: bring it again.")
    return tree


def _opened(paths: list[Path]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in paths:
        if not path.exists():
            raise CheckpointError(f"{path} is named by an index or a link, but is not there: bring it again.")
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({error}): bring it again.") from None
        twice = files.keys() & set(opened.keys())
        if twice:
            raise CheckpointError(f"{path} holds {min(twice)}, and so does another file beside it: remove one.")
        files.update(dict.fromkeys(opened.keys(), opened))
    return files
