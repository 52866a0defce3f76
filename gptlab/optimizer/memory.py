"""What an optimizer remembers, by the names of parameters: to tensors and JSON, and back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gptlab.errors import CheckpointError

Names = Mapping[Any, str]  # what every parameter of the optimizer is called

# How a step is computed on this machine, not what it computes: the resuming run has chosen again.
MACHINE = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})


def tensors_of(optimizer: Optimizer, names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors called `<parameter>/<state>`, and the rest of it as JSON."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        scalars[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        tensors |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    groups = [
        {"params": [names[parameter] for parameter in group["params"]], "options": _options(group)}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "scalars": scalars, "tensors": sorted(tensors)}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in group.items() if key not in MACHINE}
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in kept.items()}


def blanks_of(optimizer: Optimizer, names: Names, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """What an optimizer will remember on this rank, to be filled: the state tensors that `meta` knows."""
    remember = getattr(optimizer, "memory", None)
    if remember is None:
        raise CheckpointError(
            f"{type(optimizer).__name__} has no `memory`, which ranks need to go on with it: go on in one process."
        )
    blank = {
        f"{names[parameter]}/{key}": tensor
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, tensor in remember(parameter.detach(), group).items()
    }
    return {name: blank[name] for name in meta["tensors"] if name in blank}


def restore(optimizer: Optimizer, names: Names, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Put back what `tensors_of` gave, bit for bit. Raises CheckpointError when the names do not fit."""
    groups = meta["groups"]
    here = [f"group {i}: {names[p]}" for i, group in enumerate(optimizer.param_groups) for p in group["params"]]
    _must_agree(
        "parameters", [f"group {i}: {name}" for i, group in enumerate(groups) for name in group["params"]], here
    )
    _must_agree("state tensors", meta["tensors"], tensors)
    states = {name: dict(scalars) for name, scalars in meta["scalars"].items()}
    for key, tensor in tensors.items():
        name, _, state = key.rpartition("/")
        states[name][state] = tensor
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: _like(group.get(key), value) for key, value in saved["options"].items()})
        for parameter in group["params"]:
            if names[parameter] in states:
                optimizer.state[parameter] = _placed(states[names[parameter]], parameter, group)


def _must_agree(what: str, saved: Iterable[str], here: Iterable[str]) -> None:
    missing, extra = sorted(set(saved) - set(here)), sorted(set(here) - set(saved))
    if missing or extra:
        parts = [
            f"{label} {', '.join(keys[:3])}" for label, keys in (("lacks", missing), ("has besides", extra)) if keys
        ]
        raise CheckpointError(
            f"The optimizer's {what} must be those of the checkpoint, but it {' and '.join(parts)}. "
            "Resume with the model and optimizer of the run."
        )


def _like(current: object, value: Any) -> Any:
    """A stored option as the kind of object the optimizer keeps: JSON knows neither tensors nor tuples."""
    if isinstance(current, Tensor):
        return current.fill_(value)
    return tuple(value) if isinstance(current, tuple) else value


def _placed(state: Mapping[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Copies on the parameter's device, dtype untouched. A step count stays on the CPU unless its kernel wants it."""
    at_home = {"step"} if not (group.get("fused") or group.get("capturable")) else set()
    return {
        key: value.to("cpu" if key in at_home else parameter.device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
