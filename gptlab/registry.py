"""Slot -> name -> class. A variant's signature is its schema: options, types, defaults and meanings."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gptlab.errors import ConfigError, did_you_mean, nearest

T = TypeVar("T", bound=type)
NO_STARS = "options are written out by name; ** stands for those of the class it extends, which has none."


@dataclass(frozen=True)
class Slot:
    """A place that can be filled in several ways: its group on the command line and its node in the config."""

    group: str
    node: str
    meaning: str

    @property
    def typed(self) -> str:
        """The node as a command line writes it: options of `position` go by the short name of their group."""
        return self.group if self.group == "position" else self.node


SLOTS: dict[str, Slot] = {
    "attention": Slot("model/attention", "model.attention", "how tokens look at each other"),
    "position": Slot("position", "model.position", "how a token knows where it stands"),
    "norm": Slot("model/norm", "model.norm", "how the residual stream is normalized"),
    "mlp": Slot("model/mlp", "model.mlp", "what is computed token by token"),
    "block": Slot("model/block", "model.block", "how a layer wires its parts"),
    "data": Slot("data", "data", "where the text comes from"),
    "tokenizer": Slot("tokenizer", "tokenizer", "text to ids and back"),
    "optimizer": Slot("optimizer", "optimizer", "how gradients become steps"),
    "schedule": Slot("schedule", "schedule", "the learning rate over the steps"),
}

_variants: dict[str, dict[str, type]] = {slot: {} for slot in SLOTS}


@dataclass(frozen=True)
class Option:
    """A keyword-only argument of a variant: its type, default (MISSING where required) and meaning."""

    name: str
    type: Any
    default: Any
    meaning: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """What a `Literal` type allows; empty for any other type."""
        return tuple(a for t in _alternatives(self.type) if get_origin(t) is Literal for a in get_args(t))

    @property
    def wanted(self) -> str:
        """The type in words, for errors and help."""
        return " or ".join(dict.fromkeys(_in_words(t) for t in _alternatives(self.type)))

    def check(self, value: Any, where: str) -> Any:
        """`value` as this option's type (an int where a float is wanted becomes one). ConfigError otherwise."""
        for alternative in _alternatives(self.type):
            fits, converted = _fit(alternative, value)
            if fits:
                return converted
        hint = nearest(value, map(str, self.choices)) if isinstance(value, str) else ""
        raise ConfigError(f"{where} must be {self.wanted}, but {value!r} is not. {hint}".rstrip())


def register(slot: str, name: str) -> Callable[[T], T]:
    """Class decorator: make the class known as `name` in `slot`. ConfigError when another class has the name."""
    if slot not in SLOTS:
        raise ConfigError(f"A variant fills a slot, but {slot!r} is not one. {did_you_mean(slot, SLOTS)}")
    if not name.isidentifier():
        raise ConfigError(f"A variant's name is a word of letters, digits and _, but {name!r} is not.")

    def add(cls: T) -> T:
        taken = _variants[slot].get(name)
        if taken is not None and _full_name(taken) != _full_name(cls):
            raise ConfigError(f"{slot} {name!r} is both {_full_name(taken)} and {_full_name(cls)}: rename one of them.")
        options(cls)  # a signature that is no schema is refused here, where its author sees it
        _variants[slot][name] = cls
        return cls

    return add


def names(slot: str) -> list[str]:
    """The registered names of a slot, sorted."""
    return sorted(_variants[slot])


def get(slot: str, name: str, where: str = "") -> type:
    """The class registered as `name` in `slot`. ConfigError with the nearest name when there is none."""
    try:
        return _variants[slot][name]
    except (KeyError, TypeError):
        way_out = did_you_mean(str(name), _variants[slot])
        raise ConfigError(f"There is no {slot} named {name!r}{_for(where)}. {way_out}") from None


def name_of(slot: str, spec: str | Mapping[str, Any], where: str = "") -> str:
    """The name in a spec, which is a name alone or a mapping with `name` and options."""
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, Mapping) or "name" not in spec:
        odd = "a mapping without a name" if isinstance(spec, Mapping) else "neither"
        rule = "must be a name, or a mapping with a name and options"
        raise ConfigError(f"{where or slot} {rule}, but {spec!r} is {odd}.")
    return str(spec["name"])


def options(cls: type) -> dict[str, Option]:
    """The options of a variant, in the order of its signature; `**options` stands for those of the class it extends.

    ConfigError for an option that has no type, and for `**options` that no base writes out.
    """
    found: dict[str, Option] = {}
    owners = list(_constructors(cls))
    for owner in owners:
        hints = get_type_hints(vars(owner)["__init__"], include_extras=True)
        for parameter in inspect.signature(vars(owner)["__init__"]).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in found:
                found[parameter.name] = _option(cls, parameter, hints)
    if len(owners) > 1 and not any(_writes_options(owner) for owner in owners[1:]):
        raise ConfigError(f"{_full_name(cls)}: {NO_STARS}")
    return found


def resolve(slot: str, spec: str | Mapping[str, Any], where: str = "") -> tuple[type, dict[str, Any]]:
    """Class and checked options of a spec. ConfigError: unknown name or option, wrong type, missing values.

    `where` is the setting that holds the spec, when it is another than the slot's own.
    """
    name = name_of(slot, spec, where)
    cls = get(slot, name, where)
    known = options(cls)
    given = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
    for key in given:
        if key not in known:
            way_out = did_you_mean(str(key), known) if known else "It has no options."
            raise ConfigError(f"{slot} {name!r}{_for(where)} has no option {key!r}. {way_out}")
    node = where or SLOTS[slot].typed
    checked = {key: known[key].check(value, f"{node}.{key}") for key, value in given.items()}
    absent = [option for key, option in known.items() if option.default is MISSING and key not in checked]
    if absent:
        needs = "; ".join(option.meaning or option.name for option in absent)
        way_out = " and ".join(f"{node}.{option.name}=..." for option in absent)
        raise ConfigError(f"{slot} {name!r} needs {needs}: give {way_out}")
    return cls, checked


def build(slot: str, spec: str | Mapping[str, Any], *args: Any, where: str = "") -> Any:
    """An instance of the variant that `spec` names, built as `Variant(*args, **options)`; `where` as for `resolve`."""
    cls, chosen = resolve(slot, spec, where)
    return cls(*args, **chosen)


def complete(slot: str, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The spec with every option written out, so that it means the same when a default changes."""
    cls, chosen = resolve(slot, spec)
    return {
        "name": name_of(slot, spec),
        **{key: chosen.get(key, option.default) for key, option in options(cls).items()},
    }


def schema(slot: str, name: str) -> type:
    """The variant's options as a dataclass for OmegaConf: field `name` first, then each option with its type."""
    fields: list[Any] = [("name", str, field(default=name))]
    for option in options(get(slot, name)).values():
        default = "???" if option.default is MISSING else option.default
        if isinstance(default, list | dict):
            fields.append((option.name, Any, field(default_factory=functools.partial(copy.copy, default))))
        else:
            fields.append((option.name, _omegaconf_type(option.type), field(default=default)))
    return make_dataclass(f"{slot}_{name}", fields, namespace={"variant": (slot, name)})


def label(slot: str, part: object) -> str:
    """The name that a part's class is registered under; the class's own name when it is not."""
    return next((name for name, cls in _variants[slot].items() if cls is type(part)), type(part).__name__)


def meaning(cls: type) -> str:
    """The first line of a variant's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _constructors(cls: type) -> Iterator[type]:
    """The class whose `__init__` builds `cls`, and those that it hands `**options` on to."""
    for owner in (base for base in cls.__mro__ if "__init__" in vars(base) and base is not object):
        if owner.__module__.startswith("torch."):
            break
        yield owner
        parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return
    if "__init__" in {name for base in cls.__mro__ if base is not object for name in vars(base)}:
        raise ConfigError(f"{_full_name(cls)}: {NO_STARS}")


def _writes_options(cls: type) -> bool:
    parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def _option(cls: type, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Option:
    if parameter.name not in hints:
        raise ConfigError(f"{_full_name(cls)}: option {parameter.name!r} needs a type.")
    hint = hints[parameter.name]
    kind, meaning = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, "")
    default = MISSING if parameter.default is parameter.empty else parameter.default
    default = list(default) if isinstance(default, tuple) else default  # as YAML and OmegaConf give it back
    return Option(parameter.name, kind, default, str(meaning))


def _for(where: str) -> str:
    return f" for {where}" if where else ""


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "a mapping"
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return "a list" if item is Any else f"a list of {item.__name__}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _fit(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of one non-union type, and the value as that type."""
    if kind is Any:
        return True, value
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is dict:
        return isinstance(value, dict), value
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        fits = isinstance(value, list | tuple) and all(_fit(item, v)[0] for v in value)
        return fits, [_fit(item, v)[1] for v in value] if fits else value
    if kind is float and type(value) is int:
        return True, float(value)
    return type(value) is kind or (kind not in (int, float) and isinstance(value, kind)), value


def _omegaconf_type(kind: Any) -> Any:
    """The nearest type OmegaConf can hold: one simple type, or it and None; a Literal is its values' type."""
    parts = [type(get_args(t)[0]) if get_origin(t) is Literal else t for t in _alternatives(kind)]
    simple = [t for t in parts if t is not type(None)]
    if len(simple) != 1 or simple[0] not in (int, float, bool, str):
        return Any
    return simple[0] | None if len(parts) > 1 else simple[0]
