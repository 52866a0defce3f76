"""Checkpoints: run_dir/checkpoints/step_00001000/ with safetensors files and a manifest of their SHA-256.

A checkpoint is complete or it is not there; it is verified before it is used; nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptlab import distributed, shards
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import sync

FORMAT = 1  # a file for each group of tensors
SHARDED = 2  # a file for each rank, with parts of all tensors: those of the optimizer are called <parameter>/<state>
STEP = re.compile(r"step_(\d+)(\.replaced)?")
FILE = re.compile(r"[a-z][a-z0-9_-]*\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, loaded: tensors by file and name, meta as it was saved."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]
    path: Path


def save(
    run_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint, then remove all but the `keep` newest. Returns its directory.

    `tensors` is file -> name -> tensor ("model", "optimizer", ...); `meta` is plain JSON with string keys. Checkpoints
    beyond `step` are removed too: they belong to a future that the run was resumed from before. Raises CheckpointError
    when the disk refuses; the checkpoints before are untouched then.
    """
    path, temporary = _places(run_dir, step, keep, secrets.token_hex(4))
    try:
        _begin(temporary)
        files = {f"{name}.safetensors": _write_tensors(temporary, name, group) for name, group in tensors.items()}
        _write_manifest(temporary, {"format": FORMAT, "step": step, "meta": meta, "files": files})
        _put_in_place(temporary, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _unsaved(path, error) from None
    _remove_old(path.parent, step, keep)
    return path


def save_together(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    *,
    keep: int,
    group: Any,
) -> Path:
    """`save` by all ranks of a group: each writes its part, and rank 0 publishes what all have written, or nothing."""
    path, temporary = _places(run_dir, step, keep, "ranks")
    named = {name: tensor for held in tensors.values() for name, tensor in held.items()}
    try:
        _on_first(lambda: _begin(temporary), group)
        mine = {part.name: _fingerprint(part) for part in shards.write(temporary, named, group)}
        files = {name: about for held in distributed.gathered(mine, group) for name, about in held.items()}
        manifest = {"format": SHARDED, "step": step, "meta": meta, "files": files}
        _on_first(lambda: _publish(temporary, path, manifest, keep), group)
    except OSError as error:
        if distributed.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
        raise _unsaved(path, error) from None
    return path


def _on_first(act: Callable[[], None], group: Any) -> None:
    """Let rank 0 act, and raise on all what it could not."""
    reason = None
    if distributed.is_first():
        try:
            act()
        except OSError as error:
            reason = error.strerror or str(error)
    if reason := distributed.gathered(reason, group)[0]:
        raise OSError(reason)


def _publish(temporary: Path, path: Path, manifest: dict[str, Any], keep: int) -> None:
    for name in manifest["files"]:
        sync(temporary / name)
    _write_manifest(temporary, manifest)
    _put_in_place(temporary, path)
    _remove_old(path.parent, manifest["step"], keep)


def _places(run_dir: Path, step: int, keep: int, word: str) -> tuple[Path, Path]:
    """Where a checkpoint will be, and where it is written."""
    if keep < 1:
        raise ConfigError(f"The number of checkpoints to keep must be at least 1, but is {keep}. Set it to 1 or more.")
    path = run_dir / "checkpoints" / f"step_{step:08d}"
    return path, path.with_name(f".{path.name}.{word}.tmp")


def _begin(temporary: Path) -> None:
    _sweep(temporary.parent)
    temporary.mkdir(parents=True)


def _unsaved(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"The checkpoint of step {int(path.name[5:])} could not be saved in {path.parent} ({reason}); "
        "those before it are untouched. Make room there, and resume."
    )


def _write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    path = folder / f"{name}.safetensors"
    assert FILE.fullmatch(path.name), path.name
    assert not any("_orig_mod." in key for key in tensors), "names come from the model, not from its compiled twin"
    save_file({key: _owned(tensor) for key, tensor in tensors.items()}, path)
    sync(path)
    return _fingerprint(path)


def _owned(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, alone in its memory: a view is copied, two names for one tensor stay an error."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1), encoding="utf-8")
    sync(path)
    sync(folder)


def _put_in_place(temporary: Path, path: Path) -> None:
    # A directory cannot be renamed onto another. A kill between the two renames leaves the old one where load finds it.
    aside = path.with_name(path.name + ".replaced")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(temporary, path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed saves left half written."""
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, step: int, keep: int) -> None:
    found = _newest_first(folder)
    past = [path for path in found if _order(path) <= (step, True)]
    for path in [*past[keep:], *(path for path in found if path not in past)]:
        shutil.rmtree(path, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _order(path: Path) -> tuple[int, bool]:
    match = STEP.fullmatch(path.name)
    assert match, path
    return int(match[1]), match[2] is None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step_*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_order, reverse=True)


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint directory of a run, not verified; None when there is none."""
    return next(iter(_newest_first(run_dir / "checkpoints")), None)


def kept(run_dir: Path) -> dict[int, Path]:
    """Step -> the checkpoint directory of a run, the oldest first, not verified."""
    return {_order(path)[0]: path for path in reversed(_newest_first(run_dir / "checkpoints"))}


def load(
    path: Path, *, note: Callable[[str], None], device: str | torch.device = "cpu", together: bool = False
) -> Checkpoint:
    """Load the newest good checkpoint of a run directory, or exactly the checkpoint directory that is named.

    One that is damaged is passed over, said in one line to `note`. Raises CheckpointError when none is good. With
    `together`, all ranks verify it, each some of its files, and agree; its tensors are left to `fill`.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}. Name the directory of a run.")
    found, way_out = _newest_first(path / "checkpoints"), "Bring one back from a copy, or start the run again."
    if not found and (STEP.fullmatch(path.name) or (path / "manifest.json").exists()):
        found, way_out = [path], f"Name the run ({path.parent.parent}) instead to get its newest good checkpoint."
    damage: list[str] = []
    for candidate in found:
        try:
            checkpoint = _verify_together(candidate) if together else _load_one(candidate, device)
        except CheckpointError as error:
            damage.append(f"{candidate.name}: {error}")
            continue
        if damage:
            note(f"Damaged and not used: {'; '.join(damage)}. Going on from {candidate.name}.")
        return checkpoint
    if damage:
        raise CheckpointError(f"No checkpoint in {path} is good ({'; '.join(damage)}). {way_out}")
    raise CheckpointError(
        f"{path} holds no checkpoint yet. Name a run directory that has saved one, or start the run again."
    )


def _load_one(path: Path, device: str | torch.device) -> Checkpoint:
    manifest = _read_manifest(path)
    tensors = {}
    for name, expected in manifest["files"].items():
        _verify(path / name, expected)
        try:
            if manifest["format"] == FORMAT:
                tensors[name.removesuffix(".safetensors")] = load_file(path / name, device=str(device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{name} cannot be read ({error})") from None
    if manifest["format"] == SHARDED:
        tensors = _grouped(shards.read(path, device))
    return Checkpoint(manifest["step"], tensors, manifest["meta"], path)


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        groups["optimizer" if "/" in name else "model"][name] = tensor
    return groups


def _verify_together(path: Path) -> Checkpoint:
    damage = None
    try:
        manifest = _read_manifest(path)
        for name, expected in list(manifest["files"].items())[distributed.rank() :: distributed.size()]:
            _verify(path / name, expected)
    except CheckpointError as error:
        damage = str(error)
    if damage := next(filter(None, distributed.gathered(damage)), None):
        raise CheckpointError(damage)
    return Checkpoint(manifest["step"], {}, manifest["meta"], path)


def fill(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Read a checkpoint, of however many ranks, into tensors that ranks hold, by their names. CheckpointError."""
    try:
        shards.fill(checkpoint.path, tensors)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model and optimizer of the run ({reason})."
        ) from None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        expected = manifest.pop("sha256")
        found, version = _digest(manifest), manifest["format"]
    except OSError as error:
        raise CheckpointError(f"manifest.json cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError("manifest.json is damaged") from None
    if found != expected:
        raise CheckpointError("manifest.json was changed after it was written")
    if version not in (FORMAT, SHARDED):
        raise CheckpointError(f"written in format {version}, this gptlab reads formats {FORMAT} and {SHARDED}")
    assert all(FILE.fullmatch(name) for name in manifest["files"]), "a file name that save never writes"
    return dict(manifest)


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path.name} has {size:,} bytes instead of {expected['bytes']:,}")
        if _fingerprint(path) != expected:
            raise CheckpointError(f"{path.name} does not have the checksum it was saved with")
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from None
