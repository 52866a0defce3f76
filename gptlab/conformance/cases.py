"""Tiny models around one variant: its defaults with every position it takes, then each option at a second value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from gptlab import registry
from gptlab.components.context import Encoded
from gptlab.config import ModelConfig
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.registry import Option
from gptlab.seeds import seed_of

SLOTS = ("attention", "position", "norm", "mlp", "block")
SIZES: dict[str, Any] = {"vocab_size": 29, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32, "bias": True}
PLAIN: dict[str, Any] = {
    "attention": "vanilla",
    "position": "rope",
    "norm": "rmsnorm",
    "mlp": "plain",
    "block": "prenorm",
}
NOISE = 0.2  # std of what is added to every parameter: initial zeros and ones would hide half of all faults
SOURCE = 5  # tokens of a source, where one is seen both ways: the last, which ends it, is id 0


@dataclass(frozen=True)
class Case:
    """One tiny model around a variant. `first`: the variant's own first case, for the laws that one case can judge."""

    slot: str
    name: str
    id: str
    config: ModelConfig
    first: bool = False

    def model(self, *, seed: int = 0, noise: float = NOISE, dtype: torch.dtype = torch.float64, **changes: Any) -> GPT:
        """The model with every parameter perturbed, in eval mode; `changes` are made to its config."""
        model = GPT(dataclasses.replace(self.config, **changes), seed).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(noise * _noise(parameter.shape, "noise", seed, name))
        if model.reads_memory:
            model.memory = Encoded(_noise((1, self.config.block_size, self.config.n_embd), "memory").to(dtype))
        if dtype is not torch.float32:
            vars(model)["hidden"] = _with_default_dtype(model.hidden, dtype)
        return model.eval()

    def tokens(self, n_tokens: int | None = None, n_rows: int = 2, seed: int = 0) -> Tensor:
        """Random ids, (n_rows, n_tokens), one full block unless told otherwise; with a source where one is seen."""
        size = (n_rows, n_tokens or self.config.block_size)
        generator = torch.Generator().manual_seed(seed_of("tokens", seed))
        tokens = torch.randint(self.config.vocab_size or 1, size, generator=generator)
        if self.n_source:
            tokens[:, : self.n_source].clamp_(min=1)
            tokens[:, self.n_source - 1] = 0
        return tokens

    @property
    def n_source(self) -> int:
        """How many tokens of a row see one another both ways."""
        return SOURCE if self.config.has_source else 0

    @functools.cached_property
    def untouched(self) -> GPT:
        """The model as it is built, for what its parts say of themselves."""
        return self.model(noise=0)

    @functools.cached_property
    def bare(self) -> bool:
        """Whether its parts allow position none."""
        return refusal(dataclasses.replace(self.config, position="none")) is None

    @property
    def spec(self) -> dict[str, Any]:
        """The variant's own spec: its name and the options that differ from their defaults."""
        spec: dict[str, Any] = getattr(self.config, self.slot)
        return spec


def cases_for(slot: str, name: str) -> list[Case]:
    """Every case of a variant. ConfigError when it cannot be built with its defaults and any position."""
    cls = registry.get(slot, name)
    spec = {"name": name, **_required(cls)}
    found = _plain_cases(slot, name, spec)
    home = found[0].config
    elsewhere = found[min(1, len(found) - 1)]  # all options together meet another setting than each alone
    together = dict(spec)
    for option in registry.options(cls).values():
        for value in second_values(cls, option):
            change = {**beside(cls, option), option.name: value}
            changed = with_slot(home, slot, {**spec, **change})
            if refusal(changed) is None:
                found.append(Case(slot, name, f"{found[0].id}-{option.name}={value}", changed))
                together |= _if_accepted(elsewhere.config, slot, together, change)
                break
    if len(together) > len(spec) + 1:
        found.append(Case(slot, name, f"{elsewhere.id}-all", with_slot(elsewhere.config, slot, together)))
    return found


def with_slot(config: ModelConfig, slot: str, spec: Any) -> ModelConfig:
    """The config with one slot filled by another spec, and an id that ends sources where it sees them both ways."""
    change: dict[str, Any] = {slot: spec}
    changed = dataclasses.replace(config, **change)
    return dataclasses.replace(changed, source_end=0 if changed.has_source else None)


def second_values(cls: type, option: Option) -> list[Any]:
    """Values to try for an option, not the one it has: the class's `examples` first, else guesses from its type."""
    declared = getattr(cls, "examples", {})
    if option.name in declared and option.default is not MISSING:
        return [declared[option.name]]
    guesses = list(option.choices)
    for kind in get_args(option.type) or (option.type,):
        guesses += _guesses(kind, _value(cls, option))
    return [guess for guess in guesses if guess != _value(cls, option)]


def beside(cls: type, option: Option) -> dict[str, Any]:
    """The other options without which this one has no meaning, as the class says."""
    return dict(getattr(cls, "beside", {}).get(option.name, {}))


def refusal(config: ModelConfig) -> ConfigError | None:
    """Why a model cannot be; None when it can."""
    try:
        GPT(config)
    except ConfigError as error:
        return error
    return None


def _noise(size: Sequence[int], *key: object) -> Tensor:
    """Standard normal numbers by a key."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed_of(*key)))


def _with_default_dtype(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A part that writes `torch.ones(n, n)` means the model's dtype, and must not fail for that in float64."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return function(*args, **options)
        finally:
            torch.set_default_dtype(usual)

    return run


def _plain_cases(slot: str, name: str, spec: dict[str, Any]) -> list[Case]:
    """The variant with its defaults: an attention with each position it takes, a norm also on queries and keys."""
    base = with_slot(ModelConfig(**SIZES, **PLAIN), slot, spec)
    tries = {f"{slot}/{name}": base}
    if slot == "attention":
        positions = sorted(registry.names("position"), key=lambda position: position != PLAIN["position"])
        tries = {f"{slot}/{name}-{p}": dataclasses.replace(base, position=p) for p in positions}
    elif slot == "norm":
        tries[f"{slot}/{name}-qk"] = dataclasses.replace(base, attention={"name": "vanilla", "qk_norm": name})
    refusals = {key: refusal(config) for key, config in tries.items()}
    kept = [key for key, refused in refusals.items() if refused is None]
    if not kept:
        raise next(refused for refused in refusals.values() if refused is not None)
    return [Case(slot, name, key, tries[key], first=key == kept[0]) for key in kept]


def _required(cls: type) -> dict[str, Any]:
    """A value for each option without a default."""
    needed = {name: option for name, option in registry.options(cls).items() if option.default is MISSING}
    return {name: _value(cls, option) for name, option in needed.items()}


def _value(cls: type, option: Option) -> Any:
    """What an option is in the plain cases: its default, or where there is none the first that may be guessed."""
    if option.default is not MISSING:
        return option.default
    guesses = [*option.choices, *(g for kind in get_args(option.type) or (option.type,) for g in _guesses(kind, None))]
    value = getattr(cls, "examples", {}).get(option.name, guesses[0] if guesses else None)
    if value is None:
        raise ConfigError(f"{cls.__name__}: {how_to_give(option.name)}")
    return value


def how_to_give(option: str) -> str:
    """The way out when no value of an option can be guessed."""
    return f"no value for option {option!r} could be guessed: give the class examples = {{{option!r}: a legal value}}."


def _guesses(kind: Any, default: Any) -> list[Any]:
    """Values of a simple type, far enough from the default to be seen."""
    if kind is bool:
        return [False, True]
    number = default if isinstance(default, int | float) else 0
    if kind is int:
        return [2 * number, number + 1, number - 1] if number else [5, 3, 2, 1]
    if kind is float:
        return [2 * number, number / 2] if number else [0.5, 2.0]
    return []


def _if_accepted(home: ModelConfig, slot: str, spec: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change`, or nothing when the variant refuses it beside the options that `spec` has already."""
    return change if refusal(with_slot(home, slot, {**spec, **change})) is None else {}
